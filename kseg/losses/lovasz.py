"""Lovasz-softmax, a surrogate of the mean IoU, over the global batch."""

import math

import numpy as np
from keras import ops

from kseg.backend import replicas
from kseg.backend.loops import scan
from kseg.losses.cross_entropy import logits_like
from kseg.losses.reduction import mean_of_present

# Replicas cannot communicate within a graph loop, so they exchange the probabilities before it, for
# this many classes at once: more take more memory (all pixels of the global batch), fewer make the
# graph larger.
_CLASSES_PER_GATHER = 16


def lovasz_softmax(labels, logits, *, class_weights=None):
    """Averages the Lovasz extension of the Jaccard loss over the classes that are present.

    The global batch counts as one image. The errors of a class, `1 - p` at its own pixels and p at
    others, are sorted in descending order and weighted by the increase of the Jaccard loss with
    each of them.

    Source: Berman et al., "The Lovasz-Softmax loss", CVPR 2018, Eq. 8, 9 and 11 and Alg. 1, with
    the classes "present". The weights are computed in closed form, not as differences of nearly
    equal numbers.

    Args:
        labels: int tensor `(batch, height, width)`, of a static shape if there are several
            replicas; values outside `[0, num_classes)` are ignored.
        logits: float tensor `(batch, h, w, num_classes)`, resized as in `cross_entropy`.
        class_weights: `num_classes` floats >= 0 for a weighted average over the present classes,
            or None: 1 for all.

    Returns:
        float32 scalar: this replica's share of the loss; 0 if no class is present.

    Raises:
        ValueError: if there are several replicas and the shape of the labels is not static.
    """
    if None in labels.shape and replicas.num_replicas() > 1:
        raise ValueError(
            "Lovasz-softmax on several replicas needs labels of a static shape. Received: "
            f"{tuple(labels.shape)}. Use dataset.batch(size, drop_remainder=True)"
        )
    num_classes, pixels = logits.shape[-1], math.prod(ops.shape(labels))
    probabilities = ops.softmax(logits_like(labels, logits), axis=-1)
    probabilities = ops.reshape(probabilities, (-1, num_classes))
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    all_labels = replicas.all_gather(labels)
    inside = ops.cast(_inside(all_labels, num_classes), "int32")
    counts = ops.segment_sum(inside, all_labels * inside, num_segments=num_classes)
    present = ops.cast(counts > 0, "float32")

    at_once = num_classes if replicas.num_replicas() == 1 else _CLASSES_PER_GATHER
    slopes = []
    for first in range(0, num_classes, at_once):
        part = slice(first, first + at_once)
        gathered = replicas.all_gather(ops.stop_gradient(probabilities[:, part]))
        classes = np.arange(num_classes, dtype="int32")[part]
        slopes.append(_slopes(ops.transpose(gathered), all_labels, classes, present, pixels))
    slopes = ops.stop_gradient(ops.concatenate(slopes))
    own = ops.cast(labels[None, :] == np.arange(num_classes, dtype="int32")[:, None], "float32")
    error = _error(own, ops.transpose(probabilities))
    return mean_of_present(ops.sum(slopes * error, axis=1), counts > 0, class_weights)


def _inside(labels, num_classes):
    return ops.logical_and(labels >= 0, labels < num_classes)


def _error(own, probability):
    return own + (1.0 - 2.0 * own) * probability


def _slopes(probabilities, labels, classes, present, pixels):
    """Computes the derivatives of class losses with respect to errors at this replica's pixels.

    A graph loop sorts one class at a time and skips absent ones.

    Args:
        probabilities: float32 tensor `(len(classes), global_pixels)`.
        labels: int32 tensor `(global_pixels,)`.
        classes: int32 array, the classes of the rows.
        present: float32 tensor `(num_classes,)`, 1 where the global batch has the class.
        pixels: int or int32 scalar, number of pixels of each replica.

    Returns:
        float32 tensor `(len(classes), pixels)`, 0 where ignored and for absent classes.
    """
    valid = _inside(labels, present.shape[0])
    first_pixel = replicas.replica_id() * pixels

    def slopes_of(row):
        own = ops.cast(labels == ops.take(classes, row), "float32")
        p = ops.reshape(ops.slice(probabilities, (row, 0), (1, ops.shape(labels)[0])), (-1,))
        # Ignored pixels are sorted after all errors.
        slopes = _jaccard_slopes(ops.where(valid, _error(own, p), -1.0), own)
        return ops.slice(ops.where(valid, slopes, 0.0), (first_pixel,), (pixels,))

    def step(carry, row):
        is_present = ops.take(present, ops.take(classes, row)) > 0
        zeros = ops.zeros((pixels,), "float32")
        return carry, (ops.cond(is_present, lambda: slopes_of(row), lambda: zeros),)

    static = pixels if isinstance(pixels, int) else None
    return scan(step, (), len(classes), [(static,)])[1][0].stack()


def _jaccard_slopes(error, own):
    """Computes the gradient of the Lovasz extension with respect to the errors of a class.

    With the errors in descending order, let I be the number of the class's pixels after the k-th,
    and U the size of the union of the class and the first k pixels. The loss is `1 - I / U`; the
    k-th pixel increases it by `1 / U` if it belongs to the class, else by `I / (U (U - 1))`.

    Args:
        error: float32 tensor `(global_pixels,)`; -1 where ignored.
        own: float32 tensor `(global_pixels,)`, 1 at pixels of the class.

    Returns:
        float32 tensor `(global_pixels,)`, meaningless where ignored.
    """
    order = ops.argsort(-error)  # Stable: with equal errors all replicas agree on the order.
    own = ops.take(own, order)
    # Integers, since float32 counts exactly only up to 2^24.
    own_so_far = ops.cumsum(ops.cast(own, "int32"))
    size, rank = own_so_far[-1], ops.arange(1, ops.shape(error)[0] + 1, dtype="int32")
    union = ops.cast(size + (rank - own_so_far), "float32")
    others = ops.cast(size - own_so_far, "float32") / (union * ops.maximum(union - 1.0, 1.0))
    return ops.scatter(order[:, None], ops.where(own > 0, 1.0 / union, others), ops.shape(error))
