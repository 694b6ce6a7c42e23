import io

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.label_files import INDEX_MASK, ColorMask, Recoded, RedChannel
from pipelines.errors import DataError
from tests.pipelines.tiny_data import encode

VALUES = np.uint8([[0, 1, 2], [2, 1, 255]])
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def palette_png(values, bits=8):
    picture = Image.new("P", values.shape[::-1])
    picture.putdata(values.reshape(-1).tolist())
    picture.putpalette([10, 20, 30] * 256)
    file = io.BytesIO()
    picture.save(file, "PNG", bits=bits)
    return file.getvalue()


@pytest.mark.parametrize(
    "content, values",
    [
        (encode(VALUES), VALUES),
        (encode(VALUES.astype("uint16") + 300), VALUES.astype(int) + 300),
        (encode(np.dstack([VALUES] * 3)), VALUES),
        (encode(np.dstack([VALUES] * 4)), VALUES),
        (palette_png(VALUES), VALUES),
        (palette_png(VALUES % 4, bits=2), VALUES % 4),
    ],
)
def test_index_mask(content, values):
    np.testing.assert_array_equal(INDEX_MASK(content), values)


def test_index_mask_with_colours():
    with pytest.raises(DataError, match="one channel, or three that are equal, this has colors"):
        INDEX_MASK(encode(np.uint8([[RED, WHITE]])))


def test_color_mask():
    picture = np.uint8([[RED, BLUE], [WHITE, RED]])
    np.testing.assert_array_equal(
        ColorMask((WHITE, RED, BLUE), (0, 1, 2))(encode(picture)), [[1, 2], [0, 1]]
    )
    with pytest.raises(DataError, match=r"in the class table; found #ff0000 \(2 pixels\), #0000ff"):
        ColorMask((WHITE,), (0,))(encode(picture))
    np.testing.assert_array_equal(
        ColorMask((WHITE,), (0,), unknown=7)(encode(picture)), [[7, 7], [0, 7]]
    )


def test_grey_is_a_colour_too():
    mask = ColorMask(((0, 0, 0), WHITE), (0, 1))
    np.testing.assert_array_equal(mask(encode(np.uint8([[255, 0]]))), [[1, 0]])


def test_palette_colours():
    """If colours count, the palette's colours are read."""
    mask = ColorMask(((10, 20, 30),), (0,))
    np.testing.assert_array_equal(mask(palette_png(VALUES)), np.zeros((2, 3)))


def test_red_channel():
    np.testing.assert_array_equal(
        RedChannel()(encode(np.uint8([[[3, 7, 0], [9, 1, 0]]]))), [[3, 9]]
    )
    with pytest.raises(DataError, match="three channels of 8 bits"):
        RedChannel()(encode(VALUES))


def test_recoded():
    reader = Recoded(INDEX_MASK, "the old numbers", (5, 300, -1))
    np.testing.assert_array_equal(reader(encode(np.uint8([[0, 1]]))), [[5, 300]])
    for value in (2, 3):
        with pytest.raises(DataError, match=rf"of the old numbers; found {value} \(1 pixels\)"):
            reader(encode(np.uint8([[0, value]])))


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", encode(VALUES)[:30], palette_png(VALUES)[:60]]
)
def test_broken_files(content):
    for reader in (INDEX_MASK, ColorMask((RED,), (0,))):
        with pytest.raises(DataError, match="the label cannot be decoded"):
            reader(content)
