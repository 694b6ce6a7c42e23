"""Region centers: one embedding for each class present in an image."""

from keras import ops

from kseg.layers import resize, resize_labels

MODES = ("weighted", "hard", "average")


def region_centers(features, logits, labels, *, mode="weighted"):
    """Averages the features of each class within each image.

    * `"average"` (Eq. 2): over the pixels predicted as the class.
    * `"hard"` ("EP + HP" of Table 2): over the pixels labeled as the class.
    * `"weighted"` (Eq. 3): over the pixels labeled as the class, with weight 1 minus the
      confidence if the prediction is correct, and weight 1 if it is wrong. The division by the
      number of pixels is omitted, since the normalization cancels it.

    Ignored pixels do not count in any mode. Centers are scaled to unit L2 norm.

    Source: Hu et al., "Region-aware Contrastive Learning for Semantic Segmentation", ICCV 2021,
    Sec. 3.2.

    Args:
        features: float tensor `(batch, h, w, dim)`, static height and width.
        logits: float tensor `(batch, logit_height, logit_width, num_classes)`, resized bilinearly
            to the size of the features; no gradient flows to them.
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored.
        mode: one of the above.

    Returns:
        `(centers, center_labels)`: float32 `(batch * num_classes, dim)` and int32
        `(batch * num_classes,)`, image by image: the class, or -1 if the image has no pixel of it
        with a positive weight.

    Raises:
        ValueError: if `mode` is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {MODES}. Received: {mode=}")
    _, height, width, dim = features.shape
    num_classes = logits.shape[-1]
    labels = ops.reshape(resize_labels(labels, height, width), (-1, height * width))
    known = ops.logical_and(labels >= 0, labels < num_classes)
    logits = ops.stop_gradient(logits)
    if tuple(logits.shape[1:3]) != (height, width):
        logits = resize(logits, (height, width))
    logits = ops.reshape(logits, (-1, height * width, num_classes))
    predicted = ops.cast(ops.argmax(logits, axis=-1), "int32")
    weights = ops.ones_like(labels, dtype="float32")
    if mode == "weighted":
        # 1 - confidence, computed as the sum over the other classes instead of a subtraction: for a
        # confident network it is smaller than the spacing of float32 at 1.
        logits = ops.cast(logits, "float32")
        parts = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
        others = ops.sum(parts * (1.0 - ops.one_hot(predicted, num_classes)), axis=-1)
        weights = ops.where(predicted == labels, others / (1.0 + others), 1.0)
    owner = ops.where(known, predicted if mode == "average" else labels, num_classes)
    members = ops.one_hot(owner, num_classes, axis=1, dtype="float32") * weights[:, None]
    pixels = ops.cast(ops.reshape(features, (-1, height * width, dim)), "float32")
    # In this layout the gradient with respect to the pixels is a product, not its transpose.
    sums = ops.reshape(ops.matmul(members, pixels), (-1, dim))

    # Weights may be tiny: rescale the sums first, so that their squares do not underflow.
    peak = ops.stop_gradient(ops.max(ops.abs(sums), axis=-1, keepdims=True))
    valid = peak > 0
    sums = sums / ops.where(valid, peak, 1.0)
    squared_norm = ops.sum(ops.square(sums), axis=-1, keepdims=True)
    centers = sums * ops.rsqrt(ops.where(valid, squared_norm, 1.0))
    classes = ops.tile(ops.arange(num_classes, dtype="int32"), (features.shape[0],))
    return centers, ops.where(valid[:, 0], classes, -1)
