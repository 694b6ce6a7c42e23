import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipelines.datasets.label_files import INDEX_MASK, BinaryMask
from pipelines.datasets.mask_files import decode_mask
from pipelines.errors import DataError
from tests.pipelines.tiny_data import encode


def png(values, bits, color_type=0, palette=b""):
    """A PNG, packed by hand: `values` are `(height, width)` or `(height, width, channels)`."""
    height, width = values.shape[:2]
    rows = b""
    for row in values.reshape(height, -1):
        digits = "".join(f"{value:0{bits}b}" for value in row.tolist())
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        if data or kind == b"IEND":
            checksum = struct.pack(">I", zlib.crc32(kind + data))
            content += struct.pack(">I", len(data)) + kind + data + checksum
    return content


def saved(picture, kind, **options):
    """The bytes of a Pillow image as a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def values_up_to(most, shape=(5, 7), dtype="uint8"):
    """Every value from 0 to `most`, or as many as there are pixels."""
    return np.linspace(0, most, np.prod(shape)).round().astype(dtype).reshape(shape)


@pytest.mark.parametrize(
    "color_type, bits", [*((0, bits) for bits in (1, 2, 4, 8, 16)), (3, 1), (3, 2), (3, 4), (3, 8)]
)
def test_depths_are_read_unscaled(color_type, bits):
    values = values_up_to((1 << bits) - 1, dtype="uint16")
    palette = bytes(range(3)) * min(256, 1 << bits) if color_type == 3 else b""
    mask = decode_mask(png(values, bits, color_type, palette))
    np.testing.assert_array_equal(mask.values, values)
    assert (mask.palette is not None) == (color_type == 3)
    if color_type == 0:
        assert mask.white == (1 << bits) - 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("color_type, channels", [(2, 3), (4, 2), (6, 4)])
def test_channels_of_any_depth(bits, color_type, channels):
    values = values_up_to((1 << bits) - 1, dtype="uint16")
    stack = np.dstack([values] * channels)
    if channels in (2, 4):
        stack[..., -1] = (1 << bits) - 1
    content = png(stack, bits, color_type)
    np.testing.assert_array_equal(INDEX_MASK(content), values)
    if color_type != 4:
        stack[..., 0] = 3
        mask = decode_mask(png(stack, bits, color_type))
        assert mask.is_colored
        np.testing.assert_array_equal(mask.values, stack[..., :3])


TIFF_MODES = {
    "1": Image.fromarray(values_up_to(1).astype(bool)),
    "L": Image.fromarray(values_up_to(255)),
    "I;16": Image.fromarray(values_up_to(60000, dtype="uint16")),
    "I": Image.fromarray(values_up_to(60000, dtype="int32")),
    "F": Image.fromarray(values_up_to(300, dtype="float32")),
    "RGB": Image.fromarray(np.dstack([values_up_to(9)] * 3)),
}


@pytest.mark.parametrize("mode", TIFF_MODES)
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_tiff(mode, compression):
    picture = TIFF_MODES[mode]
    expected = np.asarray(picture).astype("uint16")
    found = INDEX_MASK(saved(picture, "TIFF", compression=compression))
    np.testing.assert_array_equal(found, expected[..., 0] if mode == "RGB" else expected)


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "PNG"])
def test_palettes(kind):
    picture = Image.fromarray(values_up_to(3)).convert("P")
    picture.putpalette([9, 8, 7, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    mask = decode_mask(saved(picture, kind))
    np.testing.assert_array_equal(mask.values, values_up_to(3))
    assert mask.palette[:4].tolist() == [[9, 8, 7], [200, 0, 0], [0, 200, 0], [0, 0, 200]]
    assert mask.has_palette_colors


def test_a_grey_palette_is_none():
    picture = Image.fromarray(values_up_to(3)).convert("P")
    picture.putpalette([value for value in range(256) for _ in range(3)])
    assert not decode_mask(saved(picture, "PNG")).has_palette_colors


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_lie_as_they_are_stored(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    for kind in ("PNG", "TIFF"):
        content = saved(Image.fromarray(values_up_to(9)), kind, exif=exif)
        np.testing.assert_array_equal(decode_mask(content).values, values_up_to(9))
    # Colors of 16 bits are not read by Pillow.
    values, content = values_up_to(65535, (5, 7, 3), "uint16"), io.BytesIO()
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(content, values, photometric="rgb", metadata=None, extratags=tags)
    np.testing.assert_array_equal(decode_mask(content.getvalue()).values, values)


def test_what_opacity_hides():
    """A colour that is there both visible and invisible has two readings."""
    shade = np.uint8([[0, 0, 5, 5]])
    for opacity in ([[255, 255, 9, 255]], [[0, 0, 255, 255]], [[7, 7, 7, 7]], [[0, 0, 0, 0]]):
        mask = decode_mask(png(np.dstack([shade, np.uint8(opacity)]), 8, 4))
        np.testing.assert_array_equal(mask.values, shade)
    for channels, color_type in ((1, 4), (3, 6)):
        stack = np.dstack([shade] * channels + [np.uint8([[0, 255, 255, 255]])])
        with pytest.raises(DataError, match="both visible and fully transparent"):
            decode_mask(png(stack, 8, color_type))


GREY = Image.fromarray(values_up_to(9))


@pytest.mark.parametrize(
    "content, message",
    [
        (saved(GREY, "GIF"), "must be a PNG, BMP or TIFF file, this is a GIF"),
        (saved(GREY, "WEBP", lossless=True), "this is a WebP"),
        (saved(GREY, "JPEG"), "must not be a JPEG file: JPEG changes values"),
        (saved(GREY, "TIFF", compression="jpeg"), "compressed by JPEG, which changes values"),
        (saved(GREY, "TIFF", save_all=True, append_images=[GREY]), "one picture, this .* holds 2"),
        (saved(GREY, "PNG", save_all=True, append_images=[Image.new("L", (7, 5))]), "holds 2"),
        (saved(GREY.convert("CMYK"), "TIFF"), "must be gray, RGB or have a palette, .* CMYK"),
        (saved(Image.fromarray(np.float32([[0.5]])), "TIFF"), "whole numbers from 0 to 65535"),
        (saved(Image.fromarray(np.int32([[-1]])), "TIFF"), "whole numbers from 0 to 65535"),
        (saved(Image.fromarray(np.int32([[65536]])), "TIFF"), "whole numbers from 0 to 65535"),
        (saved(GREY, "TIFF", tiffinfo={262: 0}), "zero means white has two readings"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"\x93NUMPY\x01\x00", "PNG, BMP or TIFF file, this is .*NumPy"),
        (b"", "the file is empty"),
        (b"nonsense", "a mask must be a PNG, BMP or TIFF file, this is"),
    ],
)
def test_what_is_not_read(content, message):
    with pytest.raises(DataError, match=message):
        decode_mask(content)


def test_too_large_is_said_before_it_is_decoded():
    content = bytearray(png(np.zeros((1, 1), int), 8))
    content[16:24] = struct.pack(">II", 50000, 50000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    with pytest.raises(DataError, match=r"fewer than 2\^29 .* this has 50000 x 50000"):
        decode_mask(bytes(content))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_every_beginning_of_a_file_is_refused(kind):
    content = saved(GREY, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
    for length in range(len(content)):
        try:
            values = decode_mask(content[:length]).values
        except DataError as error:
            assert "\n" not in str(error)
        else:
            np.testing.assert_array_equal(values, values_up_to(9))


def test_every_changed_bit_of_a_png_is_noticed():
    content = png(values_up_to(3), 2)
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(DataError):
            decode_mask(bytes(damaged))


def test_binary_masks_of_any_kind():
    wanted = np.zeros((40, 60), "uint8")
    wanted[10:30, 15:45] = 1
    grey = Image.fromarray(255 * wanted)
    blurred = cv2.GaussianBlur(255 * wanted, (5, 5), 0)
    wide = Image.fromarray(65535 * wanted.astype("uint16"))
    reader = BinaryMask(3, 7)
    for content in (
        saved(grey, "JPEG", quality=60),
        saved(grey.convert("RGB"), "JPEG", quality=60, subsampling=0),
        saved(grey, "PNG"),
        saved(grey.convert("1"), "PNG"),
        saved(grey.convert("RGBA"), "PNG"),
        saved(wide, "PNG"),
    ):
        np.testing.assert_array_equal(reader(content), np.where(wanted, 7, 3))
    np.testing.assert_array_equal(reader(encode(blurred)), np.where(blurred >= 128, 7, 3))
    with pytest.raises(DataError, match="holds 0 and 1 of 255"):
        reader(encode(wanted))
    with pytest.raises(DataError, match="has colors"):
        reader(encode(np.uint8([[[255, 0, 0]]])))
