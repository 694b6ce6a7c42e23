"""Per-image pixel counts, from which all scores can be computed."""

import dataclasses
import os

import numpy as np

from kseg import files
from kseg.errors import UserError
from kseg.weights.archive import reporting_damage


@dataclasses.dataclass(frozen=True)
class ImageCounts:
    """Pixels of each class in each image of a split.

    Attributes:
        ids: list of str, one for each image.
        pixels: int64 `(images, 3, num_classes)`: pixels of a class that are predicted right, that
            are of it in the truth, and that are of it in the prediction. Ignored ones are left out.
    """

    ids: list
    pixels: np.ndarray

    def save(self, path):
        """Writes an `.npz` file, a few bytes for each class that occurs in an image."""
        with files.replace_file(path) as new, open(new, "wb") as file:
            np.savez_compressed(file, ids=np.array(self.ids, str), pixels=self.pixels)

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
            UserError: if there is no such file, or it is damaged.
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
    """Intersection over union, on float64 arrays.

    Args:
        hits: float64 array, pixels of a class that are predicted right.
        truth, predicted: of the same shape, pixels of the class in the truth, in the prediction.

    Returns:
        float64 array of the same shape; NaN where a class does not occur.
    """
    with np.errstate(invalid="ignore"):  # 0 / 0.
        return hits / (truth + predicted - hits)


def iou_of(pixels):
    """Intersection over union from pixel counts.

    Args:
        pixels: array `(..., 3, num_classes)`, see `ImageCounts`; sums over images or not.

    Returns:
        float64 `(..., num_classes)`; NaN where a class does not occur.
    """
    return intersection_over_union(*np.moveaxis(np.asarray(pixels, "float64"), -2, 0))


def mean_over_classes(iou):
    """Mean over the last axis without NaN; NaN if all are."""
    known = ~np.isnan(iou)
    count = known.sum(axis=-1)
    return np.where(count > 0, np.where(known, iou, 0).sum(axis=-1) / np.maximum(count, 1), np.nan)
