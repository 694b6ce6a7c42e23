"""What a record holds, so that any window of an image and its labels is cheap to read.

The image is a plain JPEG or PNG file. A baseline JPEG with restart markers at the right places (as
`encode_jpeg` sets them) can be cut into bands of rows without decoding: the header, with another
height, and the bytes between two markers are a JPEG of their own. So of the entropy coding, which
is most of the work, only the rows of the window are decoded, where otherwise all rows above them
would be too. The index of the bands is stored beside the image.

The labels are tiles of `TILE` labels, row by row, each compressed with zlib on its own; what lies
beyond the image is 255. That is smaller than one PNG, and a window takes only its tiles.
"""

import math
import zlib

import cv2
import numpy as np
import tensorflow as tf

from pipelines.datasets.dataset import IGNORE_LABEL
from pipelines.errors import DataError

TILE = (128, 256)
_FEATURES = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "height_at": tf.io.FixedLenFeature([], tf.int64),
    "band_rows": tf.io.FixedLenFeature([], tf.int64),
    "bands": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
    "tiles": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
    "id": tf.io.FixedLenFeature([], tf.string),
    "shard": tf.io.FixedLenFeature([], tf.string),
    "index": tf.io.FixedLenFeature([], tf.int64),
    "height": tf.io.FixedLenFeature([], tf.int64),
    "width": tf.io.FixedLenFeature([], tf.int64),
}
_END_OF_IMAGE = b"\xff\xd9"


def encode_record(image, labels, *, id, shard, index):
    """Writes a record.

    Args:
        image: bytes of a JPEG or PNG file.
        labels: uint8 array `(height, width)`, 255 = ignored.
        id: str, the example's name.
        shard: str, the key of the shard that the record belongs to.
        index: int, its number in the shard.

    Returns:
        bytes.
    """
    height_at, band_rows, bands = index_jpeg(image) or (0, 0, [])
    height, width = labels.shape
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                "image": _bytes([image]),
                "height_at": _ints([height_at]),
                "band_rows": _ints([band_rows]),
                "bands": _ints(bands),
                "tiles": _bytes(_encode_tiles(labels)),
                "id": _bytes([id.encode()]),
                "shard": _bytes([shard.encode()]),
                "index": _ints([index]),
                "height": _ints([height]),
                "width": _ints([width]),
            }
        )
    ).SerializeToString(deterministic=True)


def parse_record(record):
    """Reads a record.

    Args:
        record: string scalar.

    Returns:
        dict: `image`, `id`, `shard` strings; `tiles` strings `(tiles,)`; `height_at`, `band_rows`,
        `index`, `height`, `width` int32 and `bands` int32 `(bands + 1,)`, empty without index.
    """
    example = tf.io.parse_single_example(record, _FEATURES)
    return {
        name: tf.cast(value, "int32") if value.dtype == tf.int64 else value
        for name, value in example.items()
    }


def encode_jpeg(image, quality):
    """Writes a JPEG that `index_jpeg` can index, chroma at half the resolution.

    Args:
        image: bytes of an image file that OpenCV reads.
        quality: int, 1 to 100.

    Returns:
        bytes.

    Raises:
        DataError: if the image cannot be read.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(image, "uint8"), flags)
    if pixels is None:
        raise DataError("the image cannot be decoded")
    # Restart markers are numbered from 0 to 7: bands begin where it is 0 again.
    blocks = -(-pixels.shape[1] // 16)
    parameters = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_OPTIMIZE: 1,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_RST_INTERVAL: blocks // math.gcd(8, blocks),
    }
    flat = [value for pair in parameters.items() for value in pair]
    return cv2.imencode(".jpg", pixels, flat)[1].tobytes()


def index_jpeg(content):
    """Finds the bands of a JPEG.

    Args:
        content: bytes of an image file.

    Returns:
        None if it cannot be cut into bands: no baseline JPEG, no restart markers, or not where rows
        of blocks begin. Else `(height_at, band_rows, bands)`: where the header tells the height,
        rows of a band (the last may have fewer), and where each band begins; at last, where one
        more would begin.
    """
    header = _parse_header(content)
    if header is None or not content.endswith(_END_OF_IMAGE):
        return None
    body, height_at, height, blocks, block_rows, interval = header
    data = np.frombuffer(content, "uint8")
    marked = (data[body:-1] == 0xFF) & (data[body + 1 :] >= 0xD0) & (data[body + 1 :] <= 0xD7)
    starts = np.concatenate([[body], np.flatnonzero(marked) + body + 2])
    if len(starts) != -(-blocks * -(-height // block_rows) // interval):
        return None
    # Markers are numbered from 0 to 7: a band begins with a row of blocks, and where it is 0 again.
    rows = math.lcm(8 * interval, blocks) // blocks
    bands = [*starts[:: rows * blocks // interval].tolist(), len(content)]
    return height_at, rows * block_rows, bands


def decode_image(example):
    """Decodes the whole image; uint8 `(height, width, 3)`."""
    return tf.io.decode_image(example["image"], channels=3, expand_animations=False)


def decode_whole(example):
    """Image, uint8 `(height, width, 3)`, labels, uint8 `(height, width)`, and id of a record."""
    return decode_image(example), decode_labels(example), example["id"]


def decode_window(example, first, extent, ratio):
    """Decodes a part of the image, at a fraction of the resolution.

    Args:
        example: of `parse_record`.
        first, extent: int32 `(2,)`, first row and column, rows and columns; multiples of `ratio`.
        ratio: int32 scalar, 1, 2, 4 or 8; see `window_ratio`.

    Returns:
        uint8 `(*(extent / ratio), 3)`. At the edges of a window of a JPEG the chroma may differ
        a little from that of the whole, because it has no neighbours to be smoothed with.
    """

    def from_bands():
        rows, bands = example["band_rows"], example["bands"]
        begin, end = first[0] // rows, (first[0] + extent[0] - 1) // rows + 1
        height = tf.minimum(end * rows, example["height"]) - begin * rows
        image, height_at = example["image"], example["height_at"]
        band = tf.strings.join(
            [
                tf.strings.substr(image, 0, height_at),
                tf.gather(_BYTES, height // 256),
                tf.gather(_BYTES, height % 256),
                tf.strings.substr(image, height_at + 2, bands[0] - height_at - 2),
                # Without the marker after the last band.
                tf.strings.substr(image, bands[begin], bands[end] - bands[begin] - 2),
                _END_OF_IMAGE,
            ]
        )
        return from_jpeg(band, first - tf.stack([begin * rows, 0]))

    def from_jpeg(content, first):
        window = tf.concat([first, extent], axis=0) // ratio
        decoders = [
            lambda r=r: tf.io.decode_and_crop_jpeg(content, window, channels=3, ratio=r)
            for r in _RATIOS
        ]
        choice = tf.reduce_sum(tf.cast(ratio >= tf.constant(_RATIOS[1:]), "int32"))
        return tf.switch_case(choice, decoders)

    def from_png():
        image = tf.io.decode_png(example["image"], channels=3)
        return tf.slice(image, tf.pad(first, [[0, 1]]), tf.concat([extent, [3]], axis=0))

    return tf.case(
        [
            (tf.size(example["bands"]) > 0, from_bands),
            (tf.io.is_jpeg(example["image"]), lambda: from_jpeg(example["image"], first)),
        ],
        default=from_png,
    )


def window_ratio(example, extent, shape):
    """The largest reduction at which a window still has no fewer pixels than it is resized to.

    Args:
        example: of `parse_record`.
        extent, shape: int32 `(2,)`, rows and columns of the window, and those wanted of it.

    Returns:
        int32 scalar: 1, 2, 4 or 8 for a JPEG, which can be decoded at these, else 1.
    """
    enough = [tf.reduce_all(extent // ratio >= shape) for ratio in _RATIOS[1:]]
    halvings = tf.reduce_sum(tf.cast(tf.stack(enough), "int32"))
    halvings = tf.where(tf.io.is_jpeg(example["image"]), halvings, 0)
    return tf.bitwise.left_shift(1, halvings)


def decode_labels(example):
    """Decodes all labels; uint8 `(height, width)`."""
    size = tf.stack([example["height"], example["width"]])
    return decode_label_window(example, tf.zeros_like(size), size)


def decode_label_window(example, first, extent):
    """Decodes a part of the labels.

    Args:
        example: of `parse_record`.
        first, extent: int32 `(2,)`, first row and column, rows and columns.

    Returns:
        uint8 `extent`.
    """
    tile = tf.constant(TILE)
    begin, end = first // tile, (first + extent - 1) // tile + 1
    tiles = tf.reshape(example["tiles"], (-1, (example["width"] - 1) // TILE[1] + 1))
    tiles = tiles[begin[0] : end[0], begin[1] : end[1]]
    labels = tf.io.decode_raw(tf.io.decode_compressed(tf.reshape(tiles, (-1,)), "ZLIB"), "uint8")
    labels = tf.reshape(labels, tf.concat([tf.shape(tiles), TILE], axis=0))
    labels = tf.reshape(tf.transpose(labels, (0, 2, 1, 3)), tf.shape(tiles) * tile)
    return tf.slice(labels, first - begin * tile, extent)


_RATIOS = (1, 2, 4, 8)
_BYTES = [bytes([value]) for value in range(256)]


def _parse_header(content):
    """Reads a baseline JPEG's header up to its only scan.

    Returns:
        `(body, height_at, height, blocks, block_rows, interval)`: where the scan's data begins,
        where the header tells the height, that height, blocks in a row and pixel rows of a block
        (an MCU), and blocks between restart markers; None for any other file.
    """
    if content[:2] != b"\xff\xd8":
        return None
    frame = interval = None
    position = 2
    while position + 4 <= len(content):
        marker, kind = content[position], content[position + 1]
        length = int.from_bytes(content[position + 2 : position + 4], "big")
        segment = content[position + 4 : position + 2 + length]
        if marker != 0xFF:
            return None
        if kind in (0xC0, 0xC1):
            height, width = (int.from_bytes(segment[i : i + 2], "big") for i in (1, 3))
            # Of each component: its name, its sampling factors (across, down), its table.
            factors = [divmod(value, 16) for value in segment[7::3]]
            across, down = (max(f) for f in zip(*factors, strict=True))
            if len(factors) == 1:
                across = down = 1
            frame = position + 5, height, -(-width // (8 * across)), 8 * down
        elif kind == 0xDD:
            interval = int.from_bytes(segment[:2], "big")
        position += 2 + length
        if kind == 0xDA:
            return (position, *frame, interval) if frame and interval else None
    return None


def _encode_tiles(labels):
    """Compresses labels tile by tile."""
    (height, width), (rows, columns) = labels.shape, TILE
    padding = [(0, -height % rows), (0, -width % columns)]
    padded = np.pad(labels, padding, constant_values=IGNORE_LABEL)
    return [
        zlib.compress(padded[i : i + rows, j : j + columns].tobytes())
        for i in range(0, height, rows)
        for j in range(0, width, columns)
    ]


def _bytes(values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _ints(values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
