"""Cross-entropy over the hard pixels of a batch."""

from keras import ops

from kseg.backend import replicas
from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.reduction import LossAndWeight

# Floats from 0 up to 2 are in the order of their bits, the upper two of which are 0.
_BITS = 30
_BITS_A_ROUND = 10


def ohem_cross_entropy(labels, logits, *, threshold=0.7, min_kept=100_000):
    """Cross-entropy of the pixels whose class has a low probability (online hard examples).

    A pixel is kept if the probability of its class is at most the larger of `threshold` and the
    `min_kept`-th smallest such probability in the global batch: at least `min_kept` pixels are, or
    all valid ones if there are fewer. The threshold is found by counting, not by sorting, and is
    the same on every replica.

    Source: Shrivastava et al., CVPR 2016, in the form that segmentation code uses. RegionContrast's
    public code never applies its mask with `min_kept` 0, and is NaN where nothing is valid.

    Args:
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored.
        logits: float tensor `(batch, h, w, num_classes)`, resized as in `cross_entropy`.
        threshold: float in [0, 1], a probability.
        min_kept: int >= 0, pixels of the global batch.

    Returns:
        `(loss, kept)`, float32 `(batch, height, width)` each: nats, and 1 where the pixel is kept,
        else 0. `global_mean` makes one number of them; Keras cannot: compile with
        `kseg.losses.OHEMCrossEntropy`.
    """
    loss, valid = cross_entropy(labels, logits)
    valid = valid > 0
    probability = ops.stop_gradient(ops.exp(-loss))
    kept = probability <= threshold
    if min_kept:
        rank = ops.view(probability, "int32")
        kept = ops.logical_or(kept, rank <= _smallest(rank, valid, min_kept))
    return LossAndWeight(loss, ops.cast(ops.logical_and(kept, valid), "float32"))


def _smallest(values, valid, count):
    """Finds the `count`-th smallest valid value over all replicas, digit by digit.

    Args:
        values: int32 tensor in `[0, 2^_BITS)`.
        valid: bool tensor of the same shape.
        count: int > 0.

    Returns:
        int32 scalar; the largest possible value if fewer are valid.
    """
    values, in_play = (ops.reshape(x, (-1,)) for x in (values, valid))
    bins = 2**_BITS_A_ROUND
    prefix, missing = 0, count
    for shift in range(_BITS - _BITS_A_ROUND, -1, -_BITS_A_ROUND):
        digits = ops.bitwise_and(ops.right_shift(values, shift), bins - 1)
        # Not bincount: XLA does not compile that of TensorFlow.
        histogram = ops.segment_sum(ops.cast(in_play, "int32"), digits, num_segments=bins)
        below = ops.cumsum(replicas.all_reduce_sum(histogram))
        digit = ops.minimum(ops.sum(ops.cast(below < missing, "int32")), bins - 1)
        missing = missing - ops.where(digit > 0, ops.take(below, ops.maximum(digit - 1, 0)), 0)
        in_play = ops.logical_and(in_play, digits == digit)
        prefix = prefix + digit * 2**shift
    return prefix
