"""Where a network fails: the worst images, the classes that it takes for each other."""

import dataclasses

import numpy as np

from kseg.analysis.selection import Top
from kseg.evaluation.metrics import Scores, confusion_matrix


@dataclasses.dataclass(frozen=True)
class Example:
    """An image with its truth and predictions.

    Attributes:
        id: str.
        image: uint8 array `(height, width, 3)`.
        truth: int array `(height, width)`, 255 = ignored.
        predictions: list of int arrays `(height, width)`, one for each network.
        mean_iou: list of float, of this image alone, one for each network.
    """

    id: str
    image: np.ndarray
    truth: np.ndarray
    predictions: list
    mean_iou: list


@dataclasses.dataclass(frozen=True)
class ConfusedPair:
    """A class that is taken for another.

    Attributes:
        truth: int, the class.
        prediction: int, what it is taken for.
        pixels: int, how many.
        share: float, of the pixels of the class.
    """

    truth: int
    prediction: int
    pixels: int
    share: float


class FailureCollector:
    """Scores a stream of images one by one and keeps the worst.

    An image's mean IoU is over the classes in its truth or its prediction. Images without a
    labelled pixel are left out.

    Args:
        num_classes: int.
        count: int, images to keep.
    """

    def __init__(self, num_classes, *, count):
        self._num_classes = num_classes
        self._worst = Top(count)
        self.matrix = np.zeros((num_classes, num_classes), "int64")
        self.mean_iou = {}

    def add(self, seen):
        """Adds the images of an `Observed`."""
        for i, name in enumerate(seen.ids):
            truth, prediction = seen.labels[i], seen.predictions[i]
            matrix = _count(truth, prediction, self._num_classes)
            self.matrix += matrix
            if matrix.any():
                value = Scores(matrix).mean_iou
                self.mean_iou[name] = value
                self._worst.add(-value, take_example([seen], i, [value]))

    def worst(self):
        """The images of the least mean IoU, the worst first: list of `Example`."""
        return self._worst.items()


class ComparisonCollector:
    """Keeps the images in which two networks differ most.

    Of the kept ones, one half are those where the last network has gained most mean IoU over the
    first, the other half those where it has lost most.

    Args:
        num_classes: int.
        count: int, images to keep.
    """

    def __init__(self, num_classes, *, count):
        self._num_classes = num_classes
        self._gained, self._lost = Top((count + 1) // 2), Top(count // 2)
        self.mean_iou = {}

    def add(self, views):
        """Adds images: a list of `Observed`, one for each network, of the same images."""
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
        """The images, the greatest gain first, the greatest loss last: list of `Example`."""
        return [*self._gained.items(), *reversed(self._lost.items())]


def take_example(views, i, mean_iou):
    """Copies an image out of its batch, so that the batch need not be kept.

    Args:
        views: list of `Observed`, one for each network, of the same images.
        i: int, number of the image in the batch.
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
    """Mean IoU of one image, over the classes in its truth or its prediction.

    Args:
        truth: int array, any shape; values outside `[0, num_classes)` are left out.
        prediction: int array of the same shape.
        num_classes: int.

    Returns:
        float; NaN without a labelled pixel.
    """
    return Scores(_count(truth, prediction, num_classes)).mean_iou


def confused_pairs(matrix, count):
    """Finds the classes that are taken for others most often, by their share of the class.

    Args:
        matrix: int array `(num_classes, num_classes)`, rows are the truth.
        count: int, at most so many.

    Returns:
        list of `ConfusedPair`, the greatest share first; pairs without a pixel are left out.
    """
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    pairs = [np.unravel_index(place, shares.shape) for place in order]
    return [
        ConfusedPair(int(i), int(j), int(matrix[i, j]), float(shares[i, j]))
        for i, j in pairs
        if shares[i, j] > 0
    ]


def _count(truth, prediction, num_classes):
    return confusion_matrix(truth, prediction, num_classes).numpy()
