"""Sliding-window inference on images larger than the training crops."""

import math

import tensorflow as tf

from kseg.evaluation.evaluator import check_logits


class SlidingWindow:
    """Applies a model to overlapping windows of an image.

    Windows form a grid with a fixed stride; the last of each row or column ends at the image
    border. Logits of overlapping windows are averaged. Along an axis where the image is not larger
    than the window, there is a single window without padding, so the result on a small image is
    that of the model itself.

    Source: `slide_inference` of mmsegmentation (window placement, averaging of logits); the stride
    of two thirds follows its Cityscapes settings and those of PSPNet (semseg).

    Args:
        model: callable from images, uint8 or float `(batch, height, width, 3)`, to float logits
            `(batch, height, width, num_classes)`.
        num_classes: int.
        window: `(height, width)`, pixels.
        overlap: float in [0, 1), fraction of a window that the next window covers, too.
        batch_size: int, number of windows per batch, from one image or several.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, model, num_classes, window, *, overlap=1 / 3, batch_size=4):
        window = tuple(window)
        if len(window) != 2 or min(*window, batch_size) < 1 or not 0 <= overlap < 1:
            raise ValueError(
                "`window` must be (height, width) of 1 or more, `batch_size` 1 or more and "
                f"`overlap` in [0, 1). Received: {window=}, {batch_size=}, {overlap=}"
            )
        self._model = model
        self._num_classes = num_classes
        self._window = window
        # Rounded first: 300 * (1 - 1 / 3) is a little more than 200.
        self._stride = [max(math.ceil(round(size * (1 - overlap), 6)), 1) for size in window]
        self._batch_size = batch_size

    def __call__(self, images, training=False):
        """Returns float32 logits `(batch, height, width, num_classes)`; ignores `training`."""
        images = tf.convert_to_tensor(images)
        batch, *size = tf.unstack(tf.shape(images)[:3])
        height, width = (
            tf.minimum(limit, extent) for limit, extent in zip(self._window, size, strict=True)
        )
        rows = _starts(size[0], height, self._stride[0])
        columns = _starts(size[1], width, self._stride[1])
        per_row = tf.size(columns)
        per_image = tf.size(rows) * per_row

        def corner(number):
            """Image index, row and column at which a window begins."""
            index = number % per_image
            return number // per_image, rows[index // per_row], columns[index % per_row]

        def cut(number):
            image, row, column = corner(number)
            return images[image, row : row + height, column : column + width]

        def add(total, numbered):
            number, logits = numbered
            image, row, column = corner(number)
            sums = total[image, row : row + height, column : column + width] + logits
            # Writes only the window, in place; a sum over padded windows would traverse the whole
            # image each time.
            return tf.raw_ops.TensorStridedSliceUpdate(
                input=total,
                begin=tf.stack([image, row, column, 0]),
                end=tf.stack([image + 1, row + height, column + width, self._num_classes]),
                strides=[1, 1, 1, 1],
                value=sums[None],
            )

        def some_windows(first, total):
            last = tf.minimum(first + self._batch_size, batch * per_image)
            numbers = tf.range(first, last)
            spec = tf.TensorSpec((None, None, images.shape[-1]), images.dtype)
            windows = tf.map_fn(cut, numbers, fn_output_signature=spec)
            logits = self._model(windows, training=False)
            check_logits(logits, self._num_classes)
            logits = tf.cast(logits, "float32")
            return last, tf.foldl(add, (numbers, logits), initializer=total)

        total = tf.zeros((batch, *size, self._num_classes))
        _, total = tf.while_loop(
            lambda first, _: first < batch * per_image,
            some_windows,
            (tf.constant(0), total),
            shape_invariants=(tf.TensorShape(()), total.shape),
            parallel_iterations=1,
        )
        covers = _covers(size[0], rows, height)[:, None] * _covers(size[1], columns, width)[None]
        return total / covers[None, ..., None]


def _starts(size, window, stride):
    """Computes the start positions of the windows along an axis, int32 `(windows,)`."""
    count = (size - window + stride - 1) // stride + 1
    return tf.minimum(tf.range(count) * stride, size - window)


def _covers(size, starts, window):
    """Counts the windows that cover each position along an axis, float32 `(size,)`."""
    rows = tf.range(size)[:, None]
    inside = (rows >= starts[None]) & (rows < starts[None] + window)
    return tf.reduce_sum(tf.cast(inside, "float32"), axis=1)
