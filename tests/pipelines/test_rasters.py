import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from kseg.pixel_format import PixelFormat
from pipelines import channel_files, pictures, rasters
from pipelines.errors import DataError


def write(path, values, **more):
    """Writes an array `(channels, height, width)` as a TIFF file."""
    count, height, width = values.shape
    profile = {"count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", **profile, **more) as file:
        file.write(values)
        for key, value in more.get("tags", {}).items():
            file.update_tags(**{key: value})
    return path


def values(channels, dtype="uint8", high=256):
    return np.random.default_rng(0).integers(0, high, (channels, 50, 37)).astype(dtype)


def read(path, value_range=None):
    with rasters.open_raster(path, value_range) as raster:
        rows = [raster.read(first, min(first + 16, 50)) for first in range(0, 50, 16)]
        assert raster.size == (50, 37)
    return np.concatenate(rows)


@pytest.mark.parametrize(
    "channels, dtype, value_range, more",
    [
        (3, "uint8", None, {"tiled": True, "blockxsize": 16, "blockysize": 32}),
        (3, "uint8", None, {"compress": "lzw", "bigtiff": "yes", "interleave": "band"}),
        (1, "uint8", None, {"compress": "deflate", "predictor": 2}),
        (2, "uint8", None, {"alpha": "yes"}),
        (4, "uint8", None, {"photometric": "rgb", "alpha": "yes"}),
        (1, "uint8", None, {"nbits": 1}),
        (1, "uint8", None, {"nbits": 4}),
        (1, "uint8", None, {"photometric": "miniswhite"}),
        (3, "uint16", (0, 4095), {"photometric": "rgb"}),
        (1, "float32", (10, 3000), {}),
    ],
)
def test_pixels_are_those_of_the_picture_in_one_piece(tmp_path, channels, dtype, value_range, more):
    high = 1 << more.get("nbits", 8 if dtype == "uint8" else 12)
    path = write(tmp_path / "a.tif", values(channels, dtype, high), **more)
    expected = pictures.read(path.read_bytes(), value_range).pixels
    np.testing.assert_array_equal(read(path, value_range), expected)


def test_palettes_become_colors(tmp_path):
    indices = values(1, high=3)
    colors = [[1, 2, 3], [40, 50, 60], [250, 7, 0]]
    with rasters.create_raster(tmp_path / "a.tif", (50, 37), palette=colors) as add:
        add(indices[0, :20])
        add(indices[0, 20:])
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), np.array(colors)[indices[0]])


@pytest.mark.parametrize("size", [600, 4000, 36_000])
def test_files_that_do_not_fit_are_an_error(tmp_path, limit_file_size, size):
    """GDAL writes small files as it closes them, and reports no error then."""
    limit_file_size(size)
    with (
        pytest.raises(OSError, match="was not written completely"),
        rasters.create_raster(tmp_path / "a.tif", (200, 200)) as add,
    ):
        add(np.random.default_rng(0).integers(0, 256, (200, 200)).astype("uint8"))


@pytest.mark.parametrize("steps", [(600, 40), (256, 256, 128), (1,) * 640])
@pytest.mark.parametrize("channels", [1, 5])
def test_rows_of_any_number_are_written(tmp_path, steps, channels):
    rows = np.random.default_rng(0).integers(0, 256, (640, 300, channels)).astype("uint8")
    rows = rows[..., 0] if channels == 1 else rows
    with rasters.create_raster(tmp_path / "a.tif", (640, 300), channels=channels) as add:
        for part in np.split(rows, np.cumsum(steps)[:-1]):
            add(part)
    with rasterio.open(tmp_path / "a.tif") as file:
        found = file.read()
        assert file.block_shapes == [(256, 256)] * channels
    np.testing.assert_array_equal(found.transpose(1, 2, 0).squeeze(), rows)


def test_georeferences_are_kept(tmp_path):
    first = {"crs": "EPSG:25832", "transform": from_origin(5e5, 5e6, 0.2, 0.2)}
    points = [GroundControlPoint(r, c, 10 + c, 50 - r) for r, c in ((0, 0), (0, 30), (40, 0))]
    second = {"crs": "EPSG:4326", "gcps": points}
    for number, georeference in enumerate((first, second, {})):
        path = write(tmp_path / f"{number}.tif", values(3), nodata=0, **georeference)
        with rasters.open_raster(path) as raster:
            copied = {"georeference": raster.georeference, "nodata": 255}
            with rasters.create_raster(tmp_path / "copy.tif", raster.size, **copied) as add:
                add(np.zeros(raster.size, "uint8"))
        with rasterio.open(path) as source, rasterio.open(tmp_path / "copy.tif") as copy:
            assert copy.crs == source.crs and copy.transform == source.transform
            assert [p.asdict() for p in copy.gcps[0]] == [p.asdict() for p in source.gcps[0]]
            assert copy.gcps[1] == source.gcps[1] and copy.nodata == 255


def test_pixels_without_data(tmp_path):
    pixels = np.ones((3, 50, 37), "uint8")
    pixels[:, 5] = 0
    pixels[:2, 6] = 0  # One channel has a value.
    path = write(tmp_path / "a.tif", pixels, nodata=0)
    with rasters.open_raster(path) as raster:
        assert raster.has_nodata
        found = raster.find_empty(4, 8)
    np.testing.assert_array_equal(found, np.arange(4, 8)[:, None].repeat(37, 1) == 5)


@pytest.mark.parametrize(
    "channels, dtype, nodata, value_range, more",
    [
        (3, "uint8", 0, None, {}),
        (4, "uint8", 7, None, {"photometric": "rgb", "alpha": "yes"}),
        (2, "uint8", 9, None, {"alpha": "yes"}),
        (1, "uint8", 3, None, {"nbits": 4}),
        (1, "uint8", 1, None, {"nbits": 1}),
        (1, "uint8", 0, None, {"photometric": "miniswhite"}),
        (1, "uint8", 2, None, {"palette": True}),
        (1, "uint16", 65535, (0, 4095), {}),
        (1, "uint16", 0, (0, 4095), {"photometric": "miniswhite"}),
        (3, "uint16", 0, (100, 4095), {"photometric": "rgb"}),
        (1, "int16", -9999, (10, 3000), {}),
        (1, "float32", np.nan, (10, 3000), {}),
        (3, "float32", -3.4028234663852886e38, (10, 3000), {"photometric": "rgb"}),
    ],
)
def test_pixels_without_data_are_those_of_the_picture_in_one_piece(
    tmp_path, channels, dtype, nodata, value_range, more
):
    """Both readers against the array, in which a part and single channels have the value."""
    high = 1 << more.get("nbits", 8 if dtype == "uint8" else 12)
    pixels = values(channels, "float64", high)
    pixels[:, 5:20, 3:] = nodata
    pixels[0, 30:40] = nodata
    pixels = pixels.astype(dtype)
    expected = np.isnan(pixels) if np.isnan(nodata) else pixels == pixels.dtype.type(nodata)
    more = dict(more)
    palette = more.pop("palette", False)
    path = write(tmp_path / "a.tif", pixels, nodata=nodata, **more)
    if palette:
        with rasterio.open(path, "r+") as file:
            file.write_colormap(1, {i: (i, 255 - i, 3 * i % 256, 255) for i in range(256)})
    whole = pictures.read(path.read_bytes(), value_range)
    with rasters.open_raster(path, value_range) as raster:
        np.testing.assert_array_equal(raster.find_empty(0, 50), expected.all(0))
        np.testing.assert_array_equal(whole.empty, expected.all(0))
        data = ~expected[: 3 if channels > 2 else 1].all(0)
        np.testing.assert_array_equal(whole.pixels[data], raster.read(0, 50)[data])
    if palette or "nbits" in more or more.get("photometric") == "miniswhite":
        return
    kept = channel_files.read(path.read_bytes(), channels)
    np.testing.assert_array_equal(kept.empty, expected.all(0))
    pixel_format = PixelFormat(channels, str(kept.pixels.dtype), (0, 9), *[(3.4,) * channels] * 4)
    found = channel_files.read_for(path.read_bytes(), pixel_format).pixels
    with rasters.open_raster(path, pixel_format=pixel_format) as raster:
        np.testing.assert_array_equal(raster.read(0, 50), found)


def opacity_of(case, full):
    """An opacity of 50 x 37 pixels, or another band, and whether its 0 means no data."""
    band = np.full((50, 37), full)
    band[10:30, :20] = 0
    if case == "soft edges":
        band[9] = full // 2
    elif case == "infrared":
        band = np.random.default_rng(1).integers(0, full, (50, 37))
        band[10:20] = 0  # Water.
    elif case == "all transparent":
        band[:] = 0
    return band, case in ("hard edges", "soft edges", "premultiplied")


@pytest.mark.parametrize(
    "case", ["hard edges", "soft edges", "premultiplied", "infrared", "all transparent"]
)
@pytest.mark.parametrize(
    "channels, dtype, more",
    [
        (4, "uint8", {"photometric": "rgb", "compress": "deflate"}),
        (4, "uint8", {"photometric": "rgb", "tiled": True, "interleave": "band"}),
        (2, "uint8", {}),
        (4, "uint16", {"photometric": "rgb"}),
        (6, "uint16", {}),
    ],
)
def test_opacity_of_zero_means_no_data(tmp_path, monkeypatch, case, channels, dtype, more):
    """Both readers, for 8-bit RGB and for the other channels; as a channel it is kept."""
    monkeypatch.setattr(rasters, "_AT_ONCE", 300)
    full = np.iinfo(dtype).max
    band, is_opacity = opacity_of(case, full)
    pixels = np.concatenate([values(channels - 1, dtype), band[None].astype(dtype)])
    more = {"alpha": "yes", **more}
    if case == "premultiplied":  # Pillow reads these by pixels only.
        more |= {"alpha": "premultiplied", "interleave": "pixel"}
    path = write(tmp_path / "a.tif", pixels, **more)
    if channels > 4:  # GDAL tags the second band.
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [*[ColorInterp.undefined] * (channels - 1), ColorInterp.alpha]
    content, expected = path.read_bytes(), band == 0 if is_opacity else None
    value_range = None if dtype == "uint8" else (0, 255)
    if channels <= 4:
        whole = pictures.read(content, value_range)
        np.testing.assert_equal(whole.empty, expected)
        with rasters.open_raster(path, value_range) as raster:
            assert raster.has_nodata == is_opacity
            np.testing.assert_equal(raster.find_empty(0, 50), expected)
    for count in (channels - 1, channels):
        pixel_format = PixelFormat(count, dtype, (0, 9), *[(3,) * count] * 4)
        if count < channels and not is_opacity:
            message = f"{channels} channels.* tagged as opacity, but"
            with pytest.raises(DataError, match=message):
                channel_files.read_for(content, pixel_format)
            with (
                pytest.raises(DataError, match=message),
                rasters.open_raster(path, None, pixel_format),
            ):
                pass
            continue
        found = channel_files.read_for(content, pixel_format)
        kept = pixels[:count].transpose(1, 2, 0).copy()
        if count < channels:
            kept[expected] = 3
        np.testing.assert_array_equal(found.pixels, kept)
        np.testing.assert_equal(found.empty, expected if count < channels else None)
        with rasters.open_raster(path, None, pixel_format) as raster:
            np.testing.assert_array_equal(raster.read(0, 50), kept)
            np.testing.assert_equal(raster.find_empty(0, 50), found.empty)


def test_an_empty_tile_of_a_mosaic_has_no_data(tmp_path):
    path = write(tmp_path / "a.tif", 0 * values(4), photometric="rgb", alpha="yes")
    assert pictures.read(path.read_bytes()).empty.all()
    with rasters.open_raster(path) as raster:
        assert raster.find_empty(0, 50).all()


@pytest.mark.parametrize("bigtiff", ["no", "yes"])
@pytest.mark.parametrize("dtype, value_range", [("uint8", None), ("uint16", (0, 255))])
def test_pixels_outside_of_the_mask_have_no_data(tmp_path, bigtiff, dtype, value_range):
    pixels, mask = values(3, dtype), np.ones((50, 37), bool)
    mask[3:20, 5:30] = False
    path = tmp_path / "a.tif"
    profile = {"count": 3, "height": 50, "width": 37, "dtype": dtype, "photometric": "rgb"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", "GTiff", **profile, bigtiff=bigtiff, compress="deflate") as file,
    ):
        file.write(pixels)
        file.write_mask(mask)
        file.build_overviews([2])
    np.testing.assert_array_equal(pictures.read(path.read_bytes(), value_range).empty, ~mask)
    np.testing.assert_array_equal(channel_files.read(path.read_bytes(), 3).empty, ~mask)
    with rasters.open_raster(path, value_range) as raster:
        np.testing.assert_array_equal(raster.find_empty(2, 50), ~mask[2:])


@pytest.mark.parametrize(
    "channels, dtype, more, message",
    [
        (5, "uint8", {}, "1 to 4 channels, this has 5"),
        (3, "uint16", {"photometric": "rgb"}, r"uint16 values\. Say which.*value_range"),
        (1, "complex64", {}, "complex64 values"),
        (4, "uint8", {"photometric": "cmyk"}, "must be gray or RGB, this is CMYK"),
    ],
)
def test_pictures_that_are_not_read(tmp_path, channels, dtype, more, message):
    path = write(tmp_path / "a.tif", values(channels, dtype), **more)
    with pytest.raises(DataError, match=message), rasters.open_raster(path):
        pass


def test_values_of_any_channels_are_kept(tmp_path):
    pixels = values(6, "int16", 4000) - 2000
    pixels[:, 3] = -9999
    path = write(tmp_path / "a.tif", pixels, nodata=-9999)
    statistics = [(0.5,) * 6] * 4
    pixel_format = PixelFormat(6, "float32", (-2000, 2000), *statistics)
    with rasters.open_raster(path, pixel_format=pixel_format) as raster:
        found = raster.read(0, 50)
    expected = pixels.transpose(1, 2, 0).astype("float32")
    expected[3] = 0.5  # Pixels without data are the mean.
    np.testing.assert_array_equal(found, expected)
    other = PixelFormat(6, "uint16", (0, 4095), *statistics)
    message = "6 channels of float32; the network takes 6 channels of uint16"
    with (
        pytest.raises(DataError, match=message),
        rasters.open_raster(path, pixel_format=other),
    ):
        pass


def test_orientation_at_the_end_of_the_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1500), dtype="uint8")
    path = tmp_path / "turned.tif"
    Image.fromarray(noise).save(path, compression="tiff_deflate", tiffinfo={274: 6})
    with pytest.raises(DataError, match="must be upright"), rasters.open_raster(path):
        pass


@pytest.mark.parametrize("more", [{"photometric": "miniswhite"}, {"nbits": 1}])
def test_forms_whose_values_are_not_those_of_channels(tmp_path, more):
    path = write(tmp_path / "a.tif", np.zeros((1, 50, 37), "uint8"), **more)
    pixels = PixelFormat(1, "uint8", (0, 255), *[(0.5,)] * 4)
    with (
        pytest.raises(DataError, match="0 as black"),
        rasters.open_raster(path, pixel_format=pixels),
    ):
        pass


def test_damaged_files(tmp_path):
    path = write(tmp_path / "a.tif", values(3), compress="deflate", blockysize=16)
    content = path.read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("cut.tif", "a.png", "missing.tif"):
        with pytest.raises(DataError, match=r"damaged|must be a TIFF|No such file") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
