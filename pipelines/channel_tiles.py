"""Storage of images of any channels and depth in tiles, so that windows are cheap to read.

A tile holds `TILE` pixels. The lowest bytes of all values come first, then the next higher ones:
upper bytes vary little between neighbors, so that zlib compresses them well and reads them fast.
Padding beyond the image is 0.
"""

import zlib

import numpy as np
import tensorflow as tf

TILE = (128, 256)
# 1024 x 1024 x 4 uint16: 0.13 s and 58.5 % of the size; zlib's default, 6: 0.20 s and 57.9 %.
_LEVEL = 4


def encode(values):
    """Compresses an image tile by tile, row by row of tiles.

    Args:
        values: uint8, uint16 or float32 array `(height, width, channels)`.

    Returns:
        list of bytes.
    """
    (height, width), (rows, columns) = values.shape[:2], TILE
    values = np.pad(values, [(0, -height % rows), (0, -width % columns), (0, 0)])
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    size = values.dtype.itemsize
    tiles = []
    for i in range(0, height, rows):
        for j in range(0, width, columns):
            tile = np.ascontiguousarray(values[i : i + rows, j : j + columns])
            planes = tile.view("uint8").reshape(-1, size).T.tobytes()
            tiles.append(zlib.compress(planes, _LEVEL))
    return tiles


def decode_window(tiles, width, first, extent, pixels):
    """Decodes a part of an image.

    Args:
        tiles: string tensor `(tiles,)`, as `encode` returns them.
        width: int32 scalar, columns of the image.
        first, extent: int32 `(2,)`, first row and column, rows and columns of the part.
        pixels: `kseg.pixel_format.PixelFormat` of the image.

    Returns:
        tensor `(*extent, channels)` of the dtype of `pixels`.
    """
    tile = tf.constant(TILE)
    begin, end = first // tile, (first + extent - 1) // tile + 1
    tiles = tf.reshape(tiles, (-1, (width - 1) // TILE[1] + 1))[
        begin[0] : end[0], begin[1] : end[1]
    ]
    size, (rows, columns), channels = np.dtype(pixels.dtype).itemsize, TILE, pixels.channels
    planes = tf.io.decode_raw(tf.io.decode_compressed(tf.reshape(tiles, (-1,)), "ZLIB"), "uint8")
    down, across = tf.unstack(tf.shape(tiles))
    planes = tf.reshape(planes, (down, across, size, rows, columns, channels))
    # The bytes are transposed and cut, not the values, of which only the window is needed.
    planes = tf.transpose(planes, (2, 0, 3, 1, 4, 5))
    planes = tf.reshape(planes, (size, down * rows, across * columns, channels))
    first = tf.concat([[0], first - begin * tile, [0]], axis=0)
    planes = tf.slice(planes, first, tf.concat([[size], extent, [channels]], axis=0))
    return _joined(tf.unstack(planes, num=size), pixels.dtype)


def _joined(planes, dtype):
    """Joins bytes to values, from the lowest to the highest."""
    if dtype == "uint8":
        return planes[0]
    whole = "uint16" if dtype == "uint16" else "uint32"
    values = tf.cast(planes[0], whole)
    for number, plane in enumerate(planes[1:], 1):
        shift = tf.constant(8 * number, whole)
        values = tf.bitwise.bitwise_or(values, tf.bitwise.left_shift(tf.cast(plane, whole), shift))
    return values if dtype == "uint16" else tf.bitcast(values, "float32")
