"""Sliding-window inference on images larger than the training crops."""

import math

import tensorflow as tf

from kseg.evaluation.evaluator import check_logits

BLENDS = ("flat", "gaussian", "center")
_SIGMA = 1 / 8  # Standard deviation of the Gaussian as a fraction of the window.
_ALIGNMENT = 32  # Pixels: a multiple of the strides of all networks.


class SlidingWindow:
    """Applies a model to overlapping windows of an image.

    Windows form a grid with a fixed stride; the last of each row or column ends at the image
    border. Logits of overlapping windows are averaged, with weights that depend on the position in
    the window. Along an axis where the image is not larger than the window, there is a single
    window without padding, so the result on a small image is that of the model itself.

    `blend` chooses the weights, a product over the two axes:

    * `"flat"`: 1 everywhere.
    * `"gaussian"`: `exp(-d^2 / (2 (extent / 8)^2))`, d being the distance from the window's center.
    * `"center"`: 1 in the window whose center is nearest, 0 in the others. Windows start at
      multiples of 32, for which stride and window size are adjusted. Where the network's receptive
      field lies within the window, and window and image are multiples of the output stride, the
      logits are those of the whole image.

    Source: `slide_inference` of mmsegmentation (window placement, averaging of logits); the stride
    of two thirds follows its Cityscapes settings and those of PSPNet (semseg). The Gaussian is that
    of nnU-Net (Isensee et al., Nature Methods 2021).

    Args:
        model: callable from images, uint8 or float `(batch, height, width, 3)`, to float logits
            `(batch, height, width, num_classes)`.
        num_classes: int.
        window: `(height, width)`, pixels.
        overlap: float in [0, 1), fraction of a window that the next window covers, too.
        batch_size: int, number of windows per batch, from one image or several.
        blend: `"flat"`, `"gaussian"` or `"center"`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, model, num_classes, window, *, overlap=1 / 3, batch_size=4, blend="flat"):
        window = tuple(window)
        if len(window) != 2 or min(*window, batch_size) < 1 or not 0 <= overlap < 1:
            raise ValueError(
                "`window` must be (height, width) of 1 or more, `batch_size` 1 or more and "
                f"`overlap` in [0, 1). Received: {window=}, {batch_size=}, {overlap=}"
            )
        if blend not in BLENDS:
            raise ValueError(f"`blend` must be one of {', '.join(BLENDS)}. Received: {blend!r}")
        self._model = model
        self._num_classes = num_classes
        self._window = window
        self._overlap = overlap
        self._batch_size = batch_size
        self._blend = blend

    def __call__(self, images, training=False):
        """Returns float32 logits `(batch, height, width, num_classes)`; ignores `training`."""
        images = tf.convert_to_tensor(images)
        batch, *size = tf.unstack(tf.shape(images)[:3])
        (height, rows), (width, columns) = (
            place_windows(extent, window, self._overlap, self._blend)
            for extent, window in zip(size, self._window, strict=True)
        )
        down = window_weights(size[0], rows, height, self._blend)
        across = window_weights(size[1], columns, width, self._blend)
        per_row = tf.size(columns)
        per_image = tf.size(rows) * per_row

        def corner(number):
            """Returns image, row and column at which a window begins, and their indices."""
            i, j = number % per_image // per_row, number % per_row
            return number // per_image, rows[i], columns[j], i, j

        def cut(number):
            image, row, column, *_ = corner(number)
            return images[image, row : row + height, column : column + width]

        def add(total, numbered):
            number, logits = numbered
            image, row, column, i, j = corner(number)
            if self._blend != "flat":
                logits = logits * (down[i][:, None] * across[j])[..., None]
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
        sums = sum_weights(size[0], rows, down)[:, None] * sum_weights(size[1], columns, across)
        return total / sums[None, ..., None]


def place_windows(size, window, overlap, blend):
    """Places windows along an axis; see `SlidingWindow`.

    Args:
        size: int or int32 scalar tensor, extent of the image, pixels.
        window: int, extent of a window.
        overlap: float in [0, 1).
        blend: name of the blending.

    Returns:
        `(extent, starts)`: int32 scalar, extent of every window, and int32 `(windows,)`, their
        first positions in ascending order.
    """
    # Rounded first: 300 * (1 - 1 / 3) is a little more than 200.
    stride = max(math.ceil(round(window * (1 - overlap), 6)), 1)
    if blend == "center":
        stride = max(stride // _ALIGNMENT * _ALIGNMENT, _ALIGNMENT)
        window = max(window, stride)
        # So that the last start, `size - window`, becomes a multiple, too.
        window = window + (size - window) % _ALIGNMENT
    extent = tf.minimum(window, size)
    count = (size - extent + stride - 1) // stride + 1
    return extent, tf.minimum(tf.range(count) * stride, size - extent)


def window_weights(size, starts, extent, blend):
    """Computes the weights of the positions in each window along an axis.

    Args:
        size: int or int32 scalar tensor, extent of the image, pixels.
        starts, extent: as returned by `place_windows`.
        blend: name of the blending.

    Returns:
        float32 `(windows, extent)`.
    """
    starts = tf.convert_to_tensor(starts)
    shape = tf.stack([tf.size(starts), extent])
    if blend == "flat":
        return tf.ones(shape)
    if blend == "gaussian":
        length = tf.cast(extent, "float32")
        distance = tf.range(length) - (length - 1) / 2
        return tf.broadcast_to(tf.exp(-0.5 * tf.square(distance / (length * _SIGMA))), shape)
    between = (starts[:-1] + starts[1:] + extent) // 2
    first = tf.concat([[0], between], 0)
    last = tf.concat([between, [size]], 0)
    positions = starts[:, None] + tf.range(extent)
    return tf.cast((positions >= first[:, None]) & (positions < last[:, None]), "float32")


def sum_weights(size, starts, weights):
    """Sums the weights of all windows at each position along an axis.

    Args:
        size: int or int32 scalar tensor, extent of the image, pixels.
        starts: as returned by `place_windows`.
        weights: as returned by `window_weights`.

    Returns:
        float32 `(size,)`.
    """
    positions = tf.convert_to_tensor(starts)[:, None] + tf.range(tf.shape(weights)[1])
    flat = tf.reshape(weights, [-1]), tf.reshape(positions, [-1])
    return tf.math.unsorted_segment_sum(*flat, num_segments=size)
