"""Soft Dice loss over the global batch."""

from keras import ops

from kseg.backend import replicas
from kseg.losses.cross_entropy import logits_like
from kseg.losses.reduction import mean_of_present


def dice_loss(labels, logits, *, smooth=0.0, squared=False, class_weights=None):
    """Computes one minus the soft Dice coefficient, averaged over the classes that are present.

    The global batch counts as one image. With softmax probabilities p, one-hot labels g and sums
    over all valid pixels x, the coefficient of class c is
    `D_c = (2 sum_x p_xc g_xc + s) / (sum_x p_xc + sum_x g_xc + s)`, and the loss is
    `sum_c w_c (1 - D_c) / sum_c w_c` over the classes with at least one pixel. A class without a
    pixel has the coefficient s / (mass + s) whatever is predicted, and says little: it is left out.

    Source: Milletari et al., "V-Net", 3DV 2016, Sec. 3, which squares p in the denominator and has
    a single foreground; Drozdzal et al., 2016, with p itself, as in nnU-Net and most code.

    Args:
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored.
        logits: float tensor `(batch, h, w, num_classes)`, resized as in `cross_entropy`.
        smooth: float >= 0, s, in pixels: above 0 the few pixels of a small class weigh less.
        squared: bool, square p in the denominator.
        class_weights: `num_classes` floats >= 0, or None: 1 for all.

    Returns:
        float32 scalar in [0, 1]: this replica's share of the loss; 0 if no class is present.

    Raises:
        ValueError: if `smooth` is negative, or the rank of the labels is not 3.
    """
    if smooth < 0:
        raise ValueError(f"`smooth` must not be negative. Received: {smooth=}")
    logits = logits_like(labels, logits)
    labels, num_classes = ops.cast(labels, "int32"), logits.shape[-1]
    valid = ops.cast(ops.logical_and(labels >= 0, labels < num_classes), "float32")[..., None]
    probability = ops.softmax(logits, axis=-1) * valid
    own = labels[..., None] == ops.arange(num_classes, dtype="int32")
    mass = probability * probability if squared else probability
    sums = [ops.where(own, probability, 0.0), mass, ops.cast(own, "float32")]
    sums = ops.stack([ops.sum(x, axis=(0, 1, 2)) for x in sums])
    both, mass, pixels = ops.unstack(replicas.all_reduce_sum(sums), num=3)
    dice = (2.0 * both + smooth) / ops.where(pixels > 0, mass + pixels + smooth, 1.0)
    return mean_of_present(1.0 - dice, pixels > 0, class_weights) / replicas.num_replicas()
