"""The model card of a preset: a page in Markdown, with metadata for the Hugging Face hub."""

import re

import yaml

import kseg
from kseg.pixel_format import PixelFormat

_SETTINGS = ("window", "overlap", "scales", "flip")


def model_card(config, classes, data, scores, *, license, source):
    """Writes a model card: how to use the network, its data, and its scores by class.

    Args:
        config: `kseg.config.Experiment`, as in the preset.
        classes: `kseg.classes.Classes`.
        data: dict, identity of the training data, or None.
        scores: dict, as in the preset.
        license: str, identifier of a license.
        source: str, the argument of `kseg.from_preset`.

    Returns:
        str, Markdown.
    """
    weights = source if source.startswith("hf://") else f"{source}/model.weights.h5"
    network = f"{config.model.head.name} on {config.model.backbone.name}"
    parts = [
        "---\n" + yaml.safe_dump(_metadata(config, scores, license), sort_keys=False) + "---",
        f"# {_text(config.name)}",
        f"Semantic segmentation with {len(classes)} classes: {_text(network)}, trained with "
        f"kseg {kseg.__version__}.",
        "## Use",
        "```python\n"
        "import kseg\n"
        f"model = kseg.from_preset({source!r})\n"
        f"labels = model.predict(images).argmax(-1)  # {_input(data)}\n"
        "```",
        "`model.classes.names` holds the names of the classes in the order of their numbers. To "
        f'train further on other classes, set `{{"model": {{"weights": "{weights}"}}}}` in a '
        "config with the same `model` section.",
        "## License",
        "Not stated by the author."
        if license == "unknown"
        else f"{_code(license)}, as stated by the author.",
        "## Data",
        *_data(config, data, scores),
        "## Scores",
        *_scores(config, scores),
        "## Training",
        _training(config),
    ]
    return "\n\n".join(parts) + "\n"


def _input(data):
    """Describes the images that the network takes."""
    pixels = PixelFormat.from_dict((data or {}).get("pixels"))
    if pixels is None:
        return "From uint8 RGB (batch, height, width, 3)."
    low, high = pixels.value_range
    shape = f"(batch, height, width, {pixels.channels})"
    return f"From {pixels.dtype} {shape}, values {low:g} to {high:g}."


def _metadata(config, scores, license):
    metrics = [
        {"type": "mean_iou", "name": "mean IoU", "value": round(float(scores["mean_iou"]), 4)},
        {
            "type": "accuracy",
            "name": "pixel accuracy",
            "value": round(float(scores["pixel_accuracy"]), 4),
        },
    ]
    dataset = {
        "type": str(scores["dataset"]),
        "name": str(scores["dataset"]),
        "split": str(scores["split"]),
    }
    result = {"task": {"type": "image-segmentation"}, "dataset": dataset, "metrics": metrics}
    return {
        "license": license,
        "library_name": "kseg",
        "pipeline_tag": "image-segmentation",
        "tags": ["kseg", "keras", "semantic-segmentation"],
        "model-index": [{"name": config.name, "results": [result]}],
    }


def _data(config, data, scores):
    start = scores.get("initial_weights", "unknown")
    lines = [f"Data set {_code(config.data.dataset)}. Initial weights: {_code(start)}."]
    if data:
        rows = [
            (name, split["images"], sum(split["pixels"][:-1]), split["pixels"][-1])
            for name, split in data["splits"].items()
        ]
        lines.append(_table(("split", "images", "labeled pixels", "ignored pixels"), rows))
        if data.get("value_range"):
            low, high = data["value_range"]
            lines.append(
                f"Images of more than 8 bits: the values {low:g} to {high:g} became 0 to 255."
            )
    return lines


def _scores(config, scores):
    settings = [f"{name}: {scores[name]}" for name in _SETTINGS if scores.get(name)]
    how = f", with {', '.join(settings)}" if settings else ", one view of each whole image"
    chosen = scores["split"] == config.data.eval_split
    chose = ", by which these weights were chosen" if chosen else ""
    rows = [
        (name, _percent(s["iou"]), _percent(s["accuracy"]), _percent(s["pixel_share"]))
        for name, s in scores["classes"].items()
    ]
    rows.append(("**mean**", _percent(scores["mean_iou"]), _percent(scores["mean_accuracy"]), ""))
    return [
        f"On split {_code(scores['split'])} of {_code(scores['dataset'])}{chose}{how}; in percent. "
        f"Pixel accuracy: {_percent(scores['pixel_accuracy'])}.",
        _table(("class", "IoU", "accuracy", "share of pixels"), rows),
    ]


def _training(config):
    height, width = config.data.crop_size
    losses = [name for name, loss in config.losses if loss is not None and loss.weight]
    objectives = [objective.name for objective in config.contrast]
    return (
        f"{config.train.total_steps} steps of {config.data.batch_size} crops of {height} x {width} "
        f"pixels, {config.optimizer.name} at {config.optimizer.learning_rate:g}, "
        f"{config.schedule.name} schedule. Losses: {', '.join(losses)}. Contrast: "
        f"{', '.join(objectives) or 'none'}. `config.json` holds every setting."
    )


def _table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(_text(cell, bold=True) for cell in line) + " |" for line in lines
    )


def _text(value, bold=False):
    """Escapes a name for Markdown."""
    text = " ".join(str(value).split())
    if bold and re.fullmatch(r"\*\*\w+\*\*", text):
        return text
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", text)


def _code(value):
    return "`" + " ".join(str(value).split()).replace("`", "'") + "`"


def _percent(value):
    return "" if value is None else f"{100 * value:.1f}"
