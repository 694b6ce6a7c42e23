"""A SavedModel decodes files as preparation and predict.py read them, bit for bit."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg.serving import serving_input
from pipelines import pictures
from pipelines.errors import DataError
from tests.pipelines.tiny_data import encode, smooth_example

PIXELS = smooth_example(0, (24, 40)).image
DEEP = np.random.default_rng(0).integers(0, 65536, (12, 20, 3)).astype("uint16")
decode = tf.function(
    serving_input.decode, input_signature=[tf.TensorSpec((), "string")], autograph=False
)
check = tf.function(
    serving_input.check_images,
    input_signature=[tf.TensorSpec((None, None, None, 3), "float32")],
    autograph=False,
)


def save(pixels, kind, mode=None, **arguments):
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **arguments)
    return file.getvalue()


def exif(orientation, order=">"):
    letters = {"<": b"II", ">": b"MM"}[order]
    entries = struct.pack(f"{order}HHIHH", 0x10F, 3, 1, 7, 0)
    entries += struct.pack(f"{order}HHIHH", 0x112, 3, 1, orientation, 0)
    head = letters + struct.pack(f"{order}HIH", 42, 8, 2)
    return b"Exif\0\0" + head + entries + bytes(4)


@pytest.mark.parametrize(
    "content",
    [
        *(save(PIXELS, "jpeg", exif=exif(o, order)) for o in range(10) for order in "<>"),
        *(save(PIXELS, "png", exif=exif(o)[6:]) for o in range(1, 9)),
        save(PIXELS, "png", exif=exif(6)),
        *(save(PIXELS, "jpeg", mode) for mode in ("L", "CMYK")),
        save(PIXELS, "jpeg", progressive=True, subsampling=0),
        *(save(PIXELS, "png", mode) for mode in ("1", "L", "LA", "P", "RGBA")),
        save(PIXELS, "png", "P", transparency=3),
        encode(DEEP),
        encode(DEEP[..., 0]),
        encode(DEEP * 0),
    ],
)
def test_decodes_as_the_reader_of_the_host(content):
    np.testing.assert_array_equal(decode(content), pictures.read(content).pixels)


@pytest.mark.parametrize("value_range", [(0, 4095), (0, 65535), (0.0, 1000.0), (-7, 40000.5)])
def test_decodes_deep_images_with_a_range(value_range):
    for content in (encode(DEEP), encode(DEEP[..., 0]), encode(DEEP // 100), encode(PIXELS)):
        expected = pictures.read(content, value_range).pixels
        np.testing.assert_array_equal(serving_input.decode(content, value_range), expected)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_both_read_damaged_tags_alike(kind):
    rng = np.random.default_rng(0)
    whole = exif(6)[0 if kind == "jpeg" else 6 :]
    turned = 0
    for _ in range(150):
        data = bytearray(whole[: rng.integers(len(whole) - 12, len(whole) + 1)])
        for place in rng.integers(0, len(data), rng.integers(0, 2)):
            data[place] = rng.choice([0, 1, 3, 4, 6, 8, 42, 73, 77, 255])
        content = save(PIXELS, kind)
        if kind == "jpeg":
            segment = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + bytes(data)
            content = content[:2] + segment + content[2:]
        else:
            chunk = struct.pack(">I", len(data)) + b"eXIf" + bytes(data) + bytes(4)
            content = content[:33] + chunk + content[33:]
        raw = np.frombuffer(content, "uint8")
        find = getattr(serving_input, f"_exif_in_{kind}")
        start, end = find(tf.constant(content), tf.constant(raw)).numpy()
        found = int(serving_input._orientation(tf.constant(raw[start:end])))
        assert found == pictures.orientation(content)
        turned += found != 1
    assert turned > 20


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "must be a JPEG or PNG file"),
        (save(PIXELS, "webp"), "must be a JPEG or PNG file"),
        (save(PIXELS, "bmp"), "must be a JPEG or PNG file"),
        (save(PIXELS, "gif"), "must be a JPEG or PNG file"),
        (save(PIXELS, "jpeg")[:300], ""),
        (save(PIXELS, "png")[:300], ""),
        (b"\xff\xd8\xff", ""),
        (b"\x89PNG\r\n\x1a\n", ""),
        (encode(DEEP >> 4), "16 bits must use their range.*8 bits first"),
    ],
)
def test_what_the_graph_refuses(content, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){message}"):
        decode(content)
    if b"WEBP" not in content and content[:2] not in (b"BM", b"GI"):
        with pytest.raises(DataError):
            pictures.read(content)


RAMP = np.linspace(0, 255, 60, dtype="float32").reshape(1, 4, 5, 3)


def test_float_images_that_pass():
    black = np.zeros_like(RAMP)
    for images in (RAMP, black, black + 1, RAMP - 40, RAMP * 1.2, RAMP[:0], np.round(RAMP / 200)):
        np.testing.assert_array_equal(check(images), images)


@pytest.mark.parametrize(
    "images", [RAMP / 255, RAMP / 127.5 - 1, RAMP - 124, RAMP * 257, RAMP + np.nan]
)
def test_float_images_of_another_range(images):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)from 0 to 255.*multiply"):
        check(images)
