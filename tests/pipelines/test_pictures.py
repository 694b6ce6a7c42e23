import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines import pictures
from pipelines.datasets.dataset import FileExample
from pipelines.errors import DataError
from pipelines.examples import read_checked
from tests.pipelines.tiny_data import TAXONOMY, encode, smooth_example

PIXELS = smooth_example(0, (24, 40)).image
KINDS = ["jpeg", "png", "bmp", "tiff", "webp", "gif"]


def save(pixels, kind, orientation=None, mode=None, **arguments):
    """The bytes of a picture file, written by Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if mode:
        image = image.convert(mode)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x112] = orientation
        arguments["exif"] = exif
    file = io.BytesIO()
    image.save(file, kind, **arguments)
    return file.getvalue()


def upright(content):
    """The picture as Pillow shows it."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_orientation(kind, orientation):
    content = save(PIXELS, kind, orientation)
    found = pictures.read(content)
    np.testing.assert_array_equal(found.pixels, upright(content))
    assert found.orientation == (orientation if orientation in range(1, 9) else 1)
    assert found.stored_size == (24, 40)
    assert (found.content == content) == (kind in ("jpeg", "png"))


def with_segment(jpeg, marker, data):
    return jpeg[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


@pytest.mark.parametrize("order, letters", [(">", b"MM"), ("<", b"II")])
@pytest.mark.parametrize("form, kind", [(3, "H"), (4, "I")])
def test_orientation_by_hand(order, letters, form, kind):
    entry = struct.pack(f"{order}HHI", 0x112, form, 1) + struct.pack(f"{order}{kind}", 8)
    before = struct.pack(f"{order}HHII", 0x10F, 2, 4, 0x61626300)
    entries = struct.pack(f"{order}H", 2) + before + entry.ljust(12, b"\0")
    exif = b"Exif\0\0" + letters + struct.pack(f"{order}HI", 42, 8) + entries + b"\0" * 4
    jpeg = save(PIXELS, "jpeg")
    other = with_segment(with_segment(jpeg, 0xE1, exif), 0xE1, b"http://ns.adobe.com/xap/1.0/\0")
    assert pictures.orientation(other) == 8
    for end in range(6, len(exif) - 4):  # Cut off or nonsense: no error.
        pictures.orientation(with_segment(jpeg, 0xE1, exif[:end]))
        pictures.orientation(with_segment(jpeg, 0xE1, exif[:end] + b"\xff" * (len(exif) - end)))


@pytest.mark.parametrize("arguments", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_those_of_the_other_decoders(mode, arguments):
    content = save(smooth_example(1, (37, 51)).image, "jpeg", mode=mode, **arguments)
    found = pictures.read(content).pixels
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    # Pillow and TensorFlow may round a product of CMYK in different ways.
    assert np.abs(found.astype(int) - expected).max() <= (mode == "CMYK")
    if mode != "CMYK":
        opencv = cv2.imdecode(np.frombuffer(content, "uint8"), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(found, opencv[..., ::-1])


def test_a_photo_with_a_second_picture():
    first, second = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)
    content = save(first, "mpo", save_all=True, append_images=[second])
    np.testing.assert_array_equal(pictures.read(content).pixels, upright(save(first, "jpeg")))


GREY = PIXELS[..., 0]
ALPHA = np.arange(24 * 40).reshape(24, 40).astype("uint8")


@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "bmp"])
def test_opacity_is_dropped(kind):
    arguments = {"lossless": True, "exact": True} if kind == "webp" else {}
    content = save(np.dstack([PIXELS, ALPHA]), kind, **arguments)
    np.testing.assert_array_equal(pictures.read(content).pixels, PIXELS)
    if kind in ("png", "tiff"):
        found = pictures.read(save(np.dstack([GREY, ALPHA]), kind)).pixels
        np.testing.assert_array_equal(found, np.dstack([GREY] * 3))


@pytest.mark.parametrize("kind", ["png", "tiff", "bmp", "gif"])
def test_palettes_grey_and_bits(kind):
    indices = (np.arange(24 * 40).reshape(24, 40) % 5).astype("uint8")
    colors = np.random.default_rng(0).integers(0, 256, (5, 3)).astype("uint8")
    image = Image.fromarray(indices)
    image.putpalette(colors.tobytes())
    transparent = {"transparency": 2} if kind in ("png", "gif") else {}
    for arguments in ({}, transparent):
        found = pictures.read(save(image, kind, **arguments)).pixels
        np.testing.assert_array_equal(found, colors[indices])
    found = pictures.read(save(GREY, kind)).pixels
    np.testing.assert_array_equal(found, np.dstack([GREY] * 3))
    bits = np.random.default_rng(0).integers(0, 2, (24, 40)).astype(bool)
    found = pictures.read(save(bits, kind)).pixels
    np.testing.assert_array_equal(found, np.dstack([bits * 255] * 3))


def test_grey_of_4_bits_is_stretched():
    values = (np.arange(24 * 40).reshape(24, 40) % 16).astype("uint8")
    content = save(values, "png", bits=4)
    if content[24] == 4:
        expected = np.dstack([values * 17] * 3)
        np.testing.assert_array_equal(pictures.read(content).pixels, expected)


DEEP = np.random.default_rng(0).integers(0, 65536, (24, 40, 3)).astype("uint16")


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits(suffix, channels):
    values = np.dstack([DEEP, DEEP[..., 0]])[..., :channels].squeeze()
    content = encode(values, suffix)
    colors = np.dstack([values] * 3) if channels == 1 else values[..., :3]
    found = pictures.read(content)
    np.testing.assert_array_equal(found.pixels, colors >> 8)
    assert (found.content == content) == (suffix == ".png")
    twelve = encode(values >> 4, suffix)
    with pytest.raises(DataError, match=r"16 bits.*uses 12 \(.*white could be 4095 .*value_range="):
        pictures.read(twelve)
    for limit, expected in ((4095, colors >> 8), (65535, colors >> 12)):
        found = pictures.read(twelve, (0, limit))
        np.testing.assert_array_equal(found.pixels, expected)
        if suffix == ".png":
            assert (found.content == twelve) == (limit == 65535)
    # A range that is not one of bits: 255 (value - low) / (high - low), rounded, cut off.
    expected = np.clip(np.rint((colors / 16 // 1 - 100) / 3000 * 255), 0, 255)
    np.testing.assert_array_equal(pictures.read(twelve, (100, 3100)).pixels, expected)


def test_deep_edge_cases():
    black = np.zeros((4, 5, 3), "uint16")
    np.testing.assert_array_equal(pictures.read(encode(black)).pixels, black)
    with pytest.raises(DataError, match=r"uses 8 \(largest value 7\).*could be 255 or"):
        pictures.read(encode(black + np.uint16(7)))
    # Pictures of 8 bits are left alone.
    np.testing.assert_array_equal(pictures.read(encode(PIXELS), (0, 4095)).pixels, PIXELS)
    turned = save(Image.fromarray(DEEP[..., 0]), "tiff", 6)
    assert pictures.read(turned).pixels.shape == (40, 24, 3)
    np.testing.assert_array_equal(
        pictures.read(turned).pixels[..., 0], np.rot90(DEEP[..., 0] >> 8, -1)
    )
    white_is_zero = Image.fromarray(DEEP[..., 0])
    content = save(white_is_zero, "tiff", tiffinfo={262: 0})
    np.testing.assert_array_equal(
        pictures.read(content).pixels[..., 0], (65535 - DEEP[..., 0]) >> 8
    )


def test_floating_point():
    def save_floats(values):
        # Without more arguments, older versions of OpenCV write an inexact form.
        plain = [cv2.IMWRITE_TIFF_COMPRESSION, 1]
        return cv2.imencode(".tiff", values[..., ::-1], plain)[1].tobytes()

    values = np.random.default_rng(0).uniform(0, 1, (6, 7, 3)).astype("float32")
    content = save_floats(values)
    with pytest.raises(DataError, match=r"float32 values.*`value_range=\(0, 1\)`"):
        pictures.read(content)
    found = pictures.read(content, (0, 1)).pixels
    np.testing.assert_array_equal(found, np.rint(values.astype(float) * 255))
    values[2, 3, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        pictures.read(save_floats(values), (0, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncated(kind, part):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype("uint8")
    content = save(noise, kind)
    pictures.read(content)
    with pytest.raises(DataError, match=f"(?i)the {kind} file is truncated"):
        pictures.read(content[: int(part * len(content))])


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_an_error_or_a_picture(kind):
    content = save(PIXELS, kind, **({"lossless": True} if kind == "webp" else {}))
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        if rng.uniform() < 0.3:
            damaged = damaged[: rng.integers(0, len(damaged))]
        try:
            found = pictures.read(bytes(damaged)).pixels
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3


def frames(kind):
    images = [Image.fromarray(np.full((8, 8, 3), shade, "uint8")) for shade in (0, 99, 200)]
    return save(images[0], kind, save_all=True, append_images=images[1:])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty"),
        (bytes(500), "nothing but zeros"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS.*git lfs pull"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1", "this is an HEIC file"),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1", "this is an AVIF file"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "this is a video"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "this is a JPEG 2000"),
        (b"<!DOCTYPE html>\n<html>", "this is a web page"),
        (b"no picture", "JPEG, PNG, TIFF, WebP, GIF or BMP file, this is something else"),
        (frames("gif"), "this GIF is an animation of 3 frames"),
        (frames("webp"), "this WebP is an animation of 3 frames"),
        (frames("tiff"), "this TIFF has 3 pages"),
    ],
)
def test_refused_by_name(content, message):
    with pytest.raises(DataError, match=message):
        pictures.read(content)


def test_jpegs_of_other_forms_are_named():
    jpeg = save(PIXELS, "jpeg")
    frame = jpeg.index(b"\xff\xc0")
    for place, value, message in (
        (frame + 4, 12, "must have 8 bits a channel, this has 12"),
        (frame + 1, 0xC3, "this is lossless"),
        (frame + 1, 0xC9, "this is arithmetic"),
        (frame + 9, 2, "1, 3 or 4 channels, this has 2"),
        (frame + 6, 0, "has no pixels"),
    ):
        changed = bytearray(jpeg)
        changed[place] = value
        with pytest.raises(DataError, match=message):
            pictures.read(bytes(changed))


def test_smaller_versions_in_a_tiff_are_passed_over():
    whole = Image.fromarray(PIXELS)
    small = whole.resize((20, 12))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    file = io.BytesIO()
    whole.save(file, "tiff", save_all=True, append_images=[small])
    with Image.open(io.BytesIO(file.getvalue())) as image:
        image.seek(1)
        assert image.tag_v2[254] == 1
    np.testing.assert_array_equal(pictures.read(file.getvalue()).pixels, PIXELS)


def test_too_large_is_said_before_decoding():
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 40_000, 30_000)
    with pytest.raises(DataError, match=r"fewer than 2\^29 .*40000 x 30000"):
        pictures.read(header + b"\x08\x02\0\0\0" + b"\0" * 30)
    limit = Image.MAX_IMAGE_PIXELS
    bmp = bytearray(save(PIXELS, "bmp"))
    bmp[18:26] = struct.pack("<ii", 40_000, 30_000)
    with pytest.raises(DataError, match=r"fewer than 2\^29 .*40000 x 30000"):
        pictures.read(bytes(bmp))
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("nan")), (0, float("inf"))])
def test_ranges_that_cannot_be(value_range):
    with pytest.raises(DataError, match="`value_range` takes the lowest and the highest"):
        pictures.check_range(value_range)


def test_size_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(save(PIXELS, "jpeg", 6))
    (tmp_path / "b").write_bytes(b"nothing")
    assert pictures.size_of_file(tmp_path / "a") == (24, 40)
    assert pictures.size_of_file(tmp_path / "b") is None
    assert pictures.size_of_file(tmp_path / "missing") is None


# Masks of turned images -----------------------------------------------------------------------

LABELS = np.zeros((24, 40), "uint8")
LABELS[:5, :9], LABELS[10:, 30:] = 1, 2  # Symmetrical in no way.


def example(tmp_path, orientation, mask, image=PIXELS, kind="jpeg"):
    (tmp_path / "image").write_bytes(save(image, kind, orientation))
    (tmp_path / "mask").write_bytes(mask)
    return FileExample("a", tmp_path / "image", tmp_path / "mask")


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_lie_as_the_image(tmp_path, kind, orientation):
    turned = pictures.turn(LABELS, orientation)
    for way, mask in (("stored", LABELS), ("upright", turned)):
        found = read_checked(
            example(tmp_path, orientation, encode(mask), kind=kind), TAXONOMY, turned_masks=way
        )
        np.testing.assert_array_equal(found.labels, turned)
        assert found.pixels.shape[:2] == turned.shape
        assert found.orientation == (orientation if kind in ("jpeg", "png") else 1)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_the_size_of_a_mask_tells_how_it_lies(tmp_path, orientation):
    turned = pictures.turn(LABELS, orientation)
    for mask in (LABELS, turned):
        current = example(tmp_path, orientation, encode(mask))
        if orientation > 4:
            np.testing.assert_array_equal(read_checked(current, TAXONOMY).labels, turned)
        else:
            with pytest.raises(DataError, match=f'orientation {orientation}.*`turned_masks="upr'):
                read_checked(current, TAXONOMY)
    with pytest.raises(DataError, match="must have the size of its image"):
        read_checked(example(tmp_path, orientation, encode(LABELS[1:])), TAXONOMY)
    if orientation > 4:
        with pytest.raises(DataError, match='`turned_masks="upright"` does not fit'):
            current = example(tmp_path, orientation, encode(LABELS))
            read_checked(current, TAXONOMY, turned_masks="upright")


def test_square_images_fit_both_ways(tmp_path):
    square = example(tmp_path, 6, encode(LABELS[:24, :24]), PIXELS[:, :24])
    with pytest.raises(DataError, match=r"orientation 6.*fits both ways"):
        read_checked(square, TAXONOMY)


def test_a_mask_with_a_tag_of_its_own_is_turned_by_it(tmp_path):
    found = read_checked(example(tmp_path, 3, save(LABELS, "png", 3)), TAXONOMY)
    np.testing.assert_array_equal(found.labels, LABELS[::-1, ::-1])
    with pytest.raises(DataError, match="must have the size"):
        read_checked(example(tmp_path, None, save(LABELS, "png", 8)), TAXONOMY)
