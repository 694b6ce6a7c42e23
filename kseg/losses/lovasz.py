"""Lovasz-softmax: a convex surrogate of the mean IoU."""

import math

import numpy as np
from keras import ops

from kseg.backend import replicas
from kseg.backend.loops import scan
from kseg.losses.cross_entropy import logits_like

# Replicas cannot talk in a loop of the graph, so they exchange classes before it: many at once
# would need memory for all pixels of the global batch, few would make a large graph.
_CLASSES_IN_A_MESSAGE = 16


def lovasz_softmax(labels, logits):
    """Mean over the classes that are present of the Lovasz extension of the Jaccard loss.

    The whole global batch counts as one image. The errors of a class, `1 - p` at its own pixels and
    p at others, are weighed by how much the Jaccard loss grows with each when the largest come
    first.

    Source: Berman et al., "The Lovasz-Softmax loss", CVPR 2018, Eq. 8, 9 and 11 and Alg. 1, with
    the classes "present". The weights are taken in closed form, not as differences of nearly equal
    numbers.

    Args:
        labels: int tensor `(batch, height, width)`, static shape; values outside
            `[0, num_classes)` are ignored.
        logits: float tensor `(batch, h, w, num_classes)`, resized as in `cross_entropy`.

    Returns:
        float32 scalar: this replica's share of the loss; 0 if no class is present.

    Raises:
        ValueError: if the labels have no static shape.
    """
    if None in labels.shape:
        raise ValueError(f"`labels` must have a static shape. Received: {tuple(labels.shape)}")
    num_classes, pixels = logits.shape[-1], math.prod(labels.shape)
    probabilities = ops.softmax(logits_like(labels, logits), axis=-1)
    probabilities = ops.reshape(probabilities, (pixels, num_classes))
    labels = ops.reshape(ops.cast(labels, "int32"), (pixels,))
    all_labels = replicas.all_gather(labels)
    inside = ops.cast(_inside(all_labels, num_classes), "int32")
    counts = ops.segment_sum(inside, all_labels * inside, num_segments=num_classes)
    present = ops.cast(counts > 0, "float32")

    at_once = num_classes if replicas.num_replicas() == 1 else _CLASSES_IN_A_MESSAGE
    slopes = []
    for first in range(0, num_classes, at_once):
        part = slice(first, first + at_once)
        everywhere = replicas.all_gather(ops.stop_gradient(probabilities[:, part]))
        classes = np.arange(num_classes, dtype="int32")[part]
        slopes.append(_slopes(ops.transpose(everywhere), all_labels, classes, present, pixels))
    slopes = ops.stop_gradient(ops.concatenate(slopes))
    own = ops.cast(labels[None, :] == np.arange(num_classes, dtype="int32")[:, None], "float32")
    error = _error(own, ops.transpose(probabilities))
    return ops.sum(slopes * error) / ops.maximum(ops.sum(present), 1.0)


def _inside(labels, num_classes):
    return ops.logical_and(labels >= 0, labels < num_classes)


def _error(own, probability):
    return own + (1.0 - 2.0 * own) * probability


def _slopes(probabilities, labels, classes, present, pixels):
    """Derivatives of some classes' losses with respect to their errors, at this replica's pixels.

    One class at a time is sorted, in a loop of the graph; those that are absent are skipped.

    Args:
        probabilities: float32 tensor `(len(classes), global_pixels)`.
        labels: int32 tensor `(global_pixels,)`.
        classes: int32 array, the classes of the rows.
        present: float32 tensor `(num_classes,)`, 1 where the global batch has the class.
        pixels: int, of each replica.

    Returns:
        float32 tensor `(len(classes), pixels)`, 0 where ignored and for absent classes.
    """
    valid = _inside(labels, present.shape[0])
    mine = replicas.replica_id() * pixels

    def slopes_of(row):
        own = ops.cast(labels == ops.take(classes, row), "float32")
        p = ops.reshape(ops.slice(probabilities, (row, 0), (1, labels.shape[0])), (-1,))
        # What is ignored comes after all errors.
        slopes = _jaccard_slopes(ops.where(valid, _error(own, p), -1.0), own)
        return ops.slice(ops.where(valid, slopes, 0.0), (mine,), (pixels,))

    def step(carry, row):
        here = ops.take(present, ops.take(classes, row)) > 0
        absent = ops.zeros((pixels,), "float32")
        return carry, (ops.cond(here, lambda: slopes_of(row), lambda: absent),)

    return scan(step, (), len(classes), [(pixels,)])[1][0].stack()


def _jaccard_slopes(error, own):
    """The gradient of the Lovasz extension with respect to the errors of a class.

    With the errors in descending order, I of the class's pixels after the k-th and U pixels in the
    union of class and first k: the loss is `1 - I / U`, and grows by `1 / U` at a pixel of the
    class, by `I / (U (U - 1))` at another.

    Args:
        error: float32 tensor `(global_pixels,)`; -1 where ignored.
        own: float32 tensor `(global_pixels,)`, 1 at pixels of the class.

    Returns:
        float32 tensor `(global_pixels,)`, of no meaning where ignored.
    """
    order = ops.argsort(-error)  # Stable, so that equal errors do not make replicas differ.
    own = ops.take(own, order)
    # Integers: counting in float32 ends at 2^24.
    found = ops.cumsum(ops.cast(own, "int32"))
    size, rank = found[-1], ops.arange(1, error.shape[0] + 1, dtype="int32")
    union = ops.cast(size + (rank - found), "float32")
    others = ops.cast(size - found, "float32") / (union * ops.maximum(union - 1.0, 1.0))
    return ops.scatter(order[:, None], ops.where(own > 0, 1.0 / union, others), error.shape)
