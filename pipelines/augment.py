"""Augmentation of one example as TensorFlow ops, driven by numbers drawn before it is decoded."""

import tensorflow as tf

from pipelines.datasets.dataset import IGNORE_LABEL

# The mean of ImageNet: padding is near 0 once the network has normalized it.
PAD_COLOR = (124, 116, 104)


def draw_extent(number, size, crop_size, scale_range):
    """Draws a random scale, and the extent of the image part that becomes the crop at that scale.

    The scale is uniform in `scale_range`. The part has `round(crop_size / scale)` rows and columns
    (so the scale may differ between the axes by the rounding). Along an axis on which the image is
    smaller than that, all of it is taken and the crop is smaller than `crop_size`.

    Args:
        number: float32 scalar, uniform in [0, 1).
        size: int32 `(2,)`, height and width of the image.
        crop_size: `(height, width)`.
        scale_range: `(least, most)`.

    Returns:
        `(wanted, extent, shape)`, int32 `(2,)` each: rows and columns of the part; those of them
        within the image; and the size to which the latter are resized, at most `crop_size`.
    """
    low, high = scale_range
    scale = low + (high - low) * number
    crop = tf.constant(crop_size, "int32")
    wanted = tf.maximum(tf.cast(tf.round(tf.cast(crop, "float32") / scale), "int32"), 1)
    extent = tf.minimum(wanted, size)
    resized = tf.cast(tf.round(tf.cast(extent, "float32") * scale), "int32")
    shape = tf.where(wanted <= size, crop, tf.clip_by_value(resized, 1, crop))
    return wanted, extent, shape


def draw_place(numbers, size, extent):
    """Draws the position of a window, uniformly over the image.

    Args:
        numbers: float32 `(2,)`, uniform in [0, 1).
        size: int32 `(2,)`, height and width of the image.
        extent: int32 `(2,)`, rows and columns of the part.

    Returns:
        int32 `(2,)`, its first row and column.
    """
    room = tf.cast(size - extent + 1, "float32")
    # A number just below 1 times the room may round up to it.
    return tf.minimum(tf.cast(numbers * room, "int32"), size - extent)


def draw_pixel(labels, classes, numbers):
    """Draws one of the given classes that occurs, then one of its pixels.

    Args:
        labels: uint8 `(height, width)`.
        classes: list of int.
        numbers: float32 `(2,)`, uniform in [0, 1).

    Returns:
        `(pixel, found)`: int32 `(2,)`, row and column; bool scalar, False if none occurs.
    """
    counts = tf.gather(
        tf.math.bincount(tf.cast(labels, "int32"), minlength=256, maxlength=256), classes
    )
    present = tf.where(counts > 0)[:, 0]
    found = tf.size(present) > 0
    present = tf.concat([present, [0]], axis=0)  # Never empty.
    # float64: a count of pixels may have more digits than float32.
    number, place = tf.unstack(tf.cast(numbers, "float64"))
    choices = tf.maximum(tf.shape(present)[0] - 1, 1)
    chosen = present[tf.cast(number * tf.cast(choices, "float64"), "int32")]
    rank = tf.cast(place * tf.cast(counts[chosen], "float64"), "int32")
    own = labels == tf.cast(tf.gather(tf.constant(classes), chosen), "uint8")
    row, rank = _place_of(tf.math.count_nonzero(own, axis=1, dtype="int32"), rank)
    row = tf.minimum(row, tf.shape(labels)[0] - 1)
    column, _ = _place_of(tf.cast(own[row], "int32"), rank)
    return tf.stack([row, tf.minimum(column, tf.shape(labels)[1] - 1)]), found


def _place_of(counts, rank):
    """Finds the entry that holds the item of a rank, and the rank within it."""
    ends = tf.cumsum(counts)
    place = tf.searchsorted(ends, rank[None], side="right")[0]
    return place, rank - tf.where(place > 0, ends[tf.maximum(place - 1, 0)], 0)


def resize_image(image, shape):
    """Interpolates bilinearly with half-pixel centers, without smoothing.

    Args:
        image: uint8, uint16 or float32 `(height, width, channels)`.
        shape: int32 `(2,)`.

    Returns:
        `(*shape, channels)` of the same dtype; whole numbers are rounded.
    """
    image = tf.convert_to_tensor(image)
    # The op is twice as fast on floats as on the bytes themselves.
    values = tf.cast(image, "float32")[None]
    values = tf.raw_ops.ResizeBilinear(images=values, size=shape, half_pixel_centers=True)[0]
    return _as_before(values, image)


def resize_labels(labels, first, extent, shape):
    """Cuts a window out of labels and resizes it to the nearest neighbors, half-pixel centers.

    Args:
        labels: uint8 `(height, width)`.
        first, extent: int32 `(2,)`, first row and column, rows and columns of the part.
        shape: int32 `(2,)`.

    Returns:
        uint8 `shape`; index i holds row `first + floor((i + 0.5) * extent / shape)`.
    """
    for axis in (0, 1):
        # Integer arithmetic: a rounded center could fall on the next pixel.
        places = first[axis] + (2 * tf.range(shape[axis]) + 1) * extent[axis] // (2 * shape[axis])
        # Rows are gathered several times faster than columns.
        labels = tf.transpose(tf.gather(labels, places))
    return labels


def largest_share(labels):
    """Computes the share of the most frequent class among the labels that are not ignored.

    Args:
        labels: uint8 `(height, width)`.

    Returns:
        float32 scalar; 1 where every label is ignored.
    """
    counts = tf.math.bincount(tf.cast(labels, "int32"), minlength=256, maxlength=256)
    counts = counts[:IGNORE_LABEL]
    total = tf.reduce_sum(counts)
    share = tf.cast(tf.reduce_max(counts), "float32") / tf.cast(tf.maximum(total, 1), "float32")
    return tf.where(total > 0, share, 1.0)


def rotated_box(first, wanted, size, angle):
    """Computes the bounding box of a part of an image that is rotated about its center.

    Args:
        first: int32 `(2,)`, first row and column of the part.
        wanted: int32 `(2,)`, its rows and columns; it may reach beyond the image.
        size: int32 `(2,)`, height and width of the image.
        angle: float32 scalar, radians.

    Returns:
        `(first, extent, paddings)`: first row and column, rows and columns of the part of the box
        within the image, int32 `(2,)` each; and int32 `(2, 2)`, the missing rows above and below
        and columns left and right.
    """
    half = tf.cast(wanted, "float32") / 2
    middle = tf.cast(first, "float32") + half
    cos, sin = tf.abs(tf.cos(angle)), tf.abs(tf.sin(angle))
    # One more pixel, because interpolation takes neighbors.
    reach = tf.stack([cos * half[0] + sin * half[1], cos * half[1] + sin * half[0]]) + 1.0
    low = tf.cast(tf.floor(middle - reach), "int32")
    high = tf.cast(tf.math.ceil(middle + reach), "int32")
    begin, end = tf.maximum(low, 0), tf.minimum(high, size)
    return begin, end - begin, tf.stack([begin - low, high - end], axis=1)


def rotate(values, first, wanted, box, angle, crop_size, color, interpolation):
    """Rotates a part of an image and resizes it to the crop.

    Args:
        values: uint8, uint16 or float32 `(height, width, channels)`, the pixels of the box of
            `rotated_box`.
        first, wanted, angle: as given to `rotated_box`.
        box: `(first, extent, paddings)`, as returned by `rotated_box`.
        crop_size: `(height, width)`.
        color: numbers `(channels,)`, the color beyond the image.
        interpolation: `"BILINEAR"` or `"NEAREST"`.

    Returns:
        `(*crop_size, channels)` of the dtype of the values.
    """
    box_first, _, paddings = box
    values = _fill(values, paddings, tf.constant(color, values.dtype))
    half = tf.cast(wanted, "float32") / 2
    middle = tf.cast(first - box_first + paddings[:, 0], "float32") + half
    (down, across) = tf.unstack(tf.cast(wanted, "float32") / tf.constant(crop_size, "float32"))
    cos, sin = tf.cos(angle), tf.sin(angle)
    # Maps the center of a pixel of the crop, column x and row y, to a position in the box.
    x = across * 0.5 - half[1]
    y = down * 0.5 - half[0]
    transform = [
        *(cos * across, -sin * down, middle[1] - 0.5 + cos * x - sin * y),
        *(sin * across, cos * down, middle[0] - 0.5 + sin * x + cos * y),
        *(0.0, 0.0),
    ]
    turned = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(values, "float32")[None],
        transforms=tf.stack(transform)[None],
        output_shape=tf.constant(crop_size, "int32"),
        fill_value=0.0,
        interpolation=interpolation,
        fill_mode="NEAREST",
    )[0]
    return _as_before(turned, values)


def _as_before(values, like):
    """Converts interpolated values to the dtype of `like`; integers are rounded."""
    return values if like.dtype.is_floating else tf.cast(values + 0.5, like.dtype)


def mirror(image, labels):
    """Mirrors horizontally."""
    return tf.reverse(image, [1]), tf.reverse(labels, [1])


def pad_to(image, labels, crop_size, color=PAD_COLOR):
    """Pads to the crop's size at the bottom and right.

    Args:
        image: uint8, uint16 or float32 `(height, width, channels)`, at most `crop_size`.
        labels: uint8 `(height, width)`.
        crop_size: `(height, width)`.
        color: numbers `(channels,)`.

    Returns:
        `(image, labels)` of `crop_size`; `color` and 255 outside.
    """
    missing = tf.constant(crop_size, "int32") - tf.shape(labels)
    paddings = tf.stack([tf.zeros_like(missing), missing], axis=1)
    image, labels = tf.cond(
        tf.reduce_any(missing > 0),
        lambda: (
            _fill(image, paddings, tf.constant(color, image.dtype)),
            _fill(labels, paddings, tf.constant(IGNORE_LABEL, "uint8")),
        ),
        lambda: (image, labels),
    )
    image.set_shape((*crop_size, len(color)))
    labels.set_shape(crop_size)
    return image, labels


def _fill(values, paddings, color):
    """Pads rows and columns with a color."""
    paddings = tf.pad(paddings, [[0, len(values.shape) - 2], [0, 0]])
    if values.dtype.is_floating:
        inside = tf.pad(tf.ones_like(values[..., :1], "bool"), paddings)
        return tf.where(inside, tf.pad(values, paddings), color)
    # tf.pad has one constant for all channels; whole numbers wrap around, so this is exact.
    return tf.pad(values - color, paddings) + color
