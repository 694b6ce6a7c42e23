"""Augmentation as tf ops on one example, driven by numbers drawn before anything is decoded."""

import tensorflow as tf

from pipelines.datasets.dataset import IGNORE_LABEL

# The mean of ImageNet: padding is near 0 once the network has normalised it.
PAD_COLOR = (124, 116, 104)

# RGB to luma and two chroma axes (YIQ): hue is a rotation of the chroma plane.
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def draw_window(numbers, size, crop_size, scale_range):
    """Chooses a random scale and a crop of the image scaled by it.

    The scale is uniform in `scale_range`. The scaled image has `round(size * scale)` rows and
    columns; the crop lies anywhere in it where it fits, and at 0 where the image is smaller.

    Args:
        numbers: float32 tensor `(3,)`, uniform in [0, 1): for scale, row, column.
        size: int32 `(2,)`, height and width of the image.
        crop_size: `(height, width)`.
        scale_range: `(least, most)`.

    Returns:
        `(scaled, start, shape)`, int32 `(2,)` each: size of the scaled image, first row and
        column of the crop in it, and its size, at most `crop_size`.
    """
    low, high = scale_range
    scale = low + (high - low) * numbers[0]
    scaled = tf.maximum(tf.cast(tf.round(tf.cast(size, "float32") * scale), "int32"), 1)
    crop = tf.constant(crop_size, "int32")
    shape = tf.minimum(scaled, crop)
    room = tf.cast(scaled - shape + 1, "float32")
    start = tf.cast(numbers[1:3] * room, "int32")
    return scaled, tf.minimum(start, scaled - shape), shape


def source_window(scaled, start, shape, size):
    """The part of the original image that a crop of the scaled one is interpolated from.

    Args:
        scaled, start, shape: as `draw_window` gives them.
        size: int32 `(2,)`, size of the original image.

    Returns:
        `(first, extent)`, int32 `(2,)` each: first row and column, rows and columns.
    """
    ratio = tf.cast(size, "float32") / tf.cast(scaled, "float32")
    top = (tf.cast(start, "float32") + 0.5) * ratio - 0.5
    bottom = (tf.cast(start + shape, "float32") - 0.5) * ratio - 0.5
    first = tf.maximum(tf.cast(tf.floor(top), "int32"), 0)
    last = tf.minimum(tf.cast(tf.floor(bottom), "int32") + 1, size - 1)
    return first, last - first + 1


def resize_image_window(image, first, scaled, start, shape, size):
    """Interpolates a crop of the scaled image from a part of the original.

    Bilinear with half-pixel centres and without smoothing: equal to resizing the whole image and
    cropping then.

    Args:
        image: uint8 `(rows, columns, 3)`, the part that `source_window` names.
        first: int32 `(2,)`, its first row and column.
        scaled, start, shape: as `draw_window` gives them.
        size: int32 `(2,)`, size of the original image.

    Returns:
        float32 `(*shape, 3)`, 0 to 255.
    """
    scale = tf.cast(scaled, "float32") / tf.cast(size, "float32")
    offset = tf.cast(first, "float32") * scale - tf.cast(start, "float32")
    return tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=shape,
        scale=scale,
        translation=offset,
        kernel_type="triangle",
        antialias=False,
    )[0]


def resize_label_window(labels, scaled, start, shape, size):
    """Takes a crop of the scaled label from the original by nearest sampling.

    Args:
        labels: uint8 `(height, width)`, the whole label.
        scaled, start, shape: as `draw_window` gives them.
        size: int32 `(2,)`, size of the original label.

    Returns:
        uint8 `shape`; place i holds source `floor((i + 0.5) * size / scaled)`.
    """
    for axis in (0, 1):
        places = tf.range(start[axis], start[axis] + shape[axis])
        # In whole numbers, because a rounded centre can fall on the next pixel.
        source = (2 * places + 1) * size[axis] // (2 * scaled[axis])
        labels = tf.gather(labels, source, axis=axis)
    return labels


def color_matrix(numbers, mean_luma, *, brightness, contrast, saturation, hue):
    """One affine map of colours for brightness, contrast, saturation and hue, in this order.

    Factors are uniform in `1 +- strength`, the hue angle in `+- hue` turns. Contrast is about
    the image's mean luma. Nothing is clipped in between.

    Args:
        numbers: float32 `(4,)`, uniform in [0, 1).
        mean_luma: float32 scalar, 0 to 255.
        brightness, contrast, saturation, hue: floats, the strengths.

    Returns:
        `(matrix, offset)`, float32 `(3, 3)` and `(3,)`: `color @ matrix + offset`.
    """
    factors = 1.0 + (2.0 * numbers[:3] - 1.0) * tf.constant([brightness, contrast, saturation])
    angle = (2.0 * numbers[3] - 1.0) * hue * 2.0 * 3.141592653589793
    to_yiq = tf.constant(_YIQ)
    cos, sin = tf.cos(angle) * factors[2], tf.sin(angle) * factors[2]
    zero, one = tf.zeros_like(cos), tf.ones_like(cos)
    chroma = tf.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos])
    turn = tf.linalg.inv(to_yiq) @ tf.reshape(chroma, (3, 3)) @ to_yiq
    matrix = tf.transpose(turn) * factors[0] * factors[1]
    # Grey stays grey under the turn, so the offset only needs contrast and brightness.
    offset = mean_luma * factors[0] * (1.0 - factors[1])
    return matrix, tf.fill((3,), offset)


def jitter_colors(image, numbers, strengths):
    """Applies `color_matrix` to an image.

    Args:
        image: float32 `(height, width, 3)`, 0 to 255.
        numbers: float32 `(4,)`, uniform in [0, 1).
        strengths: dict of the strengths of `color_matrix`.

    Returns:
        float32 `(height, width, 3)`, may leave 0 to 255.
    """
    mean_luma = tf.tensordot(tf.reduce_mean(image, axis=(0, 1)), tf.constant(_YIQ[0]), 1)
    matrix, offset = color_matrix(numbers, mean_luma, **strengths)
    pixels = tf.reshape(image, (-1, 3))
    return tf.reshape(tf.matmul(pixels, matrix) + offset, tf.shape(image))


def pad_to(image, labels, crop_size):
    """Fills up to the crop's size at the bottom and the right.

    Args:
        image: uint8 `(height, width, 3)`, at most `crop_size`.
        labels: uint8 `(height, width)`.
        crop_size: `(height, width)`.

    Returns:
        `(image, labels)` of `crop_size`; `PAD_COLOR` and 255 outside.
    """
    missing = tf.constant(crop_size, "int32") - tf.shape(labels)
    paddings = tf.stack([tf.zeros_like(missing), missing], axis=1)
    labels = tf.pad(labels, paddings, constant_values=IGNORE_LABEL)
    channels = [
        tf.pad(image[..., i], paddings, constant_values=tf.constant(PAD_COLOR[i], "uint8"))
        for i in range(3)
    ]
    image = tf.stack(channels, axis=-1)
    image.set_shape((*crop_size, 3))
    labels.set_shape(crop_size)
    return image, labels
