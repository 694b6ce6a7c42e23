"""Inputs of a served network, checked and decoded inside its graph.

A SavedModel runs where no Python is: what is wrong with an image has to be found by its graph, or
it ends in another operation's error, in a wrong answer, or in the end of the process.
"""

import tensorflow as tf

from kseg import pixel_depth

_ORIENTATION_TAG = 0x112
_EXIF = b"Exif\0\0"
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Orientations of EXIF that mirror rows and columns, after axes were exchanged (5 to 8).
_ROWS, _COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)


def check_images(images):
    """Returns RGB images unchanged, and refuses others.

    Floating-point values must be those of pixels, 0 to 255. Resampling may overshoot that by a
    quarter; images in 0 to 1 or -1 to 1, and those whose mean was subtracted, are refused: the
    network does that itself.

    Args:
        images: tensor `(batch, height, width, 3)`, or one image `(height, width, 3)`.

    Returns:
        the tensor.

    Raises:
        tf.errors.InvalidArgumentError: as it is computed, if its shape or its values are others.
    """
    # The shape that a tensor arrives with is not checked before: only this operation looks at it.
    images = tf.ensure_shape(images, (*[None] * (images.shape.rank - 1), 3))
    if not images.dtype.is_floating:
        return images
    low, high = tf.reduce_min(images), tf.reduce_max(images)
    # Not to be mistaken for an almost black image, whose few values are whole numbers.
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


def decode(encoded, value_range=None):
    """Decodes a picture file as `predict.py` and the preparation of data do, bit for bit.

    Args:
        encoded: string scalar, a JPEG or PNG file.
        value_range: `(low, high)`, the values of a PNG of 16 bits that become 0 and 255, see
            `kseg.pixel_depth`; None: the higher 8 bits are taken.

    Returns:
        uint8 RGB `(height, width, 3)`, turned upright as EXIF says. One channel is repeated,
        opacity dropped.

    Raises:
        tf.errors.InvalidArgumentError: as it is computed, if the file is another one or damaged, or
            has 16 bits, no range is given, and it uses less than half of their range.
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
    """Start and end of the EXIF data of a JPEG, int32 `(2,)`; equal if there is none."""
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
    """Does the same as `_exif_in_jpeg` for a PNG."""
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
    """The orientation in EXIF data, uint8 `(size,)`; int32 scalar, 1 where there is none."""
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
        # One entry more, which says 1, if there is none.
        nothing = tf.constant([[1] * 12], "uint8")
        entry = tf.concat([found, nothing], axis=0)[0]
        form, number = _number(entry[2:4], little), _number(entry[4:8], little)
        short, long = _number(entry[8:10], little), _number(entry[8:12], little)
        value = tf.where(form == 3, short, tf.where(form == 4, long, 1))
        valid = (number == 1) & (value >= 1) & (value <= 8)
        return tf.cast(tf.where(valid, value, 1), "int32")

    return tf.cond(size >= 8, read, lambda: tf.constant(1))


def _number(values, little):
    """Bytes `(..., size)` as unsigned numbers, int64."""
    values = tf.cast(values, "int64")
    exponents = tf.range(tf.shape(values, tf.int64)[-1])
    weights = tf.bitwise.left_shift(tf.constant(1, "int64"), 8 * exponents)
    return tf.reduce_sum(values * tf.where(little, weights, weights[::-1]), axis=-1)


def _turn(image, orientation):
    """Turns an image `(height, width, 3)` as EXIF says."""
    axes = tf.where(orientation > 4, tf.constant([1, 0, 2]), tf.constant([0, 1, 2]))
    mirrored = [tf.reduce_any(orientation == tf.constant(n)) for n in (_ROWS, _COLUMNS)]
    return tf.raw_ops.Reverse(tensor=tf.transpose(image, axes), dims=[*mirrored, False])
