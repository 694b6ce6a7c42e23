"""Augmentation as tf ops on one example, driven by numbers drawn before anything is decoded."""

import tensorflow as tf

from pipelines.datasets.dataset import IGNORE_LABEL

# The mean of ImageNet: padding is near 0 once the network has normalised it.
PAD_COLOR = (124, 116, 104)

# RGB to luma and two chroma axes (YIQ): hue is a rotation of the chroma plane.
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def draw_window(numbers, size, crop_size, scale_range):
    """Chooses a random scale, and which part of the image becomes the crop at that scale.

    The scale is uniform in `scale_range`. The part has `round(crop_size / scale)` rows and columns
    (so the scale may differ between the axes by the rounding), and lies anywhere in the image with
    equal chance. Along an axis on which the image is smaller than that, all of it is taken and the
    crop is smaller than `crop_size`.

    Args:
        numbers: float32 tensor `(3,)`, uniform in [0, 1): for scale, row, column.
        size: int32 `(2,)`, height and width of the image.
        crop_size: `(height, width)`.
        scale_range: `(least, most)`.

    Returns:
        `(first, extent, shape)`, int32 `(2,)` each: first row and column of the part, its rows
        and columns, and the size it is to be resized to, at most `crop_size`.
    """
    low, high = scale_range
    scale = low + (high - low) * numbers[0]
    crop = tf.constant(crop_size, "int32")
    wanted = tf.maximum(tf.cast(tf.round(tf.cast(crop, "float32") / scale), "int32"), 1)
    extent = tf.minimum(wanted, size)
    resized = tf.cast(tf.round(tf.cast(extent, "float32") * scale), "int32")
    shape = tf.where(wanted <= size, crop, tf.clip_by_value(resized, 1, crop))
    room = tf.cast(size - extent + 1, "float32")
    # A number just below 1 times the room may round up to it.
    first = tf.minimum(tf.cast(numbers[1:3] * room, "int32"), size - extent)
    return first, extent, shape


def resize_image(image, shape):
    """Interpolates bilinearly with half-pixel centres, without smoothing.

    Args:
        image: uint8 `(height, width, 3)`.
        shape: int32 `(2,)`.

    Returns:
        float32 `(*shape, 3)`, 0 to 255.
    """
    return tf.raw_ops.ResizeBilinear(images=image[None], size=shape, half_pixel_centers=True)[0]


def resize_labels(labels, first, extent, shape):
    """Cuts a part out of labels and resizes it to the nearest neighbours, half-pixel centres.

    Args:
        labels: uint8 `(height, width)`.
        first, extent, shape: as `draw_window` gives them.

    Returns:
        uint8 `shape`; place i holds row `first + floor((i + 0.5) * extent / shape)`.
    """
    for axis in (0, 1):
        # In whole numbers, because a rounded centre can fall on the next pixel.
        places = first[axis] + (2 * tf.range(shape[axis]) + 1) * extent[axis] // (2 * shape[axis])
        # Rows are gathered several times faster than columns.
        labels = tf.transpose(tf.gather(labels, places))
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
    factors = 1.0 + (2.0 * numbers[:3] - 1.0) * tf.constant(
        [brightness, contrast, saturation], "float32"
    )
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


def to_uint8(image):
    """Rounds a float image and cuts it off at 0 and 255."""
    return tf.cast(tf.clip_by_value(image + 0.5, 0, 255), "uint8")


def mirror(image, labels):
    """Turns left to right."""
    return tf.reverse(image, [1]), tf.reverse(labels, [1])


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

    def fill(values, color):
        # tf.pad has one constant for all channels; uint8 wraps around, so this is exact.
        paddings = tf.stack([tf.zeros_like(missing), missing], axis=1)
        paddings = tf.pad(paddings, [[0, len(values.shape) - 2], [0, 0]])
        return tf.pad(values - color, paddings) + color

    image, labels = tf.cond(
        tf.reduce_any(missing > 0),
        lambda: (
            fill(image, tf.constant(PAD_COLOR, "uint8")),
            fill(labels, tf.constant(IGNORE_LABEL, "uint8")),
        ),
        lambda: (image, labels),
    )
    image.set_shape((*crop_size, 3))
    labels.set_shape(crop_size)
    return image, labels
