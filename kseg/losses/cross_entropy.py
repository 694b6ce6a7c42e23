"""Pixel-wise cross-entropy, and the resizing of logits to labels that all losses share."""

from keras import ops

from kseg.layers import resize
from kseg.losses.reduction import LossAndWeight


def cross_entropy(labels, logits, *, class_weights=None, label_smoothing=0.0):
    """Computes the cross-entropy of each pixel at the size of the labels.

    With class weights w and label smoothing a, the loss of a pixel of class y is
    `(1 - a) w_y (-log p_y) + a / num_classes * sum_c w_c (-log p_c)`, and the loss of a batch is
    its sum over the pixels divided by the sum of their w_y, as in PyTorch.

    Args:
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are
            ignored (255 by convention).
        logits: float tensor `(batch, h, w, num_classes)` of any size, resized by `logits_like`.
        class_weights: `num_classes` floats >= 0, or None: 1 for all.
        label_smoothing: float in [0, 1).

    Returns:
        `(loss, weight)`, float32 `(batch, height, width)` each: the loss in nats, and the class
        weight of the pixel; both 0 where ignored. `global_ratio` reduces them to a scalar. Keras
        cannot do so: compile with `kseg.losses.CrossEntropy`.

    Raises:
        ValueError: if the rank of the labels is not 3, or `label_smoothing` is out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` must be in [0, 1). Received: {label_smoothing=}")
    logits = logits_like(labels, logits)
    labels = ops.cast(labels, "int32")
    num_classes = logits.shape[-1]
    valid = ops.logical_and(labels >= 0, labels < num_classes)
    safe = ops.where(valid, labels, 0)
    loss = ops.sparse_categorical_crossentropy(safe, logits, from_logits=True)
    weight = ops.cast(valid, "float32")
    if class_weights is not None:
        class_weights = ops.convert_to_tensor(class_weights, "float32")
        weight = weight_of_labels(labels, class_weights)
        loss = loss * weight
    if label_smoothing:
        each = -ops.log_softmax(logits, axis=-1)
        each = each if class_weights is None else each * class_weights
        loss = (1 - label_smoothing) * loss + label_smoothing * ops.mean(each, axis=-1)
    return LossAndWeight(ops.where(valid, loss, 0.0), weight)


def weight_of_labels(labels, class_weights):
    """Looks up the class weight of each pixel.

    Args:
        labels: int tensor, any shape; values outside `[0, num_classes)` are ignored.
        class_weights: `num_classes` floats >= 0.

    Returns:
        float32 tensor of the shape of the labels; 0 where ignored.
    """
    class_weights = ops.convert_to_tensor(class_weights, "float32")
    labels = ops.cast(labels, "int32")
    valid = ops.logical_and(labels >= 0, labels < class_weights.shape[0])
    return ops.where(valid, ops.take(class_weights, ops.where(valid, labels, 0)), 0.0)


def logits_like(labels, logits):
    """Resizes logits to the size of labels bilinearly (half-pixel centers).

    Args:
        labels: tensor `(batch, height, width)`.
        logits: float tensor `(batch, h, w, num_classes)`.

    Returns:
        float32 tensor `(batch, height, width, num_classes)`.

    Raises:
        ValueError: if the rank of the labels is not 3, as for one-hot labels or a channel axis.
    """
    if len(labels.shape) != 3:
        raise ValueError(
            "`labels` must be class numbers of shape (batch, height, width). Received: "
            f"{tuple(labels.shape)}. Use labels[..., 0], or argmax(labels, axis=-1) if one-hot"
        )
    size = [labels.shape[i] or ops.shape(labels)[i] for i in (1, 2)]
    if tuple(size) != tuple(logits.shape[1:3]):
        logits = resize(logits, size)
    return ops.cast(logits, "float32")
