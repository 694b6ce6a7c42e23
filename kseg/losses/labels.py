"""Labels in the forms of Keras models, for the loss classes and metrics."""

from keras import ops

IGNORED = 255  # The label of pixels without a class, by convention.


def class_numbers(labels, *, ignore_class=None):
    """Converts labels to the form that the losses take.

    Args:
        labels: int or float tensor of class numbers, `(batch, height, width)` or, as masks are
            often stored, `(batch, height, width, 1)`.
        ignore_class: int or None, a label to ignore.

    Returns:
        int32 tensor `(batch, height, width)`, -1 in place of `ignore_class`; labels of any other
        rank are only cast.
    """
    labels = ops.cast(labels, "int32")
    if len(labels.shape) == 4 and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    return labels if ignore_class is None else ops.where(labels == ignore_class, -1, labels)


def pixel_weights(sample_weight, labels):
    """Converts sample weights to one weight for each pixel.

    Args:
        sample_weight: float tensor >= 0: of images, `(batch,)` or `(batch, 1)`, or of pixels,
            `(batch, height, width)` or `(batch, height, width, 1)`.
        labels: tensor `(batch, height, width)`.

    Returns:
        float32 tensor `(batch, height, width)`.

    Raises:
        ValueError: if the shape of the weights is another.
    """
    weights = ops.cast(sample_weight, "float32")
    shape = tuple(weights.shape)
    if len(shape) == 4 and shape[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    elif len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        weights = ops.reshape(weights, (-1, 1, 1))
    elif len(shape) != 3:
        raise ValueError(
            "`sample_weight` must be one number for each image, (batch,), or for each pixel, "
            f"(batch, height, width). Received shape: {shape}"
        )
    return weights * ops.ones_like(labels, dtype="float32")


def without_weightless(labels, weights):
    """Ignores the pixels whose sample weight is 0.

    Args:
        labels: int tensor `(batch, height, width)`.
        weights: float tensor of that shape, or None: all 1.

    Returns:
        int tensor of that shape, `IGNORED` where the weight is 0.
    """
    return labels if weights is None else ops.where(weights > 0, labels, IGNORED)
