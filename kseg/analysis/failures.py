"""Failures of a network: its worst images, and the classes that it confuses."""

import dataclasses

import numpy as np

from kseg.analysis.selection import LargestValues
from kseg.evaluation.metrics import Scores, confusion_matrix


@dataclasses.dataclass(frozen=True)
class Example:
    """An image with its ground truth and predictions.

    Attributes:
        id: str.
        image: uint8 array `(height, width, 3)`.
        truth: int array `(height, width)`, 255 = ignored.
        predictions: list of int arrays `(height, width)`, one for each network.
        mean_iou: list of float, the mean IoU of this image, one for each network.
    """

    id: str
    image: np.ndarray
    truth: np.ndarray
    predictions: list
    mean_iou: list


@dataclasses.dataclass(frozen=True)
class ConfusedPair:
    """A class and another one that it is confused with.

    Attributes:
        truth: int, the class.
        prediction: int, the class predicted instead.
        pixels: int, number of such pixels.
        share: float, their fraction of the pixels of the class.
    """

    truth: int
    prediction: int
    pixels: int
    share: float


class FailureCollector:
    """Scores a stream of images one by one and keeps the worst.

    An image's mean IoU is over the classes in its ground truth or its prediction. Images without a
    labeled pixel are skipped.

    Args:
        num_classes: int.
        count: int, images to keep.
    """

    def __init__(self, num_classes, *, count):
        self._num_classes = num_classes
        self._worst = LargestValues(count)
        self.matrix = np.zeros((num_classes, num_classes), "int64")
        self.mean_iou = {}

    def add(self, seen):
        """Adds the images of an `ObservedBatch`."""
        for i, name in enumerate(seen.ids):
            truth, prediction = seen.labels[i], seen.predictions[i]
            matrix = _count(truth, prediction, self._num_classes)
            self.matrix += matrix
            if matrix.any():
                value = Scores(matrix).mean_iou
                self.mean_iou[name] = value
                self._worst.add(-value, take_example([seen], i, [value]))

    def worst(self):
        """Returns the images of the lowest mean IoU, the worst first: list of `Example`."""
        return self._worst.items()


class ComparisonCollector:
    """Keeps the images in which two networks differ most.

    One half are the images with the largest gain in mean IoU of the last network over the first,
    the other half those with the largest loss.

    Args:
        num_classes: int.
        count: int, images to keep.
    """

    def __init__(self, num_classes, *, count):
        self._num_classes = num_classes
        self._gained, self._lost = LargestValues((count + 1) // 2), LargestValues(count // 2)
        self.mean_iou = {}

    def add(self, views):
        """Adds images: a list with one `ObservedBatch` of the same images for each network."""
        first = views[0]
        for i, name in enumerate(first.ids):
            truth = first.labels[i]
            predictions = [view.predictions[i] for view in views]
            matrices = [_count(truth, p, self._num_classes) for p in predictions]
            if not matrices[0].any():
                continue
            values = [Scores(matrix).mean_iou for matrix in matrices]
            self.mean_iou[name] = values
            example = take_example(views, i, values)
            gain = values[-1] - values[0]
            if gain >= 0:
                self._gained.add(gain, example)
            else:
                self._lost.add(-gain, example)

    def examples(self):
        """Returns the images, from the largest gain to the largest loss: list of `Example`."""
        return [*self._gained.items(), *reversed(self._lost.items())]


def take_example(views, i, mean_iou):
    """Copies an image from its batch, so that the batch need not be kept in memory.

    Args:
        views: list with one `ObservedBatch` of the same images for each network.
        i: int, index of the image in the batch.
        mean_iou: list of float, one for each network.

    Returns:
        `Example`.
    """
    first = views[0]
    return Example(
        id=first.ids[i],
        image=first.images[i].copy(),
        truth=first.labels[i].copy(),
        predictions=[view.predictions[i].copy() for view in views],
        mean_iou=mean_iou,
    )


def image_mean_iou(truth, prediction, num_classes):
    """Computes the mean IoU of one image, over the classes in its ground truth or its prediction.

    Args:
        truth: int array, any shape; values outside `[0, num_classes)` are ignored.
        prediction: int array of the same shape.
        num_classes: int.

    Returns:
        float; NaN without a labeled pixel.
    """
    return Scores(_count(truth, prediction, num_classes)).mean_iou


def confused_pairs(matrix, count):
    """Finds the most frequent confusions, relative to the pixels of the true class.

    Args:
        matrix: int array `(num_classes, num_classes)`, rows are the ground truth.
        count: int, the largest number of pairs.

    Returns:
        list of `ConfusedPair`, the largest share first; pairs without a pixel are omitted.
    """
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    pairs = [np.unravel_index(index, shares.shape) for index in order]
    return [
        ConfusedPair(int(i), int(j), int(matrix[i, j]), float(shares[i, j]))
        for i, j in pairs
        if shares[i, j] > 0
    ]


def _count(truth, prediction, num_classes):
    return confusion_matrix(truth, prediction, num_classes).numpy()
