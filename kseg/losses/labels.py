"""Labels as Keras models give them, for the loss classes and metrics."""

from keras import ops


def class_numbers(labels, *, ignore_class=None):
    """Brings labels to the form that the losses take.

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
