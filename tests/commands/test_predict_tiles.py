"""TIFF files in tiles, as a user has them labeled."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from kseg.commands import predict
from kseg.errors import UserError
from kseg.serving import memory
from tests.commands.test_predict import call, files, probabilities_of, saved_model  # noqa: F401
from tests.commands.tiny_run import PALETTE
from tests.commands.tiny_run import tiny_run as tiny_run

PLACE = {"crs": "EPSG:25832", "transform": from_origin(5e5, 5e6, 0.2, 0.2)}


def write_tiff(path, size, *, nodata=None, opacity=None, **more):
    """Writes a tiled GeoTIFF of random shades; returns its pixels."""
    picture = np.random.default_rng(0).integers(100, 105, (*size, 3)).astype("uint8")
    if nodata is not None:
        picture[: size[0] // 3] = nodata
    if opacity is not None:
        picture = np.concatenate([picture, opacity[..., None]], axis=2)
        more |= {"photometric": "rgb", "alpha": "yes"}
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"height": size[0], "width": size[1], "dtype": "uint8", **PLACE}
    profile["count"] = picture.shape[2]
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 32, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", nodata=nodata, **profile, **tiles, **more) as f:
        f.write(picture.transpose(2, 0, 1))
    return picture


def open_file(path):
    with rasterio.open(path) as file:
        assert (file.crs, file.transform) == (PLACE["crs"], PLACE["transform"])
        assert file.profile["tiled"] and file.profile["compress"] == "deflate"
        return file.read(), file


def test_files_of_an_image_in_tiles(saved_model, tmp_path, capsys):  # noqa: F811
    picture = write_tiff(tmp_path / "a.tif", (300, 130), bigtiff="yes")
    more = ["--tiles", "--sliding-window", "48", "64", "--confidence", "--probabilities"]
    output = tmp_path / "out"
    assert call(saved_model, tmp_path / "a.tif", output, *more, "--colors") == 0
    assert "130 x 300 pixels in" in capsys.readouterr().out
    endings = ("", "_colors", "_confidence", "_probabilities")
    assert files(output) == sorted([*(f"a{end}.tif" for end in endings), "legend.png"])
    expected = probabilities_of(picture)
    (labels,), _ = open_file(output / "a.tif")
    assert labels.dtype == np.uint8
    chosen = np.take_along_axis(expected, labels[..., None].astype(int), 2)[..., 0]
    np.testing.assert_allclose(chosen, expected.max(-1), rtol=1e-6)
    (colored,), _ = open_file(output / "a_colors.tif")
    np.testing.assert_array_equal(colored, labels)
    with rasterio.open(output / "a_colors.tif") as file:
        table = file.colormap(1)
    assert [list(table[i][:3]) for i in range(3)] == PALETTE
    (confidence,), _ = open_file(output / "a_confidence.tif")
    assert np.abs(confidence - 255 * expected.max(-1)).max() <= 0.51
    shares, _ = open_file(output / "a_probabilities.tif")
    assert np.abs(shares.transpose(1, 2, 0) - 255 * expected).max() <= 0.51


def test_labels_are_those_of_the_image_in_one_piece(tiny_run, tmp_path):
    write_tiff(tmp_path / "a.tif", (90, 110))
    views = {"sliding_window": (48, 32), "overlap": 0.5, "blend": "gaussian"}
    for name, tiles in (("whole", False), ("tiles", True)):
        arguments = {"checkpoint": "best", "tiles": tiles, "overlay": False, **views}
        predict.predict(tiny_run.path, tmp_path / "a.tif", tmp_path / name, **arguments)
    with rasterio.open(tmp_path / "whole/a.png") as whole:
        (tiled,), _ = open_file(tmp_path / "tiles/a.tif")
        expected = whole.read(1)
    assert len(np.unique(expected)) > 1
    # Batches of windows differ, and with them the rounding where two classes are equally likely.
    assert np.mean(tiled == expected) > 0.999


@pytest.mark.parametrize("marked_by", ["value", "opacity"])
def test_pixels_without_data(saved_model, tmp_path, marked_by):  # noqa: F811
    opacity = np.repeat(np.uint8([0, 255, 255]), 30)[:, None] + np.zeros((1, 70), "uint8")
    marks = {"nodata": 0} if marked_by == "value" else {"opacity": opacity}
    write_tiff(tmp_path / "a.tif", (90, 70), **marks)
    more = ["--tiles", "--sliding-window", "32", "32", "--colors"]
    call(saved_model, tmp_path / "a.tif", tmp_path / "out", *more)
    for name in ("a.tif", "a_colors.tif"):
        (labels,), file = open_file(tmp_path / "out" / name)
        assert file.nodata == 255
        assert (labels[:30] == 255).all() and (labels[30:] < 3).all()
    call(saved_model, tmp_path / "a.tif", tmp_path / "whole", "--sliding-window", "32", "32")
    with rasterio.open(tmp_path / "whole/a.png") as file:
        np.testing.assert_array_equal(file.read(1) == 255, labels == 255)


def test_an_image_that_does_not_fit_into_memory(
    saved_model,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    source, output = tmp_path / "in", tmp_path / "out"
    write_tiff(source / "big.tif", (1100, 1200))
    write_tiff(source / "small.tif", (20, 30))
    content = (source / "big.tif").read_bytes()
    (source / "cut.tif").write_bytes(content[: len(content) * 2 // 3])
    monkeypatch.setattr(memory, "available", lambda: 10_000_000)
    with pytest.raises(UserError, match=r"1 of 3 .*cut\.tif \(the TIFF file is damaged"):
        call(saved_model, source, output, "--flip")
    assert files(output) == ["big.tif", "predictions.json", "small.png", "small_overlay.png"]
    assert "windows of 512 x 512, overlap 0.333, gaussian" in capsys.readouterr().out
    time = (output / "big.tif").stat().st_mtime_ns
    (source / "cut.tif").unlink()
    call(saved_model, source, output, "--flip", "--resume")
    assert (output / "big.tif").stat().st_mtime_ns == time


def test_what_cannot_be_in_tiles(saved_model, tmp_path, monkeypatch):  # noqa: F811
    write_tiff(tmp_path / "a.tif", (20, 30))
    with pytest.raises(UserError, match="`tiles` goes with TIFF files, and another"):
        call(saved_model, tmp_path / "a.tif", tmp_path, "--tiles")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'need rasterio\. Call: pip install "kseg\[raster\]"'):
        call(saved_model, tmp_path / "a.tif", tmp_path / "out", "--tiles")
    assert files(tmp_path) == ["a.tif"]
