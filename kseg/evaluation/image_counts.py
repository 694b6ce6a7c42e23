"""Per-image pixel counts, from which all scores can be computed."""

import dataclasses
import os

import numpy as np

from kseg import files
from kseg.errors import UserError
from kseg.weights.archive import reporting_damage


@dataclasses.dataclass(frozen=True)
class ImageCounts:
    """Pixel counts of each class in each image of a split.

    Attributes:
        ids: list of str, one for each image.
        pixels: int64 `(images, 3, num_classes)`: for each class, the number of correctly predicted
            pixels, of its pixels in the truth, and of its pixels in the prediction. Ignored pixels
            are not counted.
    """

    ids: list
    pixels: np.ndarray

    def save(self, path):
        """Writes an `.npz` file of a few bytes for each class that occurs in an image."""
        with files.replace_file(path) as new, open(new, "wb") as file:
            np.savez_compressed(file, ids=np.array(self.ids, str), pixels=self.pixels)

    @classmethod
    def load(cls, path):
        """Reads a file written by `save`.

        Raises:
            UserError: if the file is missing or damaged.
        """
        if not os.path.exists(path):
            raise UserError(f"There is no {path}. Evaluate with `kseg evaluate`, which writes it")
        advice = "Write it again with `kseg evaluate`"
        with (
            reporting_damage(path, "file of evaluation counts", advice),
            np.load(path, allow_pickle=False) as file,
        ):
            return cls(file["ids"].tolist(), file["pixels"])


def intersection_over_union(hits, truth, predicted):
    """Computes intersection over union from float64 counts.

    Args:
        hits: float64 array, number of correctly predicted pixels of a class.
        truth, predicted: float64 arrays of the same shape, number of pixels of the class in the
            truth and in the prediction.

    Returns:
        float64 array of the same shape; NaN where a class does not occur.
    """
    with np.errstate(invalid="ignore"):  # 0 / 0.
        return hits / (truth + predicted - hits)


def iou_of(pixels):
    """Computes intersection over union from pixel counts.

    Args:
        pixels: array `(..., 3, num_classes)`, see `ImageCounts`, optionally summed over images.

    Returns:
        float64 `(..., num_classes)`; NaN where a class does not occur.
    """
    return intersection_over_union(*np.moveaxis(np.asarray(pixels, "float64"), -2, 0))


def mean_over_classes(iou):
    """Computes the mean over the last axis, ignoring NaN; NaN if all values are NaN."""
    known = ~np.isnan(iou)
    count = known.sum(axis=-1)
    return np.where(count > 0, np.where(known, iou, 0).sum(axis=-1) / np.maximum(count, 1), np.nan)
