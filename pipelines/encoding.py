"""Encoding of records, designed so that any window of image and labels is cheap to read.

The image is the original JPEG or PNG file. If its EXIF tag turns it, the orientation is stored
beside it, and everything decoded from it is turned upright. Sizes and windows are those of
the upright image; `pipelines.pictures` defines the rules of decoding.

A baseline JPEG whose restart markers are at the ends of rows of blocks (as `encode_jpeg` sets them)
can be cut into bands of rows without decoding: the header with another height and the bytes between
two markers form a JPEG of their own. Entropy decoding, which is most of the work, is thus limited
to the rows of the window; otherwise it would include all rows above. The index of the bands is
stored beside the image.

An image that is not 8-bit RGB (a data set with a `kseg.pixel_format.PixelFormat`) is stored as its
values, upright, in tiles: see `pipelines.channel_tiles`.

The labels are stored as tiles of `TILE` labels, row by row, each compressed with zlib; labels
beyond the image are 255. This is smaller than one PNG, and a window needs only its tiles.
"""

import math
import zlib

import cv2
import numpy as np
import tensorflow as tf

from pipelines import channel_tiles
from pipelines.datasets.dataset import IGNORE_LABEL
from pipelines.pictures import JPEG_DCT

TILE = (128, 256)
_FEATURES = {
    "image": tf.io.FixedLenFeature([], tf.string),
    # Records of format 3 have no orientation: their images are upright as stored.
    "orientation": tf.io.FixedLenFeature([], tf.int64, default_value=1),
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
_TILE_FEATURES = {
    "image_tiles": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
    **{name: _FEATURES[name] for name in ("tiles", "id", "shard", "index", "height", "width")},
}
_END_OF_IMAGE = b"\xff\xd9"


def encode_record(image, labels, *, id, shard, index, orientation=1):
    """Writes a record.

    Args:
        image: bytes of a JPEG or PNG file; or an array `(height, width, channels)`, upright, of a
            type that `pipelines.channel_tiles.encode` takes.
        labels: uint8 array `(height, width)`, 255 = ignored.
        id: str, the example's name.
        shard: str, the key of the shard that the record belongs to.
        index: int, its index in the shard.
        orientation: int, 1 to 8 as in EXIF: the turn that aligns the image with the labels.

    Returns:
        bytes.
    """
    if isinstance(image, bytes):
        height_at, band_rows, bands = index_jpeg(image) or (0, 0, [])
        stored = {
            "image": _bytes([image]),
            "orientation": _ints([orientation]),
            "height_at": _ints([height_at]),
            "band_rows": _ints([band_rows]),
            "bands": _ints(bands),
        }
    else:
        stored = {"image_tiles": _bytes(channel_tiles.encode(image))}
    height, width = labels.shape
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                **stored,
                "tiles": _bytes(_encode_tiles(labels)),
                "id": _bytes([id.encode()]),
                "shard": _bytes([shard.encode()]),
                "index": _ints([index]),
                "height": _ints([height]),
                "width": _ints([width]),
            }
        )
    ).SerializeToString(deterministic=True)


def parse_record(record, pixels=None):
    """Reads a record.

    Args:
        record: string scalar.
        pixels: `kseg.pixel_format.PixelFormat` of the data set; None: 8-bit RGB.

    Returns:
        dict: `image`, `id`, `shard` strings; `tiles` strings `(tiles,)`; `orientation`,
        `height_at`, `band_rows`, `index`, `height`, `width` int32 and `bands` int32 `(bands + 1,)`,
        empty without index. With `pixels`: `image_tiles`, strings, instead of `image`,
        `orientation`, `height_at`, `band_rows` and `bands`.
    """
    features = _FEATURES if pixels is None else _TILE_FEATURES
    example = tf.io.parse_single_example(record, features)
    return {
        name: tf.cast(value, "int32") if value.dtype == tf.int64 else value
        for name, value in example.items()
    }


def encode_jpeg(pixels, quality):
    """Writes a JPEG that `index_jpeg` can index, chroma at half the resolution.

    Args:
        pixels: uint8 RGB array `(height, width, 3)`.
        quality: int, 1 to 100.

    Returns:
        bytes.
    """
    # Restart markers are numbered from 0 to 7: bands begin where the number returns to 0.
    blocks = -(-pixels.shape[1] // 16)
    parameters = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_OPTIMIZE: 1,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_RST_INTERVAL: blocks // math.gcd(8, blocks),
    }
    flat = [value for pair in parameters.items() for value in pair]
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flat)[1].tobytes()


def index_jpeg(content):
    """Finds the bands of a JPEG.

    Args:
        content: bytes of an image file.

    Returns:
        None if it cannot be cut into bands: no baseline JPEG, no restart markers, or markers within
        rows of blocks. Else `(height_at, band_rows, bands)`: offset of the height in the header,
        rows of a band (the last may have fewer), and offset of each band, followed by the end of
        the last.
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
    # Markers are numbered from 0 to 7: a band begins at a row of blocks whose marker is 0.
    rows = math.lcm(8 * interval, blocks) // blocks
    bands = [*starts[:: rows * blocks // interval].tolist(), len(content)]
    return height_at, rows * block_rows, bands


def decode_image(example, pixels=None):
    """Decodes the whole image, upright.

    Args:
        example: of `parse_record`.
        pixels: as given to `parse_record`.

    Returns:
        uint8 `(height, width, 3)`; or `(height, width, channels)` of the dtype of `pixels`.
    """
    if pixels is not None:
        size = tf.stack([example["height"], example["width"]])
        return decode_window(example, tf.zeros_like(size), size, 1, pixels)
    content = example["image"]
    image = tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.io.decode_jpeg(content, channels=3, dct_method=JPEG_DCT),
        lambda: tf.io.decode_png(content, channels=3),
    )
    return _turn(image, example["orientation"])


def decode_whole(example, pixels=None):
    """Decodes image (as `decode_image`), labels, uint8 `(height, width)`, and id of a record."""
    return decode_image(example, pixels), decode_labels(example), example["id"]


def decode_window(example, first, extent, ratio, pixels=None):
    """Decodes a part of the image, at a fraction of the resolution.

    Args:
        example: of `parse_record`.
        first, extent: int32 `(2,)`, first row and column, rows and columns; multiples of `ratio`.
        ratio: int32 scalar, 1, 2, 4 or 8; see `window_ratio`.
        pixels: as given to `parse_record`; the ratio is 1 then.

    Returns:
        uint8 `(*(extent / ratio), 3)`; or `(*extent, channels)` of the dtype of `pixels`. At
        the edges of a window of a JPEG the chroma may differ a little from that of the whole,
        because it has no neighbors to be smoothed with.
    """
    if pixels is not None:
        return channel_tiles.decode_window(
            example["image_tiles"], example["width"], first, extent, pixels
        )
    orientation = example["orientation"]
    size, first, extent = _in_file(example, first, extent)

    def from_bands():
        rows, bands = example["band_rows"], example["bands"]
        begin, end = first[0] // rows, (first[0] + extent[0] - 1) // rows + 1
        height = tf.minimum(end * rows, size[0]) - begin * rows
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
            lambda r=r: tf.io.decode_and_crop_jpeg(
                content, window, channels=3, ratio=r, dct_method=JPEG_DCT
            )
            for r in _RATIOS
        ]
        choice = tf.reduce_sum(tf.cast(ratio >= tf.constant(_RATIOS[1:]), "int32"))
        return tf.switch_case(choice, decoders)

    def from_png():
        image = tf.io.decode_png(example["image"], channels=3)
        return tf.slice(image, tf.pad(first, [[0, 1]]), tf.concat([extent, [3]], axis=0))

    window = tf.case(
        [
            (tf.size(example["bands"]) > 0, from_bands),
            (tf.io.is_jpeg(example["image"]), lambda: from_jpeg(example["image"], first)),
        ],
        default=from_png,
    )
    return _turn(window, orientation)


def window_ratio(example, extent, shape, pixels=None):
    """Finds the largest reduction at which a window still has the pixels of its target size.

    Args:
        example: of `parse_record`.
        extent, shape: int32 `(2,)`, rows and columns of the window, and of its target size.
        pixels: as given to `parse_record`.

    Returns:
        int32 scalar: 1, 2, 4 or 8 for a JPEG, which can be decoded at these, else 1. Where the
        image is turned, its size is a multiple.
    """
    if pixels is not None:
        return tf.constant(1)
    size = tf.stack([example["height"], example["width"]])
    # Windows are counted from the other edge of a turned image, which has to fall on a multiple.
    exact = example["orientation"] == 1
    enough = [
        tf.reduce_all(extent // ratio >= shape) & (exact | tf.reduce_all(size % ratio == 0))
        for ratio in _RATIOS[1:]
    ]
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


def _in_file(example, first, extent):
    """Returns image size, window position and window extent before turning, int32 `(2,)` each."""
    orientation = example["orientation"]
    size = tf.stack([example["height"], example["width"]])
    mirrored = tf.stack([_mirrors(orientation, _ROWS), _mirrors(orientation, _COLUMNS)])
    first = tf.where(mirrored, size - first - extent, first)
    turned = tf.where(orientation > 4, tf.constant([1, 0]), tf.constant([0, 1]))
    return tuple(tf.gather(values, turned) for values in (size, first, extent))


def _turn(image, orientation):
    """Equivalent of `pipelines.pictures.turn` in a graph; uint8 `(height, width, 3)`."""

    def turned():
        axes = tf.where(orientation > 4, tf.constant([1, 0, 2]), tf.constant([0, 1, 2]))
        mirrored = [_mirrors(orientation, numbers) for numbers in (_ROWS, _COLUMNS)]
        return tf.raw_ops.Reverse(tensor=tf.transpose(image, axes), dims=[*mirrored, False])

    return tf.cond(orientation == 1, lambda: image, turned)


def _mirrors(orientation, numbers):
    return tf.reduce_any(orientation == tf.constant(numbers))


_ROWS, _COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)  # Orientations that mirror an axis, after transposing.
_RATIOS = (1, 2, 4, 8)
_BYTES = [bytes([value]) for value in range(256)]


def _parse_header(content):
    """Reads a baseline JPEG's header up to its only scan.

    Returns:
        `(body, height_at, height, blocks, block_rows, interval)`: offset of the scan's data, offset
        of the height in the header, the height, blocks in a row, pixel rows of a block (an MCU),
        and blocks between restart markers; None for any other file.
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
            # Per component: its name, its sampling factors (across, down), its table.
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
