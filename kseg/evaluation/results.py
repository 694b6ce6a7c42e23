"""Evaluation results on disk: JSON, a CSV table, and per-image counts."""

import csv
import hashlib
import json
import pathlib
import typing

import numpy as np

from kseg import display, files
from kseg.errors import UserError
from kseg.evaluation.image_counts import ImageCounts
from kseg.json_text import parse_json

_COUNTS = "image_counts_sha256"
_COLUMNS = ("kind", "name", "iou", "accuracy", "pixel_share", "boundary_iou", "iiou")


class Results(typing.NamedTuple):
    """Results of an evaluation, as returned by `read`.

    Attributes:
        found: dict, as passed to `write`.
        image_counts: `kseg.evaluation.image_counts.ImageCounts`.
        has_checksum: bool. Earlier versions stored no checksum; then the only evidence that scores
            and counts belong together is that their sums agree.
    """

    found: dict
    image_counts: ImageCounts
    has_checksum: bool


def write(path, scores, image_counts):
    """Writes the results of an evaluation to three files that differ only in their suffix.

    `.json` holds all of `scores` and the checksum of the `.npz`; `.csv` holds the scores, one row
    per class, category or group, then the means; `.npz` holds the counts that `compare` needs.

    Args:
        path: path that ends in `.json`; its folder is created if missing.
        scores: JSON-able dict that includes the items of `Evaluation.to_dict`.
        image_counts: `kseg.evaluation.image_counts.ImageCounts`.
    """
    path = pathlib.Path(path)
    image_counts.save(path.with_suffix(".npz"))
    with (
        files.replace_file(path.with_suffix(".csv")) as new,
        open(new, "w", encoding="utf-8", newline="") as file,
    ):
        table = csv.DictWriter(file, _COLUMNS)
        table.writeheader()
        table.writerows(_rows(scores))
    # Written last, because it holds the checksum of the counts.
    scores = {**scores, _COUNTS: _digest(path.with_suffix(".npz"))}
    files.write_text(path, json.dumps(scores, indent=2) + "\n")


def read(path):
    """Reads files written by `write`.

    Args:
        path: path of the `.json` file.

    Returns:
        `Results`.

    Raises:
        UserError: if a file is missing or damaged, or the files are of different evaluations.
    """
    path = pathlib.Path(path)
    try:
        scores = parse_json(path.read_text())
        list(scores["classes"])
        expected = scores.pop(_COUNTS, None)
        matrix = np.array(scores["confusion_matrix"], "int64")
    except FileNotFoundError:
        raise UserError(
            f"There is no {path}. Evaluate with `kseg evaluate`, which writes it"
        ) from None
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        raise UserError(f"{path} holds no scores. Give a file of `kseg evaluate`") from None
    counts = path.with_suffix(".npz")
    image_counts = ImageCounts.load(counts)
    if expected is None:
        sums = [np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)]
        agree = np.array_equal(image_counts.pixels.sum(axis=0), sums)
    else:
        agree = expected == _digest(counts)
    if not agree:
        raise UserError(
            f"{path} and {counts.name} must be of one evaluation, and are not: one was stopped, or "
            "a file was copied alone. Evaluate again with `kseg evaluate`"
        )
    return Results(scores, image_counts, expected is not None)


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _rows(results):
    official = results.get("cityscapes", {})

    def row(kind, name, **scores):
        key = {"class": "classes", "category": "categories"}.get(kind)
        instances = official.get(key, {}).get(name, {}).get("iiou")
        return {"kind": kind, "name": display.spreadsheet_cell(name), "iiou": instances, **scores}

    for name, scores in results["classes"].items():
        yield row("class", name, **scores)
    for key, kind in (("categories", "category"), ("groups", "group")):
        for name, iou in results.get(key, {}).items():
            yield row(kind, name, iou=iou)
    yield row(
        "mean",
        "classes",
        iou=results["mean_iou"],
        accuracy=results["mean_accuracy"],
        boundary_iou=results.get("mean_boundary_iou"),
        iiou=official.get("mean_iiou"),
    )
    if "mean_category_iou" in results:
        yield row(
            "mean",
            "categories",
            iou=results["mean_category_iou"],
            iiou=official.get("mean_category_iiou"),
        )
    yield row("mean", "frequency weighted", iou=results["frequency_weighted_iou"])
    yield row("mean", "all pixels", accuracy=results["pixel_accuracy"])
