"""Scores of the official Cityscapes evaluation script, the instance-weighted IoU among them."""

import contextlib
import copy
import importlib
import io
import math
import pathlib
import types

import numpy as np

from kseg.errors import UserError
from kseg.evaluation.cityscapes.submission import frame_of

_SCRIPT = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
_LABELS = "_gtFine_labelIds.png"


def find_ground_truth(folder, frames):
    """Finds the annotation of each frame.

    Args:
        folder: the unpacked `gtFine` download, or a folder that contains it.
        frames: names such as `frankfurt_000000_000294`.

    Returns:
        list of `pathlib.Path`, the label images of the frames; beside each is the instance image.

    Raises:
        UserError: if a file is missing.
    """
    files = {frame_of(file.name): file for file in pathlib.Path(folder).rglob(f"*{_LABELS}")}
    missing = sorted({*frames} - {*files})
    if missing:
        raise UserError(
            f"{folder} must hold the annotation of every image, such as {missing[0]}{_LABELS}: "
            f"{len(missing)} of {len(frames)} are missing. Give the folder of gtFine"
        )
    for frame in frames:
        instances = _instances(files[frame])
        if not instances.exists():
            raise UserError(f"There is no {instances}. Unpack gtFine again, it holds that file")
    return [files[frame] for frame in frames]


def official_scores(predictions, ground_truth):
    """Scores label images by cityscapesscripts.

    The instance-weighted iIoU of a class weighs each of its pixels by the average size of the
    class's instances over the size of the pixel's own instance, so that small things count as
    much as large ones.

    Args:
        predictions, ground_truth: lists of paths of label images with regular ids, one for each
            frame, in the same order. Beside the truth are the instance images.

    Returns:
        dict with `mean_iou`, `mean_iiou`, `mean_category_iou`, `mean_category_iiou`, and `classes`
        and `categories`, dicts from name to `{"iou", "iiou"}`; all in [0, 1], None where a score is
        not defined (iIoU: for classes without instances).

    Raises:
        UserError: if the package is not installed, or it refuses a file.
    """
    official = _official_module()
    settings = copy.copy(official.args)
    settings.evalInstLevelScore, settings.JSONOutput, settings.quiet = True, False, True
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            results = official.evaluateImgLists(
                [str(path) for path in predictions], [str(path) for path in ground_truth], settings
            )
    except SystemExit:  # Its way to report an error, after printing it.
        lines = printed.getvalue().strip().splitlines() or ["no reason given"]
        raise UserError(f"cityscapesscripts stopped: {lines[-1]}") from None

    def scores(key, names):
        return {
            name: {
                "iou": _plain(results[f"{key}Scores"][name]),
                "iiou": _plain(results[f"{key}InstScores"][name]),
            }
            for name in names
        }

    evaluated = [label for label in official.labels if not label.ignoreInEval]
    return {
        "mean_iou": _plain(results["averageScoreClasses"]),
        "mean_iiou": _plain(results["averageScoreInstClasses"]),
        "mean_category_iou": _plain(results["averageScoreCategories"]),
        "mean_category_iiou": _plain(results["averageScoreInstCategories"]),
        "classes": scores("class", [label.name for label in evaluated]),
        "categories": scores("category", dict.fromkeys(label.category for label in evaluated)),
    }


def table(scores):
    """Formats the result of `official_scores` as a table in percent."""
    blocks = {
        "class": scores["classes"],
        "category": scores["categories"],
        "mean": {
            "classes": {"iou": scores["mean_iou"], "iiou": scores["mean_iiou"]},
            "categories": {
                "iou": scores["mean_category_iou"],
                "iiou": scores["mean_category_iiou"],
            },
        },
    }
    width = max(len(name) for rows in blocks.values() for name in rows)
    lines = []
    for title, rows in blocks.items():
        lines.append(f"{title:{width}}     IoU    iIoU")
        for name, row in rows.items():
            cells = ("-" if value is None else f"{100 * value:.2f}" for value in row.values())
            lines.append(f"{name:{width}}" + "".join(f"{cell:>8}" for cell in cells))
        lines.append("-" * (width + 16))
    return "\n".join(lines[:-1])


def check_installed():
    """Raises a UserError unless the official script is installed."""
    _official_module()


def _official_module():
    try:
        official = importlib.import_module(_SCRIPT)
    except ImportError as error:
        raise UserError(
            f"The official scores need the package cityscapesscripts ({error}). Install it with: "
            "pip install 'kseg[cityscapes]'"
        ) from None
    if not hasattr(np, "in1d"):
        # NumPy 2.4 took away the name under which version 2.3 of the package calls this.
        official.np = types.SimpleNamespace(**vars(np), in1d=np.isin)
    return official


def _instances(labels):
    return labels.with_name(labels.name.replace("labelIds", "instanceIds"))


def _plain(value):
    return None if math.isnan(value) else float(value)
