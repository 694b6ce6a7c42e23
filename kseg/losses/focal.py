"""Focal loss: cross-entropy with less weight on pixels that are classified well."""

from keras import ops

from kseg.losses.cross_entropy import cross_entropy, weight_of_labels
from kseg.losses.reduction import LossAndWeight


def focal_loss(labels, logits, *, gamma=2.0, class_weights=None):
    """Computes the focal loss of each pixel at the size of the labels.

    With p the softmax probability of the true class y, the loss of a pixel is
    `w_y (1 - p)^gamma (-log p)`, and that of a batch is its sum over the pixels divided by the sum
    of their w_y; with gamma 0 it is `cross_entropy`.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, Eq. 5, whose alpha_t are
    the class weights here. There p is a sigmoid's, and the sum is divided by the number of objects.

    Args:
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored.
        logits: float tensor `(batch, h, w, num_classes)`, resized as in `cross_entropy`.
        gamma: float >= 0: the larger, the less well-classified pixels weigh.
        class_weights: `num_classes` floats >= 0, or None: 1 for all.

    Returns:
        `(loss, weight)`, float32 `(batch, height, width)` each, as `cross_entropy` returns them;
        `global_ratio` reduces them to a scalar.

    Raises:
        ValueError: if `gamma` is negative, or the rank of the labels is not 3.
    """
    if gamma < 0:
        raise ValueError(f"`gamma` must not be negative. Received: {gamma=}")
    loss, weight = cross_entropy(labels, logits)
    if gamma:
        # At p = 1 a power below 1 has no finite derivative.
        unsure = ops.where(loss == 0, 1.0, -ops.expm1(-loss))
        loss = loss * ops.power(unsure, gamma)
    if class_weights is not None:
        weight = weight_of_labels(labels, class_weights)
        loss = loss * weight
    return LossAndWeight(loss, weight)
