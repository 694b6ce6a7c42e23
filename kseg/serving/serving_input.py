"""Checks and decoding of a served network's inputs, inside its graph.

A SavedModel also runs without Python, so its graph must detect invalid images. Otherwise these
cause an unrelated operation's error, a wrong result, or a crash.
"""

import tensorflow as tf

from kseg import pixel_depth

_ORIENTATION_TAG = 0x112
_EXIF = b"Exif\0\0"
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# EXIF orientations that mirror rows and columns, after the axes are swapped (5 to 8).
_ROWS, _COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)


def check_images(images, pixel_format=None):
    """Returns images unchanged and rejects all other input.

    Floating-point values must be pixel values in 0 to 255, with a tolerance of a quarter of that
    range for overshoot by resampling. Images in 0 to 1 or -1 to 1, and images with the mean
    subtracted, are rejected, because the network normalizes its input itself.

    Args:
        images: tensor `(batch, height, width, 3)`, or one image `(height, width, 3)`.
        pixel_format: `kseg.pixel_format.PixelFormat`, whose channels the images must have; their
            values must then be finite, and for whole numbers near its `value_range`. None: RGB.

    Returns:
        The tensor `images`.

    Raises:
        tf.errors.InvalidArgumentError: when evaluated, if the shape or the values are invalid.
    """
    # No earlier operation checks the runtime shape of the tensor.
    channels = 3 if pixel_format is None else pixel_format.channels
    images = tf.ensure_shape(images, (*[None] * (images.shape.rank - 1), channels))
    if not images.dtype.is_floating:
        return images
    if pixel_format is not None:
        return _check_values(images, pixel_format)
    low, high = tf.reduce_min(images), tf.reduce_max(images)
    # Distinguishes normalized images from almost black ones, whose values are integers.
    normalized = (high <= 4) & tf.reduce_any(images != tf.round(images))
    # NaN fails every comparison.
    usable = (low >= -64) & (high <= 319) & tf.logical_not(normalized)
    message = [
        "Floating-point images must have values from 0 to 255, not normalized (multiply 0 to 1 by "
        "255). Received values from",
        low,
        "to",
        high,
    ]
    with tf.control_dependencies([tf.debugging.Assert(usable, message)]):
        return tf.identity(images)


def _check_values(images, pixel_format):
    """Rejects values that the images of a pixel format cannot have."""
    low, high = tf.reduce_min(images), tf.reduce_max(images)
    least, most = pixel_format.value_range
    margin = (most - least) / 4  # Resampling overshoots.
    if pixel_format.dtype == "float32":
        usable, rule = tf.reduce_all(tf.math.is_finite(images)), "must be finite"
    else:  # NaN fails every comparison.
        usable = (low >= least - margin) & (high <= most + margin)
        rule = f"must have values from {least:g} to {most:g}"
    message = [f"Images of {pixel_format} {rule}. Received values from", low, "to", high]
    with tf.control_dependencies([tf.debugging.Assert(usable, message)]):
        return tf.identity(images)


def decode(encoded, value_range=None):
    """Decodes a picture file, bit-identical to `predict.py` and the preparation of data.

    Args:
        encoded: string scalar, the bytes of a JPEG or PNG file.
        value_range: `(low, high)`, the values of a 16-bit PNG that are mapped to 0 and 255, see
            `kseg.pixel_depth`; None: the upper 8 bits are used.

    Returns:
        uint8 RGB `(height, width, 3)`, rotated upright according to EXIF. A single channel is
        repeated; opacity is dropped.

    Raises:
        tf.errors.InvalidArgumentError: when evaluated, if the file is damaged or has another
            format; or if it has 16 bits, no range is given, and its largest value is not 0 but in
            the lower half of the 16-bit range.
    """
    is_jpeg = tf.strings.substr(encoded, 0, 3) == _JPEG
    is_png = tf.strings.substr(encoded, 0, 8) == _PNG
    known = tf.debugging.Assert(is_jpeg | is_png, ["`encoded` must be a JPEG or PNG file"])
    with tf.control_dependencies([known]):
        encoded = tf.identity(encoded)
    data = tf.io.decode_raw(encoded, "uint8")
    pixels, start = tf.cond(
        is_jpeg,
        lambda: (
            tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
            _exif_in_jpeg(encoded, data),
        ),
        lambda: (_decode_png(encoded, data, value_range), _exif_in_png(encoded, data)),
    )
    orientation = _orientation(data[start[0] : start[1]])
    return tf.cond(orientation == 1, lambda: pixels, lambda: _turn(pixels, orientation))


def _decode_png(encoded, data, value_range):
    def deep():
        values = tf.io.decode_png(encoded, channels=3, dtype="uint16")
        if value_range is not None:
            table = tf.constant(pixel_depth.table_of_16_bits(value_range))
            return tf.gather(table, tf.cast(values, "int32"))
        high = tf.reduce_max(tf.cast(values, "int32"))
        message = [
            "A PNG of 16 bits must use their range; this could hold fewer bits. Bring it to 8 bits "
            "first. Largest value:",
            high,
        ]
        with tf.control_dependencies(
            [tf.debugging.Assert((high >= 1 << 15) | (high == 0), message)]
        ):
            return tf.cast(tf.bitwise.right_shift(values, tf.constant(8, "uint16")), "uint8")

    def shallow():
        return tf.io.decode_png(encoded, channels=3)

    bits = tf.gather(data, tf.minimum(24, tf.size(data) - 1))
    return tf.cond(bits == 16, deep, shallow)


def _exif_in_jpeg(encoded, data):
    """Finds the start and end of a JPEG's EXIF data, int32 `(2,)`; equal without EXIF data."""
    size = tf.size(data)

    def looking(position, bounds):
        first = data[tf.minimum(position, size - 1)]
        return (position + 4 <= size) & (first == 0xFF) & (bounds[1] == 0)

    def look(position, bounds):
        head = tf.cast(data[position : position + 4], "int32")
        marker, length = head[1], head[2] * 256 + head[3]
        exif = (marker == 0xE1) & (length >= 8)
        exif &= (
            tf.strings.substr(encoded, position + 4, tf.minimum(6, size - position - 4)) == _EXIF
        )
        bounds = tf.where(exif, tf.stack([position + 10, position + 2 + length]), bounds)
        after = position + 2 + length
        after = tf.where((marker == 0xDA) | (length < 2), size, after)
        return tf.where(marker == 0xFF, position + 1, after), bounds

    return tf.minimum(tf.while_loop(looking, look, (2, tf.zeros(2, "int32")))[1], size)


def _exif_in_png(encoded, data):
    """Finds the start and end of a PNG's EXIF data, int32 `(2,)`; equal without EXIF data."""
    size = tf.size(data, out_type=tf.int64)

    def looking(position, bounds):
        return (position + 12 <= size) & (bounds[1] == 0)

    def look(position, bounds):
        length = _number(data[position : position + 4], False)
        name = tf.strings.substr(encoded, position + 4, tf.constant(4, "int64"))
        whole = position + 12 + length <= size
        start = position + 8
        prefix = tf.strings.substr(
            encoded, start, tf.minimum(tf.constant(6, "int64"), size - start)
        )
        start += tf.where(prefix == _EXIF, tf.constant(6, "int64"), 0)
        chunk = tf.stack([start, position + 8 + length])
        bounds = tf.where(whole & (name == b"eXIf"), chunk, bounds)
        return tf.where(whole & (name != b"IEND"), position + 12 + length, size), bounds

    start = tf.constant(8, "int64"), tf.zeros(2, "int64")
    return tf.cast(tf.while_loop(looking, look, start)[1], "int32")


def _orientation(exif):
    """Reads the orientation from EXIF data, uint8 `(size,)`: int32 scalar, 1 if missing."""
    size = tf.size(exif, out_type=tf.int64)

    def read():
        little = exif[0] == ord("I")
        first, twelve = _number(exif[4:8], little), tf.constant(12, "int64")
        known = (exif[0] == exif[1]) & (little | (exif[0] == ord("M")))
        known &= (_number(exif[2:4], little) == 42) & (first + 2 <= size)
        first = tf.where(known, first, size - 2)
        count = tf.minimum(_number(exif[first : first + 2], little), (size - first - 2) // twelve)
        count = tf.where(known, count, 0)
        entries = tf.reshape(exif[first + 2 : first + 2 + twelve * count], (-1, twelve))
        found = tf.boolean_mask(entries, _number(entries[:, :2], little) == _ORIENTATION_TAG)
        # An extra entry with value 1 replaces a missing tag.
        nothing = tf.constant([[1] * 12], "uint8")
        entry = tf.concat([found, nothing], axis=0)[0]
        form, number = _number(entry[2:4], little), _number(entry[4:8], little)
        short, long = _number(entry[8:10], little), _number(entry[8:12], little)
        value = tf.where(form == 3, short, tf.where(form == 4, long, 1))
        valid = (number == 1) & (value >= 1) & (value <= 8)
        return tf.cast(tf.where(valid, value, 1), "int32")

    return tf.cond(size >= 8, read, lambda: tf.constant(1))


def _number(values, little):
    """Converts bytes `(..., size)` to unsigned integers, as int64."""
    values = tf.cast(values, "int64")
    exponents = tf.range(tf.shape(values, tf.int64)[-1])
    weights = tf.bitwise.left_shift(tf.constant(1, "int64"), 8 * exponents)
    return tf.reduce_sum(values * tf.where(little, weights, weights[::-1]), axis=-1)


def _turn(image, orientation):
    """Rotates and mirrors an image `(height, width, 3)` according to its EXIF orientation."""
    axes = tf.where(orientation > 4, tf.constant([1, 0, 2]), tf.constant([0, 1, 2]))
    mirrored = [tf.reduce_any(orientation == tf.constant(n)) for n in (_ROWS, _COLUMNS)]
    return tf.raw_ops.Reverse(tensor=tf.transpose(image, axes), dims=[*mirrored, False])
