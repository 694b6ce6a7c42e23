"""Cross-entropy over the hard pixels of the global batch (online hard example mining)."""

from keras import ops

from kseg.backend import replicas
from kseg.losses.cross_entropy import cross_entropy, weight_of_labels
from kseg.losses.reduction import LossAndWeight

# Floats in [0, 2) sort like their bit patterns as integers, whose upper two bits are 0.
_BITS = 30
_BITS_PER_ROUND = 10


def ohem_cross_entropy(labels, logits, *, threshold=0.7, min_kept=100_000, class_weights=None):
    """Computes the cross-entropy of the pixels whose true class has a low probability.

    A pixel is kept if the probability of its class is at most the larger of `threshold` and the
    `min_kept`-th smallest such probability in the global batch. At least `min_kept` pixels are
    therefore kept, or all valid ones if there are fewer. The effective threshold is determined by
    counting, not by sorting, and is the same on every replica.

    Source: Shrivastava et al., CVPR 2016, in the form common in segmentation code. RegionContrast's
    public code does not apply its mask if `min_kept` is 0, and yields NaN if no pixel is valid.

    Args:
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored.
        logits: float tensor `(batch, h, w, num_classes)`, resized as in `cross_entropy`.
        threshold: float in [0, 1], a probability.
        min_kept: int >= 0, the number of pixels of the global batch kept at least.
        class_weights: `num_classes` floats >= 0, or None: 1 for all. They weigh the pixels that are
            kept, as in `cross_entropy`, and have no say in which are.

    Returns:
        `(loss, weight)`, float32 `(batch, height, width)` each: the loss in nats, multiplied by
        the weight, and the class weight of the pixel; both 0 where it is not kept. `global_ratio`
        reduces them to a scalar. Keras cannot do so: compile with `kseg.losses.OHEM`.

    Raises:
        ValueError: if `threshold` or `min_kept` is out of range, or the labels have another rank.
    """
    if not 0 <= threshold <= 1 or min_kept < 0 or min_kept != int(min_kept):
        raise ValueError(
            "`threshold` must be a probability, and `min_kept` a number of pixels. Received: "
            f"{threshold=}, {min_kept=}"
        )
    loss, valid = cross_entropy(labels, logits)
    valid = valid > 0
    probability = ops.stop_gradient(ops.exp(-loss))
    kept = probability <= threshold
    if min_kept:
        # A last axis of static size: Keras refuses to view one of unknown size.
        rank = ops.view(probability[..., None], "int32")[..., 0]
        kept = ops.logical_or(kept, rank <= _smallest(rank, valid, int(min_kept)))
    weight = ops.cast(ops.logical_and(kept, valid), "float32")
    if class_weights is not None:
        weight = weight * weight_of_labels(labels, class_weights)
    return LossAndWeight(loss * weight, weight)  # `where` would hide a NaN.


def _smallest(values, valid, count):
    """Finds the `count`-th smallest valid value over all replicas by a radix selection.

    Args:
        values: int32 tensor in `[0, 2^_BITS)`.
        valid: bool tensor of the same shape.
        count: int > 0.

    Returns:
        int32 scalar; the largest possible value if fewer are valid.
    """
    values, candidates = (ops.reshape(x, (-1,)) for x in (values, valid))
    bins = 2**_BITS_PER_ROUND
    prefix, remaining = 0, count
    for shift in range(_BITS - _BITS_PER_ROUND, -1, -_BITS_PER_ROUND):
        digits = ops.bitwise_and(ops.right_shift(values, shift), bins - 1)
        # XLA does not compile TensorFlow's bincount.
        histogram = ops.segment_sum(ops.cast(candidates, "int32"), digits, num_segments=bins)
        cumulative = ops.cumsum(replicas.all_reduce_sum(histogram))
        digit = ops.minimum(ops.sum(ops.cast(cumulative < remaining, "int32")), bins - 1)
        smaller = ops.take(cumulative, ops.maximum(digit - 1, 0))
        remaining = remaining - ops.where(digit > 0, smaller, 0)
        candidates = ops.logical_and(candidates, digits == digit)
        prefix = prefix + digit * 2**shift
    return prefix
