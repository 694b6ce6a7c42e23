"""A self-contained HTML report of a run: no network access, no other files, no scripts."""

import base64
import dataclasses
import html
import math
import pathlib

import cv2
import numpy as np

from kseg.analysis import charts
from kseg.analysis.features import FeatureStatistics
from kseg.evaluation import drawing
from kseg.evaluation.metrics import Scores

_WIDTH = 520  # Pixels; wider images are shrunk.
_MAX_CONFUSION = 24  # Classes; with more, the confusion matrix is an image.
_STYLE = pathlib.Path(__file__).with_name("report.css")


@dataclasses.dataclass(frozen=True)
class Activation:
    """The Grad-CAM of a class on an image.

    Attributes:
        number: int, the class.
        id: str, name of the image.
        image: uint8 array `(height, width, 3)`.
        heat: dict from a stage to float array `(h, w)` in [0, 1].
    """

    number: int
    id: str
    image: np.ndarray
    heat: dict


@dataclasses.dataclass(frozen=True)
class RunReport:
    """The content of a report.

    Attributes:
        name: str, name of the run.
        dataset: str.
        split: str.
        checkpoint: str.
        config: dict, the resolved config.
        environment: dict, versions and the git commit.
        class_names: list of str.
        palette: list of `[red, green, blue]`.
        categories: dict from a name to indices of classes that are scored as a single class.
        groups: dict from a name to indices of classes over which scores are averaged.
        scores: `Scores` over the split.
        image_mean_iou: dict from the id of an image to its mean IoU.
        train: scalars of the training, as returned by `read_scalars`.
        evaluation: scalars of its evaluations, in the same form.
        examples: list of `kseg.analysis.failures.Example`, spread evenly over the split.
        worst: list of `Example`, the worst first.
        pairs: list of `kseg.analysis.failures.ConfusedPair`.
        statistics: `FeatureStatistics`.
        unit_norm: bool, whether the features were scaled to unit norm first.
        layouts: dict from a title to `(positions, classes)` of a t-SNE.
        activations: list of `Activation`.
        feature_colors: list of uint8 arrays `(h, w, 3)`, one for each of `examples`.
    """

    name: str
    dataset: str
    split: str
    checkpoint: str
    config: dict
    environment: dict
    class_names: list
    palette: list
    categories: dict
    groups: dict
    scores: Scores
    image_mean_iou: dict
    train: dict
    evaluation: dict
    examples: list
    worst: list
    pairs: list
    statistics: FeatureStatistics
    unit_norm: bool
    layouts: dict
    activations: list
    feature_colors: list


def render(report):
    """Renders the page.

    Args:
        report: `RunReport`.

    Returns:
        str, HTML. The same report yields the same text.
    """
    sections = {
        "Training": _training(report),
        "Scores": _scores(report),
        "Predictions": _predictions(report),
        "Failures": _failures(report),
        "Features": _features(report),
        "Grad-CAM": _activations(report),
        "Settings": _settings(report),
    }
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in sections)
    body = "".join(
        f'<section id="{_anchor(title)}"><h2>{title}</h2>{content}</section>\n'
        for title, content in sections.items()
    )
    model = report.config["model"]
    contrast = [objective["name"] for objective in report.config["contrast"]]
    subtitle = (
        f"{model['head']['name']} on {model['backbone']['name']}, "
        f"{' and '.join(contrast) or 'without contrast'}; {report.dataset}, split {report.split}, "
        f"{len(report.image_mean_iou)} images; checkpoint {report.checkpoint}"
    )
    scores, statistics = report.scores, report.statistics
    tiles = {
        "mean IoU": _percent(scores.mean_iou, " %"),
        "pixel accuracy": _percent(scores.pixel_accuracy, " %"),
        "mean accuracy": _percent(scores.mean_accuracy, " %"),
        "alignment A": _number(statistics.alignment),
        "uniformity U": _number(statistics.uniformity),
    }
    # The policy makes the browser enforce that nothing is loaded.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(report.name)}: report</title>
<style>
{_STYLE.read_text()}</style>
</head>
<body>
<header><h1>{_text(report.name)}</h1><p class="quiet">{_text(subtitle)}</p>{_tiles(tiles)}</header>
<nav><div>{links}</div></nav>
<main>
{body}</main>
</body>
</html>
"""


def _training(report):
    if not report.train and not report.evaluation:
        return "<p>The run has no TensorBoard events.</p>"
    figure = charts.training_curves(report.train, report.evaluation)
    note = "Thin lines: measured values; thick lines: smoothed."
    return f'<div class="wide">{_chart(figure, "curves", "Training curves", note)}</div>'


def _scores(report):
    scores, statistics = report.scores, report.statistics
    rows = zip(
        scores.iou,
        scores.accuracy,
        scores.pixel_share,
        statistics.class_alignment,
        strict=True,
    )
    lines = []
    for n, (iou, accuracy, share, alignment) in enumerate(rows):
        cells = [_bar(iou), _percent(iou), _percent(accuracy), _percent(share), _number(alignment)]
        lines.append(f"<tr><td>{_class(report, n)}</td>{_cells(cells)}</tr>")
    means = ["", _percent(scores.mean_iou), _percent(scores.mean_accuracy), ""]
    means = _cells([*means, _number(statistics.alignment)])
    lines.append(f'<tr class="total"><td>mean</td>{means}</tr>')
    # With many classes, two tables side by side, and the matrix below.
    many = len(report.class_names) > _MAX_CONFUSION
    parts = np.array_split(lines, 2 if many else 1)
    columns = ("class", "", "IoU, %", "accuracy, %", "pixels, %", "A")
    head = f"<tr>{''.join(f'<th>{column}</th>' for column in columns)}</tr>"
    bodies = (f"<thead>{head}</thead><tbody>{''.join(part)}</tbody>" for part in parts)
    style = ' class="many"' if many else ""
    tables = "".join(f'<div class="wide"><table{style}>{body}</table></div>' for body in bodies)
    confusion = (
        f'<div class="wide">{_confusion(report)}<p class="quiet">Confusion: % of each class; rows '
        "are the ground truth.</p></div>"
    )
    note = "A: mean distance between two features of the class; lower is better."
    more = {
        "category": scores.category_iou(report.categories),
        "group (mean)": scores.group_iou(report.groups),
    }
    more = "".join(_score_table(title, values) for title, values in more.items() if values)
    return (
        f'<div class="beside">{tables}{confusion}</div><p class="quiet">{note}</p>'
        f'<div class="beside">{more}</div>'
    )


def _score_table(title, values):
    """Renders a table of IoU by name."""
    rows = "".join(
        f"<tr><td>{_text(name)}</td>{_cells([_bar(iou), _percent(iou)])}</tr>"
        for name, iou in values.items()
    )
    head = f"<tr><th>{title}</th><th></th><th>IoU, %</th></tr>"
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _confusion(report):
    names, matrix = report.class_names, report.scores.matrix
    if len(names) > _MAX_CONFUSION:
        picture = drawing.confusion_picture(matrix, names)
        return f'<div class="wide">{_image(picture, "Confusion matrix", width=None)}</div>'
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    columns = "".join(f"<th><span>{_text(name)}</span></th>" for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = []
        for share in shares[i]:
            much = ' class="much"' if share > 0.45 else ""
            shown = f"{100 * share:.0f}" if share >= 0.005 else ""
            color = f"background:rgba(var(--heat),{math.sqrt(share):.2f})"  # Shows small shares.
            cells.append(f'<td{much} style="{color}">{shown}</td>')
        rows.append(f"<tr><th>{_text(name)}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table class="confusion"><thead><tr><th></th>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _predictions(report):
    note = "Images sampled evenly from the split."
    legend = _legend(report, _occurring(report.examples))
    return f'<p class="quiet">{note}</p>{legend}{_examples(report, report.examples)}'


def _failures(report):
    lines = []
    for pair in report.pairs:
        cells = [f"{100 * pair.share:.1f}", f"{pair.pixels:,}"]
        taken = f'<td class="text">{_class(report, pair.prediction)}</td>'
        lines.append(f"<tr><td>{_class(report, pair.truth)}</td>{taken}{_cells(cells)}</tr>")
    head = (
        '<tr><th>class</th><th class="text">predicted as</th><th>% of the class</th>'
        "<th>pixels</th></tr>"
    )
    values = np.array(list(report.image_mean_iou.values()))
    chart = ""
    if len(values):
        low, middle, high = np.percentile(values, [10, 50, 90])
        note = (
            f"Median {_percent(middle)} %, 10th percentile {_percent(low)} %, 90th percentile "
            f"{_percent(high)} %."
        )
        title = "Mean IoU per image"
        chart = _chart(charts.histogram(values, title=f"{title}, %"), "histogram", title, note)
    return (
        '<div class="beside"><div class="wide"><h3>Most frequent confusions</h3>'
        f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"<div>{chart}</div></div>"
        f"<h3>Images with the lowest mean IoU</h3>{_examples(report, report.worst)}"
    )


def _features(report):
    statistics = report.statistics
    near = statistics.neighborhood_uniformity
    tiles = {
        "A, within a class": _number(statistics.alignment),
        "U, between all classes": _number(statistics.uniformity),
        **{f"U<sub>{n}</sub>, to the {n} nearest": _number(value) for n, value in near.items()},
    }
    scaled = "scaled to unit norm" if report.unit_norm else "not scaled"
    note = (
        f"Features just before the classifier, {scaled}. A is the mean distance between two "
        "features of a class, averaged over classes: lower is better. U is the mean distance "
        "between the centers of two classes, U<sub>l</sub> that to the l nearest: higher is better "
        "(Sung et al., CVPR 2024, supplement Eq. 1-3). A is computed exactly on a sample of at "
        f"most {max(statistics.num_samples)} pixels of each class."
    )
    charted = [
        _chart(
            charts.point_map(*layout, report.palette, title=title),
            f"points{'abcdefgh'[i]}",
            f"t-SNE: {title}",
        )
        for i, (title, layout) in enumerate(report.layouts.items())
    ]
    shown = {int(n) for _, classes in report.layouts.values() for n in classes}
    legend = _legend(report, shown, ignored=False)
    maps = "".join(
        _figure(
            [
                _image(example.image, f"image {example.id}"),
                _image(colors, f"features of {example.id}", size=example.image.shape),
            ],
            _text(example.id),
        )
        for example, colors in zip(report.examples, report.feature_colors, strict=True)
    )
    return (
        f'<p class="quiet">{note}</p>{_tiles(tiles)}'
        "<h3>Pixels and regions in the plane (t-SNE)</h3>"
        '<p class="quiet">The same number of each class, if it has as many. A region is a class in '
        f'an image.</p>{legend}<div class="pair">{"".join(charted)}</div>'
        "<h3>Feature maps</h3>"
        '<p class="quiet">The three principal components of the features of these images together, '
        f'as red, green and blue.</p><div class="cards">{maps}</div>'
    )


def _activations(report):
    note = (
        "Evidence for each class, on the image with the most pixels of it. The features show the "
        "result, a deeper stage the evidence for it (Selvaraju et al., ICCV 2017; Vinogradova et "
        "al., AAAI 2020). An entirely dark map has no evidence for the class."
    )
    cards = []
    for activation in report.activations:
        name = report.class_names[activation.number]
        image, _ = drawing.shrink(activation.image, width=_WIDTH)
        pictures = [_image(image, f"image {activation.id}")]
        pictures += [
            _image(drawing.heat_overlay(image, heat), f"Grad-CAM of {name} on {stage}")
            for stage, heat in activation.heat.items()
        ]
        stages = ", ".join(["image", *activation.heat])
        caption = f"({_text(stages)}; {_text(activation.id)})"
        cards.append(_figure(pictures, f"{_class(report, activation.number)} {caption}"))
    return f'<p class="quiet">{note}</p><div class="cards">{"".join(cards)}</div>'


def _settings(report):
    groups = {}
    for key, value in report.config.items():
        if isinstance(value, dict):
            groups[key] = dict(_flatten(value))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                groups[f"{key} {i + 1}"] = dict(_flatten(item))
        else:
            groups.setdefault("run", {})[key] = value
    groups["environment"] = dict(_flatten(report.environment))
    blocks = []
    for title, values in groups.items():
        terms = "".join(
            f"<dt>{_text(key)}</dt><dd>{_text(_plain(value))}</dd>" for key, value in values.items()
        )
        blocks.append(f"<div><b>{_text(title)}</b><dl>{terms}</dl></div>")
    return f'<div class="settings">{"".join(blocks)}</div>'


def _examples(report, examples):
    head = "".join(f"<div>{title}</div>" for title in ("image", "truth", "prediction", "errors"))
    rows = [f'<div class="row head" style="--columns:4">{head}</div>']
    for example in examples:
        image, (truth, prediction) = drawing.shrink(
            example.image, (example.truth, *example.predictions), width=_WIDTH
        )
        palette, name = report.palette, example.id
        errors = drawing.error_map(image, truth, prediction, len(palette))
        pictures = [
            _image(image, f"image {name}"),
            _image(drawing.colorize_truth(truth, palette), f"truth of {name}", flat=True),
            _image(drawing.colorize(prediction, palette), f"prediction of {name}", flat=True),
            _image(errors, f"errors in {name}"),
        ]
        rows.append(_figure(pictures, f"{_text(name)}: mean IoU {_percent(*example.mean_iou)} %"))
    return "".join(rows)


def _occurring(examples):
    """Returns the labels in ground truth or prediction, including 255."""
    arrays = [labels for e in examples for labels in (e.truth, *e.predictions)]
    return {int(n) for labels in arrays for n in np.unique(labels)}


def _legend(report, numbers, *, ignored=True):
    known = sorted(n for n in numbers if 0 <= n < len(report.class_names))
    items = "".join(f"<span>{_class(report, n)}</span>" for n in known)
    if ignored:
        items += '<span><span class="swatch stripes"></span>ignored</span>'
    return f'<div class="legend">{items}</div>'


def _class(report, n):
    color = "rgb({},{},{})".format(*report.palette[n])
    swatch = f'<span class="swatch" style="background:{color}"></span>'
    return f"{swatch}{_text(report.class_names[n])}"


def _chart(figure, name, title, note=""):
    caption = f"<figcaption>{_text(note)}</figcaption>" if note else ""
    drawing = charts.svg(figure, name).replace(
        "<svg", f'<svg role="img" aria-label="{_text(title)}"', 1
    )
    return f"<figure>{drawing}{caption}</figure>"


def _figure(pictures, caption):
    row = f'<div class="row" style="--columns:{len(pictures)}">{"".join(pictures)}</div>'
    return f"<figure>{row}<figcaption>{caption}</figcaption></figure>"


def _image(picture, description, *, flat=False, width=_WIDTH, size=None):
    """Renders an `<img>` with embedded data: PNG if colors are flat, else JPEG.

    The image is enlarged to `size`, that of the image next to it, if given.
    """
    if size is not None:
        picture = drawing.enlarge(picture, size[:2])
    if width is not None and not flat:
        picture, _ = drawing.shrink(picture, width=width)
    pixels = np.ascontiguousarray(picture[..., ::-1])
    if flat or width is None:
        kind, content = "png", cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    else:
        # No chroma subsampling: marks are colored.
        full = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        kind = "jpeg"
        content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 88, *full])[1]
    data = base64.b64encode(content.tobytes()).decode()
    height, width = picture.shape[:2]
    return (
        f'<img width="{width}" height="{height}" alt="{_text(description)}" '
        f'src="data:image/{kind};base64,{data}">'
    )


def _tiles(values):
    tiles = (
        f'<div class="tile"><b>{_text(value)}</b><span>{name}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _bar(share):
    filled = 0 if math.isnan(share) else 100 * share
    return f'<span class="bar"><i style="width:{filled:.1f}%"></i></span>'


def _cells(values):
    return "".join(f"<td>{value}</td>" for value in values)


def _flatten(values, prefix=""):
    """Yields `(dotted key, value)` for each leaf of a nested dict."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value):
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)


def _percent(value, unit=""):
    return "-" if math.isnan(value) else f"{100 * value:.2f}{unit}"


def _number(value):
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _anchor(title):
    return title.lower()


def _text(value):
    return html.escape(str(value))
