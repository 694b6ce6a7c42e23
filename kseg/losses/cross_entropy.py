"""Pixel-wise cross-entropy."""

from keras import ops

from kseg.layers import resize


def cross_entropy(labels, logits):
    """Cross-entropy of each pixel at the labels' size.

    Logits of another size are resized bilinearly (half-pixel centres) first.

    Args:
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are
            ignored (255 by convention).
        logits: float tensor `(batch, h, w, num_classes)`.

    Returns:
        `(loss, valid)`, float32 `(batch, height, width)` each: nats, 0 where ignored, and 1 where
        the pixel counts. `global_mean` makes one number of them.
    """
    size = [labels.shape[i] or ops.shape(labels)[i] for i in (1, 2)]
    if tuple(size) != tuple(logits.shape[1:3]):
        logits = resize(logits, size)
    labels = ops.cast(labels, "int32")
    valid = ops.logical_and(labels >= 0, labels < logits.shape[-1])
    loss = ops.sparse_categorical_crossentropy(
        ops.where(valid, labels, 0), ops.cast(logits, "float32"), from_logits=True
    )
    return ops.where(valid, loss, 0.0), ops.cast(valid, "float32")
