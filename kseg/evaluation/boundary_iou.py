"""Boundary IoU, the agreement between predicted and true outlines."""

import cv2
import numpy as np

from kseg.classes import check_num_classes
from kseg.evaluation.image_counts import iou_of


class BoundaryIou:
    """Accumulates Boundary IoU counts over batches of images.

    For each class only pixels within `d` of its outline count, separately in truth and prediction:
    `|(G_d n G) n (P_d n P)| / |(G_d n G) u (P_d n P)|`, where `d` is a fraction of the image
    diagonal, but at least one pixel. Distances are chessboard distances (3 x 3 erosions), and the
    image border is an outline, as in the authors' code. As for the IoU of a class, intersections
    and unions are first summed over all images.

    Ignored pixels belong to no class in truth and prediction, so their border is an outline in
    both. The prediction is not penalized for an outline there that it could not know.

    Source: Cheng et al., Boundary IoU, CVPR 2021, Sec. 4, with the boundary-iou-api.

    Args:
        num_classes: int, at most 255.
        dilation_ratio: float in (0, 1), `d` as a fraction of the diagonal. The authors use 0.02 for
            COCO, and 0.005 for Cityscapes, whose images are larger and labeled more finely.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, num_classes, dilation_ratio=0.02):
        check_num_classes(num_classes)
        if not 0 < dilation_ratio < 1:
            raise ValueError(f"`dilation_ratio` must be in (0, 1). Received: {dilation_ratio=}")
        self.dilation_ratio = dilation_ratio
        self._num_classes = num_classes
        self._pixels = np.zeros((3, num_classes), "int64")

    def __call__(self, ids, labels, predictions):
        """Counts a batch.

        Args:
            ids: names of the images, unused.
            labels: int array `(batch, height, width)`; values outside the classes are ignored.
            predictions: int array of the same shape.
        """
        for truth, predicted in zip(labels, predictions, strict=True):
            known = (truth >= 0) & (truth < self._num_classes)
            truth, predicted = (np.where(known, x, 255).astype("uint8") for x in (truth, predicted))
            distance = max(round(self.dilation_ratio * float(np.hypot(*truth.shape))), 1)
            truth = np.where(near_outline(truth, distance), truth, 255)
            predicted = np.where(near_outline(predicted, distance), predicted, 255)
            for row, pixels in enumerate((truth[truth == predicted], truth, predicted)):
                self._pixels[row] += np.bincount(pixels.ravel(), minlength=256)[: self._num_classes]

    @property
    def iou(self):
        """Boundary IoU of each class so far, float64 `(num_classes,)`; NaN for absent classes."""
        return iou_of(self._pixels)


def near_outline(labels, distance):
    """Finds the pixels within a given distance of the outline of their own region.

    Args:
        labels: uint8 array `(height, width)`.
        distance: int, 1 or more.

    Returns:
        bool array `(height, width)`, True where the surrounding square of side `2 * distance + 1`
        contains another label or extends beyond the image. One pass serves all classes, because a
        square has a single class if and only if its minimum and maximum label are equal.
    """
    square = np.ones((3, 3), "uint8")
    edge = {"iterations": distance, "borderType": cv2.BORDER_CONSTANT}
    # Padding is below the minimum and above the maximum label, so it never equals a label.
    least = cv2.erode(labels, square, borderValue=0, **edge)
    greatest = cv2.dilate(labels, square, borderValue=255, **edge)
    return least != greatest
