"""Presets: a trained network as a folder that can be shared, and opened as a run.

FOLDER/config.json        the resolved config, without paths and services of the machine
       classes.json       names, colors and numbers of pixels of the classes
       data.json          identity of the training data: images and pixels of each split
       scores.json        scores of the weights, as `kseg evaluate` writes them
       model.weights.h5   the network's weights, without projectors
       README.md          the model card
"""

import dataclasses
import json
import os
import pathlib

from kseg import config as config_module
from kseg import files
from kseg.dotted import is_dotted
from kseg.errors import UserError, option
from kseg.json_text import parse_json
from kseg.runs.model_card import model_card
from kseg.runs.run import PRESET_WEIGHTS, Run

SCORES, CARD = "scores.json", "README.md"
REQUIRED = ("config.json", "classes.json", PRESET_WEIGHTS)
OPTIONAL = ("data.json", SCORES)
# A run evaluates its best weights twice, in other batches: more than this is other weights.
_TOLERANCE = 5e-3


@dataclasses.dataclass(frozen=True)
class Preset:
    """A preset in memory.

    Attributes:
        run: `Run` of its folder, with `config`, `classes` and `value_range`.
        segmenter: keras model, see `kseg.segmenters.build_segmenter`. The inference model shares
            its weights; this is the one to train further.
        scores: dict, content of `scores.json`; None if there are none.
    """

    run: Run
    segmenter: object
    scores: dict | None


def write_preset(run, folder, scores, *, license="unknown", source=None, overwrite=False):
    """Writes the best weights of a run and their description to a folder.

    Args:
        run: `Run`.
        folder: folder to write.
        scores: dict, scores of the run's best weights, see `kseg.evaluation.results`.
        license: str, identifier of a license as the Hugging Face hub knows it, such as
            `"apache-2.0"`.
        source: str, the argument of `kseg.from_preset` in the model card; None: the name of
            `folder`.
        overwrite: bool, whether to replace an existing preset.

    Raises:
        UserError: if the run has no best weights, they are not those of `scores`, or the folder
            exists.
    """
    folder = pathlib.Path(folder)
    check_target(folder, overwrite)
    _check_scores(run, scores)
    segmenter = run.segmenter("best")
    config = shared_config(run.config)
    scores = _without_paths(scores)
    with files.replace_folder(folder) as new:
        (new / "config.json").write_text(config.to_json(), encoding="utf-8")
        (new / "classes.json").write_text(
            json.dumps(dataclasses.asdict(run.classes)) + "\n", encoding="utf-8"
        )
        if run.data is not None:
            (new / "data.json").write_text(json.dumps(run.data) + "\n", encoding="utf-8")
        (new / SCORES).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        source = source or folder.resolve().name
        card = model_card(config, run.classes, run.data, scores, license=license, source=source)
        (new / CARD).write_text(card, encoding="utf-8")
        segmenter.save_weights(new / PRESET_WEIGHTS)


def check_target(folder, overwrite):
    """Checks that a preset can be written to a folder, before it is computed.

    Args:
        folder: path.
        overwrite: bool, whether an existing preset may be replaced.

    Raises:
        UserError: if the folder exists and may not be replaced, or is not a preset.
        OSError: if it cannot be written.
    """
    folder = pathlib.Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(
                f"{folder} exists already. Use {option('overwrite', True)} to replace it"
            )
        others = sorted({entry.name for entry in folder.iterdir()} - {*REQUIRED, *OPTIONAL, CARD})
        if others:
            raise UserError(
                f"Only a preset may be replaced. {folder} also holds {others[0]!r}. Give another "
                "folder"
            )
    files.check_folder(folder)


def from_preset(source, *, precision=None, allow_code=False):
    """Loads a trained network that `kseg push` wrote, from a folder or the Hugging Face hub.

    Args:
        source: folder, or `"hf://owner/name"` or `"hf://owner/name@revision"`. The revision is a
            branch, a tag or a commit; without one, it is the newest commit, or the cached one if
            there is no network.
        precision: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`; None: that of its training.
        allow_code: bool, whether the config may name a backbone or a head of another package as
            `"package.module:function"`, which is imported and called.

    Returns:
        `kseg.segmenters.InferenceModel` from RGB images `(batch, height, width, 3)` in 0 to 255,
        uint8 or float, of any size (or of the channels and values of `preset.run.pixel_format`), to
        float32 logits `(batch, height, width, num_classes)`. Its
        attribute `classes` holds names and colors of the classes; its attribute `preset` the
        `segmenter` to train further, `run` with the config, and `scores`.

    Raises:
        UserError: if the folder is no preset, one of its files is damaged, or it names code and
            `allow_code` is False.
        UnavailableError: a `UserError`, if the hub has no such preset or cannot be reached.

    Example:
        >>> import kseg
        >>> kseg.from_preset("presets/none")
        Traceback (most recent call last):
        kseg.errors.UserError: ...
    """
    from kseg.segmenters import inference_model

    folder = fetch_preset(source) if str(source).startswith("hf://") else pathlib.Path(source)
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"A preset must hold {', '.join(REQUIRED)}. {source} lacks {', '.join(missing)}. Give "
            "a folder that `kseg push` wrote, or hf://owner/name"
        )
    run = Run.open(folder)
    segmenter = run.segmenter("best", precision=precision, allow_code=allow_code)
    inference = inference_model(segmenter)
    inference.classes = run.classes
    inference.preset = Preset(run, segmenter, read_scores(folder))
    return inference


def fetch_preset(source):
    """Downloads a preset to the cache of the Hugging Face hub.

    Args:
        source: str, `hf://owner/name` or `hf://owner/name@revision`.

    Returns:
        `pathlib.Path` of the folder, whose files are all of one commit.

    Raises:
        UserError, UnavailableError: as `kseg.weights.hub.fetch_files`.
    """
    from kseg.weights.hub import fetch_files

    return fetch_files(source, REQUIRED, OPTIONAL)


def shared_config(config):
    """Removes from a config what belongs to one machine: paths, services, loggers, own layers.

    The arguments of a backbone or head from outside kseg stay, because the network needs them.

    Args:
        config: `kseg.config.Experiment`.

    Returns:
        `kseg.config.Experiment`.
    """
    values = config.model_dump(mode="json")
    values["data"].update(path=None, cache=None, service=None)
    values["train"].update(callbacks=[], devices=None)
    own = [a for a in values["data"]["augmentations"] if not is_dotted(a["name"])]
    values["data"]["augmentations"] = own
    model = values["model"]
    for section in (model, model["backbone"]):
        if section["weights"] is not None and "://" not in section["weights"]:
            section["weights"] = None
    return config_module.parse(values, source="the config")


def _check_scores(run, scores):
    """Rejects scores that do not belong to the best weights."""
    where = f"{run.path}/evaluation"
    again = f"Evaluate again: `kseg evaluate`, {option('run', str(run.path))}"
    if scores.get("checkpoint") != "best":
        raise UserError(
            f"The scores in {where} must be those of the best weights. They are of the checkpoint "
            f"{scores.get('checkpoint')!r}. {again}"
        )
    if scores["mean_iou"] is None:
        raise UserError(
            f"The scores in {where} must be of labeled images. No pixel of the split has a label"
        )
    if list(scores["classes"]) != list(run.classes.names):
        raise UserError(f"The scores in {where} must be of the run's classes. {again}")
    had = run.checkpoint_meta("best").get("mean_iou")
    plain = not any(scores.get(key) for key in ("window", "scales", "flip"))
    if plain and had is not None and abs(scores["mean_iou"] - had) > _TOLERANCE:
        raise UserError(
            f"The scores in {where} are of other weights: their mean IoU is "
            f"{scores['mean_iou']:.4f}, that of the best weights {had:.4f}. {again}"
        )


def _without_paths(scores):
    """Reduces the path of the initial weights to the file name."""
    start = scores.get("initial_weights")
    if isinstance(start, str) and "://" not in start:
        return {**scores, "initial_weights": os.path.basename(start)}
    return scores


def read_scores(folder):
    """Reads the scores of a preset.

    Args:
        folder: `pathlib.Path`.

    Returns:
        dict, see `kseg.evaluation.results`; None if the preset has none.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / SCORES
    if not path.is_file():
        return None
    try:
        scores = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(scores, dict) or not isinstance(scores.get("classes"), dict):
            raise ValueError("it holds no scores of classes")
        return scores
    except ValueError as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from None
