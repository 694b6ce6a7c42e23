"""Images that keep their channels and values: files, statistics, records, loading."""

import io
import json
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tifffile

import pipelines
from kseg.pixel_format import PixelFormat, to_picture
from pipelines import channel_files, channel_statistics, channel_tiles, loader, pictures
from pipelines.errors import DataError

RNG = np.random.default_rng(0)
SIZE = (140, 270)  # More than one tile along both axes.


def random_values(shape, dtype, high=None):
    if dtype == "float32":
        return (RNG.normal(size=shape) * 30 + 100).astype("float32")
    return RNG.integers(0, high or np.iinfo(dtype).max, shape, dtype=dtype)


def encoded(suffix, values):
    order = [2, 1, 0, 3][: values.shape[2]] if values.ndim == 3 and values.shape[2] > 2 else None
    return cv2.imencode(suffix, values if order is None else values[..., order])[1].tobytes()


def npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def pages(*values):
    return cv2.imencodemulti(".tiff", list(values))[1].tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_keeps_channels_and_values(channels, dtype):
    values = random_values((6, 5, channels), dtype)
    found = channel_files.read(encoded(".png", values), channels)
    np.testing.assert_array_equal(found.pixels, values)
    assert found.pixels.dtype == dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_of_one_page_keeps_channels_and_values(channels, dtype):
    values = random_values((6, 5, channels), dtype)
    found = channel_files.read(encoded(".tiff", values), channels).pixels
    np.testing.assert_array_equal(found, values)
    assert found.dtype == dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_pages_of_a_tiff_are_its_channels(dtype):
    values = random_values((6, 5, 7), dtype)
    found = channel_files.read(pages(*values.transpose(2, 0, 1)), 7).pixels
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "shape, options",
    [
        ((6, 5, 4), {"photometric": "rgb"}),
        ((6, 5, 4), {"photometric": "minisblack", "planarconfig": "contig"}),
        ((6, 5, 2), {"photometric": "minisblack", "planarconfig": "contig"}),
        ((6, 5, 9), {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}),
        ((6, 5, 5), {}),
    ],
)
def test_bands_of_a_tiff(shape, options, dtype):
    tifffile = pytest.importorskip("tifffile")
    values, stream = random_values(shape, dtype), io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    found = channel_files.read(stream.getvalue(), shape[2]).pixels
    np.testing.assert_array_equal(found, values)
    stream = io.BytesIO()
    if options.get("planarconfig"):
        tifffile.imwrite(
            stream, values.transpose(2, 0, 1), **{**options, "planarconfig": "separate"}
        )
        found = channel_files.read(stream.getvalue(), shape[2]).pixels
        np.testing.assert_array_equal(found, values)


def test_bands_need_tifffile(monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    tifffile.imwrite(stream, random_values((6, 5, 5), "uint16"), planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=r"pip install 'kseg\[tiff\]'"):
        channel_files.read(stream.getvalue(), 5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int16", "float64", ">u2"])
def test_npy_in_either_order_and_any_byte_order(dtype):
    values = np.arange(2 * 4 * 3).reshape(2, 4, 3).astype(dtype)
    stored = {"int16": "float32", "float64": "float32", ">u2": "uint16"}.get(dtype, dtype)
    for content in (npy(values), npy(values.transpose(2, 0, 1)), npy(np.asfortranarray(values))):
        found = channel_files.read(content, 3).pixels
        np.testing.assert_array_equal(found, values)
        assert found.dtype == stored
    np.testing.assert_array_equal(
        channel_files.read(npy(values[..., 0]), 1).pixels, values[..., :1]
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_zero_may_mean_white(dtype):
    values, content = random_values((4, 6), dtype), io.BytesIO()
    tifffile.imwrite(content, values, photometric="miniswhite", metadata=None)
    found = channel_files.read(content.getvalue(), 1).pixels[..., 0]
    np.testing.assert_array_equal(found, np.iinfo(dtype).max - values)


def test_tiles_that_opencv_does_not_read():
    values, content = random_values((48, 48), "uint8"), io.BytesIO()
    tifffile.imwrite(content, values, tile=(16, 16), metadata=None)
    np.testing.assert_array_equal(channel_files.read(content.getvalue(), 1).pixels[..., 0], values)


@pytest.mark.parametrize("channels, dtype", [(2, "uint16"), (4, "float32"), (13, "uint8")])
def test_sizes_of_files_that_pillow_does_not_open(tmp_path, channels, dtype):
    values = np.zeros((20, 30, channels), dtype)
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig", metadata=None
    )
    assert pictures.size_of_file(tmp_path / "a.tif") == (20, 30)


@pytest.mark.parametrize("shape", [(4, 6, 1), (4, 6, 3), (4, 6, 4)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("as_pages", [False, True])
def test_orientation_turns_values_upright_once(shape, dtype, as_pages):
    values, content = random_values(shape, dtype), io.BytesIO()
    tag = [(274, "H", 1, 6, True)]
    if as_pages:
        with tifffile.TiffWriter(content) as file:
            for band in values.transpose(2, 0, 1):
                file.write(band, extratags=tag, photometric="minisblack")
    else:
        color = "rgb" if shape[2] == 3 else "minisblack"
        planes = {} if shape[2] == 1 else {"planarconfig": "contig"}
        tifffile.imwrite(
            content, values.squeeze(), extratags=tag, photometric=color, metadata=None, **planes
        )
    found = channel_files.read(content.getvalue(), shape[2]).pixels
    np.testing.assert_array_equal(found, np.rot90(values, -1))


WITH_NAN = np.full((4, 4), 1.0, "float32")
WITH_NAN[1, 2] = np.nan


@pytest.mark.parametrize(
    "content, channels, message",
    [
        (encoded(".png", random_values((4, 4, 3), "uint8")), 4, "has 3 channels, not 4"),
        (encoded(".png", random_values((4, 4), "uint8")), 3, "has 1 channel, not 3"),
        (npy(WITH_NAN), 1, "not finite"),
        (npy(np.zeros((4, 4, 4, 4))), 4, r"Received: \(4, 4, 4, 4\)"),
        (npy(np.zeros((5, 6, 2))), 4, r"with 4 channels .* Received: \(5, 6, 2\)"),
        (npy(np.zeros((0, 6, 4))), 4, "must hold pixels"),
        (npy(np.zeros((4, 4), "int64")), 1, "Received: int64"),
        (npy(np.zeros((4, 4), "complex64")), 1, "must hold numbers"),
        (npy(np.array([[None]], object)), 1, "holds no numbers"),
        (npy(np.zeros((40, 4)))[:-8], 1, "lacks 8 bytes"),
        (b"\x93NUMPY\x01", 1, "damaged"),
        (pages(np.zeros((4, 4), "uint8"), np.zeros((4, 5), "uint8")), 2, "one size"),
        (pages(*np.zeros((2, 4, 4, 3), "uint8")), 6, "2 pages of 3 bands"),
        (encoded(".png", random_values((9, 9), "uint16"))[:60], 1, "truncated"),
        (encoded(".tiff", random_values((9, 9), "uint16"))[:60], 1, "truncated|damaged"),
        (b"hello", 1, "this is something else"),
    ],
)
def test_one_line_for_what_is_not_read(content, channels, message):
    with pytest.raises(DataError, match=message) as caught:
        channel_files.read(content, channels)
    assert "\n" not in str(caught.value)


def test_declared_range_and_depth_are_checked():
    content = npy(np.array([[0, 5000]], "uint16"))
    with pytest.raises(DataError, match="values from 0 to 5000"):
        channel_files.read(content, 1, "uint16", (0, 4095))
    with pytest.raises(DataError, match="holds uint16 values, the first one of the data uint8"):
        channel_files.read(content, 1, "uint8")


def test_statistics_of_parts_are_those_of_all_pixels():
    images = [random_values((5, n, 2), "float32") + 1e5 for n in (3, 7, 1)]
    merged = channel_statistics.merge([None, *map(channel_statistics.measure, images)])
    pixels = np.concatenate([image.reshape(-1, 2) for image in images]).astype("float64")
    found = channel_statistics.pixel_format_of(merged, merged, "float32")
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-9)
    assert found.minimum == tuple(pixels.min(axis=0))
    assert found.value_range == (pixels.min(), pixels.max())


@pytest.mark.parametrize("largest, high", [(100, 255), (1000, 1023), (4095, 4095), (4096, 8191)])
def test_range_of_whole_numbers_is_that_of_the_bits_in_use(largest, high):
    measured = channel_statistics.measure(np.array([[[3]], [[largest]]], "uint16"))
    found = channel_statistics.pixel_format_of(measured, measured, "uint16")
    assert found.value_range == (0, high)


def a_format(channels, dtype, **changes):
    numbers = dict.fromkeys(("mean", "std", "minimum", "maximum"), (1.5,) * channels)
    return PixelFormat(channels, dtype, (0, 100), **{**numbers, **changes})


def test_pixel_format():
    found = a_format(2, "uint16", mean=(2.6, 7.0), std=(0.0, 2.0))
    assert PixelFormat.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.normalization == (
        (2.6, 7.0),
        (1.0, 2.0),
    )  # A constant channel is not divided by 0.
    np.testing.assert_array_equal(found.padding, np.array([3, 7], "uint16"))
    with pytest.raises(ValueError, match="one number for each"):
        a_format(2, "uint16", mean=(1.0,))
    with pytest.raises(ValueError, match="2 channels of uint16"):
        found.check(np.zeros((4, 4, 3), "uint16"))


def test_pictures_of_values():
    values = np.array([[[0, 50, 200, 9]]], "uint16")
    np.testing.assert_array_equal(to_picture(values, a_format(4, "uint16")), [[[0, 128, 255]]])
    gray = to_picture(values[..., :2], a_format(2, "uint16"))
    np.testing.assert_array_equal(gray, [[[0, 0, 0]]])
    rgb = random_values((2, 2, 3), "uint8")
    assert to_picture(rgb, None) is rgb


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "window", [(0, 0, *SIZE), (5, 250, 20, 20), (127, 255, 2, 2), (139, 0, 1, 1)]
)
def test_windows_of_tiles(dtype, window):
    values = random_values((*SIZE, 2), dtype)
    top, left, height, width = window
    found = channel_tiles.decode_window(
        tf.constant(channel_tiles.encode(values)),
        tf.constant(SIZE[1]),
        tf.constant([top, left]),
        tf.constant([height, width]),
        a_format(2, dtype),
    )
    np.testing.assert_array_equal(found, values[top : top + height, left : left + width])


def write_source(folder, images, suffix=".npy"):
    """Writes `images`, dict from split to arrays, with masks of two classes."""
    (folder / "classes.csv").parent.mkdir(parents=True, exist_ok=True)
    (folder / "classes.csv").write_text("name,value\nground,0\nthing,1\n")
    for split, values in images.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number, array in enumerate(values):
            file = folder / "images" / split / f"{split}{number}{suffix}"
            if suffix == ".npy":
                np.save(file, array)
            else:
                file.write_bytes(encoded(suffix, array))
            mask = (array[..., 0] > np.mean(array[..., 0])).astype("uint8")
            cv2.imwrite(str(folder / "labels" / split / f"{split}{number}.png"), mask)
    return folder


def prepared(tmp_path, images, suffix=".npy", **options):
    source = write_source(tmp_path / "source", images, suffix)
    return pipelines.prepare(
        "folder", str(source), str(tmp_path / "data"), progress=False, masks="index", **options
    )


@pytest.mark.parametrize("dtype, channels", [("uint16", 4), ("float32", 1), ("uint8", 5)])
def test_prepared_images_are_the_files_values(tmp_path, dtype, channels):
    low, high = (1000, 4000) if dtype == "uint16" else (100, 200)
    images = {
        "train": [random_values((*SIZE, channels), dtype, low) for _ in range(2)],
        "val": [random_values((*SIZE, channels), dtype, high)],
    }
    manifest = prepared(tmp_path, images, channels=channels)
    pixels = manifest.pixel_format
    every = np.concatenate([x.reshape(-1, channels) for x in images["train"]]).astype("float64")
    np.testing.assert_allclose(pixels.mean, every.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(pixels.std, every.std(axis=0), rtol=1e-9)
    assert (manifest.format, pixels.channels, pixels.dtype) == (5, channels, dtype)
    assert manifest.value_range is None
    if dtype == "uint16":
        assert pixels.value_range == (0, 4095)  # Of all splits, 12 bits.
    pipelines.verify(manifest.folder, progress=False)
    for split, values in images.items():
        found = list(loader.evaluation_dataset(manifest.folder, split).as_numpy_iterator())
        np.testing.assert_array_equal(np.concatenate([x["image"] for x in found]), values)
        assert found[0]["image"].dtype == dtype
    assert "images: " in pipelines.data_report.as_text(pipelines.data_report.read(manifest))
    again = pipelines.prepare(
        "folder", str(tmp_path / "source"), manifest.folder, progress=False, masks="index",
        channels=channels,
    )  # fmt: skip
    assert again == manifest


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("cache", [None, "memory"])
def test_crops_hold_values_and_padding(tmp_path, dtype, cache):
    images = {"train": [random_values((20, 30, 2), dtype, 4000)]}
    manifest = prepared(tmp_path, images, channels=2)
    options = {"batch_size": 1, "crop_size": (24, 16), "seed": 0, "flip": False, "cache": cache}
    batch = next(
        loader.training_dataset(
            manifest.folder, "train", scale_range=(1, 1), **options
        ).as_numpy_iterator()
    )
    crop, source = batch["image"][0], images["train"][0]
    assert crop.dtype == dtype and crop.shape == (24, 16, 2)
    places = [j for j in range(15) if np.array_equal(crop[:20], source[:, j : j + 16])]
    assert len(places) == 1
    padding = manifest.pixel_format.padding
    np.testing.assert_array_equal(crop[20:], np.broadcast_to(padding, (4, 16, 2)))
    for more in ({"rotation": 30.0}, {"scale_range": (0.5, 2.0)}):
        stream = loader.training_dataset(manifest.folder, "train", **options, **more)
        image = next(stream.as_numpy_iterator())["image"]
        assert image.dtype == dtype
        assert source.min() <= image.min() and image.max() <= source.max()


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda x: x[..., :2], {}, r"train1.npy: a .npy file must be .* Received: \(20, 30, 2\)"),
        (lambda x: x.astype("float32"), {}, "train1.npy: the image holds float32 values"),
        (lambda x: x, {"value_range": (0, 10)}, "beyond `value_range=\\(0, 10\\)`"),
        (lambda x: x, {"image_format": "jpeg"}, "Leave out one of them"),
    ],
)
def test_unusable_images_name_the_file(tmp_path, change, options, message):
    first, second = (random_values((20, 30, 3), "uint16") for _ in range(2))
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, {"train": [first, change(second)]}, channels=3, **options)
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_arrays_without_channels_are_not_read(tmp_path):
    with pytest.raises(DataError, match="say how many channels they have: `channels`"):
        prepared(tmp_path, {"train": [random_values((20, 30, 3), "uint8")]})
    with pytest.raises(DataError, match="Leave out `channels`"):
        pipelines.prepare("synthetic", None, str(tmp_path / "s"), channels=3, progress=False)


def test_gray_pictures_stay_one_channel(tmp_path):
    images = [random_values((20, 30, 1), "uint8") for _ in range(2)]
    manifest = prepared(tmp_path, {"train": images}, ".png", channels=1)
    assert manifest.pixel_format.value_range == (0, 255)
    found = list(loader.evaluation_dataset(manifest.folder, "train").as_numpy_iterator())
    np.testing.assert_array_equal(np.concatenate([x["image"] for x in found]), images)
