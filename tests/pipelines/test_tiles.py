"""Preparation in tiles: what is in the records against the arrays that the files were made of."""

import json
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
import rasterio
import tensorflow as tf
from PIL import Image
from rasterio.transform import from_origin

import pipelines
from kseg.errors import UserError
from pipelines import data_report, loader, tiles
from pipelines.encoding import decode_whole, parse_record
from pipelines.errors import DataError

SIZE = (100, 70)
PLACE = {"crs": "EPSG:25832", "transform": from_origin(5e5, 5e6, 0.2, 0.2)}
CLASSES = "name,value,r,g,b\na,0,9,0,0\nb,1,0,9,0\nc,2,0,0,9\n"


def write_raster(path, values, **more):
    """Writes an array `(channels, height, width)`; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width}
    with rasterio.open(path, "w", dtype=values.dtype, **{**profile, **PLACE, **more}) as file:
        file.write(values)
    return values


def make(root, names=("train/a", "val/b"), *, channels=3, dtype="uint8", image=None, label=None):
    """Writes images and masks; returns dicts of them, `(height, width, channels)` and labels."""
    images, labels, rng = {}, {}, np.random.default_rng(0)
    for name in names:
        values = rng.integers(1, 200, (channels, *SIZE)).astype(dtype)
        images[name] = write_raster(root / f"images/{name}.tif", values, **(image or {}))
        images[name] = images[name].transpose(1, 2, 0)
        values = rng.integers(0, 3, (1, *SIZE)).astype("uint8")
        labels[name] = write_raster(root / f"labels/{name}.tif", values, **(label or {}))[0]
    (root / "classes.csv").write_text(CLASSES)
    return images, labels


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Stands for the drawing of the report, which has its own tests."""
    monkeypatch.setattr(data_report, "draw_samples", lambda *_, **__: np.zeros((1, 1, 3), "uint8"))


def prepare(root, tile=(32, 32), **options):
    output = root / "out"
    options = {"tile": tile, "progress": False, "overwrite": True, "workers": 2, **options}
    return pipelines.prepare("folder", root, output, **options)


def records_of(manifest, split):
    """Dict from id to `(image, labels)`."""
    found, pixels = {}, manifest.pixel_format
    files = [f"{manifest.folder}/{shard.file}" for shard in manifest.split(split).shards]
    for record in tf.data.TFRecordDataset(files):
        image, labels, name = decode_whole(parse_record(record, pixels), pixels)
        found[name.numpy().decode()] = image.numpy(), labels.numpy()
    return found


def joined(manifest, split):
    """Labels of the image of a split, put together of tiles, and how often each pixel has one."""
    (image,) = manifest.options["tiles"][split]
    labels, count = np.full(image["size"], 255, "uint8"), np.zeros(image["size"], int)
    found = records_of(manifest, split)
    assert len(found) == len(image["tiles"])
    for (_, part), (top, left, rows, columns) in zip(found.values(), image["tiles"], strict=True):
        window = np.s_[top : top + rows, left : left + columns]
        assert part.shape == (rows, columns)
        labels[window] = np.where(part == 255, labels[window], part)
        count[window] += part != 255
    return labels, count


@pytest.mark.parametrize(
    "overlap, form",
    [
        (0, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}),
        (9, {"compress": "lzw", "interleave": "band"}),
        (9, {}),
    ],
)
def test_tiles_are_parts_of_the_files(tmp_path, overlap, form):
    images, labels = make(tmp_path, image=form, label=form)
    manifest = prepare(tmp_path, tile_overlap=overlap)
    for split, name in (("train", "train/a"), ("val", "val/b")):
        (image,) = manifest.options["tiles"][split]
        assert (image["id"], image["file"]) == (name[-1:], f"{name[-1:]}.tif")
        assert image["size"] == list(SIZE) and image["left_out"] == 0
        found = records_of(manifest, split)
        step = 32 - overlap
        rows, columns = [*range(0, 100 - 32, step), 68], [*range(0, 70 - 32, step), 38]
        assert image["tiles"] == [[r, c, 32, 32] for r in rows for c in columns]
        assert list(found) == [f"{name[-1:]}_y{r:03}_x{c:03}" for r in rows for c in columns]
        for (pixels, part), (top, left, *_) in zip(found.values(), image["tiles"], strict=True):
            window = np.s_[top : top + 32, left : left + 32]
            np.testing.assert_array_equal(pixels, images[name][window])
            if split == "train":
                np.testing.assert_array_equal(part, labels[name][window])
    whole, count = joined(manifest, "val")
    np.testing.assert_array_equal(whole, labels["val/b"])
    assert (count == 1).all()
    assert manifest.split("val").pixels == [
        *np.bincount(labels["val/b"].ravel()),
        overlap_of(manifest),
    ]


def overlap_of(manifest):
    (image,) = manifest.options["tiles"]["val"]
    return sum(rows * columns for _, _, rows, columns in image["tiles"]) - SIZE[0] * SIZE[1]


def test_pixels_of_evaluation_have_their_label_in_the_tile_of_the_nearest_center(tmp_path):
    make(tmp_path)
    manifest = prepare(tmp_path, (40, 50), tile_overlap=17)
    (image,) = manifest.options["tiles"]["val"]
    centers = np.array([[t + h / 2, x + w / 2] for t, x, h, w in image["tiles"]])
    for number, (_, part) in enumerate(records_of(manifest, "val").values()):
        top, left, *_ = image["tiles"][number]
        own = np.argwhere(part != 255) + [top, left] + 0.5
        distance = np.abs(own[:, None] - centers[None])
        assert (distance[:, number] <= distance.min(1) + 0.5).all()


@pytest.mark.parametrize("dtype, channels", [("uint8", 1), ("uint16", 5), ("float32", 2)])
def test_channels_of_any_number_and_depth(tmp_path, dtype, channels):
    nodata = {"uint8": 0, "uint16": 65535, "float32": np.nan}[dtype]
    images, labels = make(tmp_path, channels=channels, dtype=dtype, image={"nodata": nodata})
    image = images["train/a"].copy()
    image[:50, :45] = nodata
    image[60, 60, 0] = 0 if dtype == "float32" else nodata  # Not in all channels.
    image = image.astype(dtype)
    if channels == 1:
        image[60, 60] = 7
    write_raster(tmp_path / "images/train/a.tif", image.transpose(2, 0, 1), nodata=nodata)
    manifest = prepare(tmp_path, channels=channels)
    expected = labels["train/a"].copy()
    expected[:50, :45] = 255
    whole, _ = joined(manifest, "train")
    np.testing.assert_array_equal(whole, expected)
    assert manifest.options["tiles"]["train"][0]["left_out"] == 1
    pixels = manifest.pixel_format
    assert (pixels.channels, pixels.dtype) == (channels, dtype)
    # Statistics of the tiles' pixels with data; last tiles begin at rows 68 and columns 38.
    places = [[r, c] for r in (0, 32, 64, 68) for c in (0, 32, 38) if (r, c) != (0, 0)]
    windows = [np.s_[r : r + 32, c : c + 32] for r, c in places]
    valid = np.concatenate([image[w][np.where(expected[w] == 255, False, True)] for w in windows])
    np.testing.assert_allclose(pixels.mean, valid.mean(0, dtype="float64"), rtol=1e-6)
    np.testing.assert_allclose(pixels.std, valid.std(0, dtype="float64"), rtol=1e-6)
    part = records_of(manifest, "train")["a_y032_x032"][0]
    empty = np.zeros((32, 32), bool)
    empty[: 50 - 32, : 45 - 32] = True
    own = image[32:64, 32:64]
    np.testing.assert_array_equal(part[~empty], own[~empty])
    mean = own[~empty].mean(0, dtype="float64")
    mean = mean if dtype == "float32" else np.rint(mean)
    np.testing.assert_allclose(part[empty], np.broadcast_to(mean, part[empty].shape), rtol=1e-6)


def test_eight_bits_of_deep_images_and_jpeg_records(tmp_path):
    images, _ = make(tmp_path, channels=4, dtype="uint16", image={"photometric": "rgb"})
    with pytest.raises(DataError, match=r"a\.tif: the picture holds uint16 values\. Say which"):
        prepare(tmp_path)
    manifest = prepare(tmp_path, value_range=(0, 255), image_format="jpeg", quality=100)
    assert manifest.value_range == [0, 255]
    pixels, _ = records_of(manifest, "val")["b_y068_x038"]
    np.testing.assert_array_equal(pixels, images["val/b"][68:, 38:, :3])
    found = [
        tf.train.Example.FromString(record.numpy()).features.feature["image"].bytes_list.value[0]
        for record in tf.data.TFRecordDataset(f"{manifest.folder}/train-00000-of-00001.tfrecord")
    ]
    assert found and all(content.startswith(b"\xff\xd8\xff") for content in found)


def test_no_data_of_masks_is_ignored(tmp_path):
    _, labels = make(tmp_path)
    mask = labels["val/b"].astype("int16")
    mask[30:, :35] = -9999
    write_raster(tmp_path / "labels/val/b.tif", mask[None], nodata=-9999)
    manifest = prepare(tmp_path)
    whole, _ = joined(manifest, "val")
    np.testing.assert_array_equal(whole, np.where(mask < 0, 255, mask))
    write_raster(tmp_path / "labels/val/b.tif", labels["val/b"][None], nodata=2)
    with pytest.raises(DataError, match=r'b\.tif: two readings fit: 2 is the "no data" value'):
        prepare(tmp_path)


def test_a_class_that_no_tile_keeps(tmp_path):
    """Class maps apply to tiles, and those in which nothing is left are left out."""
    _, labels = make(tmp_path)
    labels["train/a"][:64, :] = 2
    write_raster(tmp_path / "labels/train/a.tif", labels["train/a"][None])
    manifest = prepare(tmp_path, class_map={"b": "one", "a": "one", "c": "ignore"})
    assert manifest.class_names == ["one"]
    assert manifest.options["tiles"]["train"][0]["left_out"] == 6
    whole, _ = joined(manifest, "train")
    np.testing.assert_array_equal(whole, np.where(labels["train/a"] == 2, 255, 0))
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["tiles"]["train"] == {"images": 1, "tiles": 6, "left_out": 6}
    with pytest.raises(DataError, match=r"All pixels of all 12 tiles of the split 'val'"):
        write_raster(tmp_path / "labels/val/b.tif", np.full((1, *SIZE), 2, "uint8"))
        prepare(tmp_path, class_map={"b": "one", "a": "one", "c": "ignore"})


def test_shards_in_which_every_tile_is_left_out(tmp_path):
    _, labels = make(tmp_path)
    labels["train/a"][:70] = 255
    write_raster(tmp_path / "labels/train/a.tif", labels["train/a"][None])
    manifest = prepare(tmp_path, num_shards=6)
    assert manifest.split("train").shards[0].offsets == []
    assert manifest.split("train").num_images == 6
    pipelines.verify(manifest.folder, progress=False)
    read = loader.evaluation_dataset(manifest.folder, "train", batch_size=6)
    (batch,) = [batch["id"].numpy().tolist() for batch in read]
    assert [name.decode() for name in batch] == list(records_of(manifest, "train"))


@pytest.mark.parametrize("end", [".png", ".tif"])
def test_png(tmp_path, end):
    images, _ = make(tmp_path)
    picture, mask = images["val/b"], np.random.default_rng(1).integers(0, 3, SIZE, "uint8")
    for kind, values in (("images", picture), ("labels", mask)):
        if end == ".png" or kind == "labels":
            (tmp_path / kind / "val/b.tif").unlink()
            order = values[..., ::-1] if values.ndim == 3 else values
            cv2.imwrite(str(tmp_path / kind / "val/b.png"), order)
    manifest = prepare(tmp_path)
    whole, _ = joined(manifest, "val")
    np.testing.assert_array_equal(whole, mask)
    found = records_of(manifest, "val").values()
    for (pixels, _), (top, left, *_) in zip(
        found, manifest.options["tiles"]["val"][0]["tiles"], strict=True
    ):
        np.testing.assert_array_equal(pixels, picture[top : top + 32, left : left + 32])


@pytest.mark.parametrize("masks", ["colors", "palette", "binary"])
def test_masks_of_other_kinds(tmp_path, masks):
    _, labels = make(tmp_path)
    (tmp_path / "classes.csv").write_text(CLASSES[: None if masks != "binary" else -10])
    colors = np.diag([9, 9, 9]).astype("uint8")
    for name, values in labels.items():
        path = tmp_path / f"labels/{name}.tif"
        if masks == "colors":
            write_raster(path, colors[values].transpose(2, 0, 1), photometric="rgb")
        elif masks == "palette":
            write_raster(path, values[None])
            with rasterio.open(path, "r+") as file:
                file.write_colormap(1, {i: (*map(int, c), 255) for i, c in enumerate(colors)})
        else:
            labels[name] = (values > 0).astype("uint8")
            write_raster(path, labels[name][None] * 255)
    manifest = prepare(tmp_path)
    whole, _ = joined(manifest, "val")
    np.testing.assert_array_equal(whole, labels["val/b"])


def test_an_image_divided_from_top_to_bottom(tmp_path):
    _, labels = make(tmp_path, ["a"])
    split = {"train": 0.6, "val": 0.4}
    with pytest.raises(DataError, match="1 images are too few"):
        prepare(tmp_path, split=split)
    manifest = prepare(tmp_path, split=split, split_tiles=True, tile_overlap=8)
    for name, first, last in (("train", 0, 60), ("val", 60, 100)):
        found = manifest.options["tiles"][name][0]["tiles"]
        assert min(t for t, *_ in found) == first
        assert max(t + rows for t, _, rows, _ in found) == last
        whole, count = joined(manifest, name)
        np.testing.assert_array_equal(whole[first:last], labels["a"][first:last])
        assert not count[:first].any() and not count[last:].any()
    assert manifest.options["split"] == split


def test_an_image_in_one_split_only(tmp_path):
    make(tmp_path, [f"i{n}" for n in range(5)])
    manifest = prepare(tmp_path, split={"train": 0.6, "val": 0.4}, skip=["i4"])
    found = {s: {i["id"] for i in images} for s, images in manifest.options["tiles"].items()}
    assert len(found["train"]) == 2 and len(found["val"]) == 2
    assert found["train"] | found["val"] == {f"i{n}" for n in range(4)}


def test_images_smaller_than_a_tile(tmp_path):
    make(tmp_path)
    manifest = prepare(tmp_path, (64, 128), tile_overlap=20)
    assert [t[1:] for t in manifest.options["tiles"]["val"][0]["tiles"]] == [[0, 64, 70]] * 2


def test_an_interrupted_preparation_resumes(tmp_path, monkeypatch):
    make(tmp_path)
    read, seen = tiles.TileExample.read_image, []

    def fail(self, *arguments):
        seen.append(self.id)
        if self.id.startswith("b") and len(seen) > 20:
            raise KeyboardInterrupt
        return read(self, *arguments)

    monkeypatch.setattr(tiles.TileExample, "read_image", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, num_shards=3, workers=1)
    count = len(seen)
    seen.clear()
    monkeypatch.setattr(
        tiles.TileExample, "read_image", lambda s, *a: (seen.append(s.id), read(s, *a))[1]
    )
    manifest = prepare(tmp_path, num_shards=3, workers=1)
    assert len(seen) < 24 <= count + len(seen)
    pipelines.verify(manifest.folder, progress=False)


def test_tiles_reach_other_processes(tmp_path):
    make(tmp_path)

    def distribute(function, jobs):
        for job in jobs:
            function(pickle.loads(pickle.dumps(job)))

    manifest = prepare(tmp_path, distribute=distribute)
    assert manifest.split("val").num_images == 12


def test_memory_is_bounded(tmp_path):
    """A thread of a file without tiles needs its rows of tiles: threads are fewer for wide ones."""
    _, _ = make(tmp_path, image={"tiled": False}, label={"tiled": False})
    found = pipelines.datasets.folder.find(tmp_path)
    cut = tiles.cut(found.splits, (32, 32))
    workers, cache = tiles.bound_memory(cut, 16)
    assert workers == 16 and cache == 128 << 20
    limit = 4 * 70 * 3 * (32 + 2 * 100)  # Two threads.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_CACHE", (1, limit))
        workers, cache = tiles.bound_memory(cut, 16)
    assert 1 <= workers < 16 and cache <= limit


def _other_size(root):
    write_raster(root / "labels/val/b.tif", np.zeros((1, 90, 70), "uint8"))


def _other_system(root):
    write_raster(root / "labels/val/b.tif", np.zeros((1, *SIZE), "uint8"), crs="EPSG:4326")


def _shifted(root):
    place = from_origin(5e5 + 1, 5e6, 0.2, 0.2)
    write_raster(root / "labels/val/b.tif", np.zeros((1, *SIZE), "uint8"), transform=place)


def _no_label(root):
    (root / "labels/val/b.tif").unlink()


def _text(root):
    (root / "images/val/b.tif").write_text("no picture")


def _bands(root):
    write_raster(root / "images/val/b.tif", np.ones((6, *SIZE), "uint8"))


def _jpeg(root):
    (root / "images/val/b.tif").write_bytes(cv2.imencode(".jpg", np.ones((*SIZE, 3)))[1].tobytes())


def _turned(root):
    path = root / "images/val/b.tif"
    Image.fromarray(np.ones((*SIZE, 3), "uint8")).save(path, tiffinfo={274: 3})


@pytest.mark.parametrize(
    "change, options, message",
    [
        (_other_size, {}, r"labels/val/b\.tif: a label must have the size of its image, \(100, 70"),
        (_other_system, {}, r"b\.tif: .*coordinate system of its image, EPSG:25832, and has EPSG"),
        (_shifted, {}, r"b\.tif: .*up to 5 pixels off\. Warp it"),
        (_no_label, {}, r"Without partner: .*images/val/b\.tif"),
        (_jpeg, {}, r"b\.tif: an image in tiles must be a TIFF or PNG file.*gdal_translate"),
        (_turned, {}, r"b\.tif: an image in tiles must be upright"),
        (_text, {}, r"images/val/b\.tif: an image must be a JPEG"),
        (_bands, {}, r"images/val/b\.tif: an image must have 1 to 4 channels, this has 6"),
        (_bands, {"channels": 3}, r"b\.tif: the image has 6 channels, not 3; with `channels=3`"),
        (None, {"tile_overlap": 32}, r"`tile_overlap` must be 0 or more and less than `tile`"),
        (None, {"split_tiles": True}, r"`split_tiles=True` divides each image by ratios"),
        (None, {"tile": None, "tile_overlap": 3}, r"`tile_overlap` goes with `tile`"),
        (None, {"value_range": (3, 2)}, r"`value_range` takes the lowest"),
    ],
)
def test_mistakes(tmp_path, change, options, message):
    make(tmp_path)
    if change:
        change(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        prepare(tmp_path, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_the_way_out_of_files_that_are_too_large(tmp_path, kind):
    make(tmp_path)
    header = b"\x89PNG\r\n\x1a\n" + _chunk(
        b"IHDR", struct.pack(">II", 40_000, 30_000) + b"\x08\0\0\0\0"
    )
    for name in ("train/a", "val/b"):
        (tmp_path / f"{kind}/{name}.tif").unlink()
        (tmp_path / f"{kind}/{name}.png").write_bytes(header + _chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"40000 x 30000\. Cut it into tiles: .* `tile=1024`"):
        prepare(tmp_path, tile=None)


def _chunk(kind, content):
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def test_arrays_are_not_cut(tmp_path):
    make(tmp_path)
    (tmp_path / "images/val/b.tif").unlink()
    np.save(tmp_path / "images/val/b.npy", np.zeros((*SIZE, 3), "uint8"))
    with pytest.raises(
        DataError, match=r"It holds 1 NumPy files, which are not read\. Convert them$"
    ):
        prepare(tmp_path, channels=3)


def test_a_damaged_file_is_named_once(tmp_path):
    make(tmp_path, image={"compress": "deflate"})
    path = tmp_path / "images/val/b.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    write_raster(tmp_path / "labels/train/a.tif", np.full((1, *SIZE), 7, "uint8"))
    with pytest.raises(DataError, match="Unusable files: "):
        prepare(tmp_path)
    lines = (tmp_path / "out/unusable_files.txt").read_text().splitlines()
    assert len(lines) == 2
    assert "labels/train/a.tif: values must be those of the class table; found 7" in lines[1]
    assert "images/val/b.tif: the TIFF file is damaged between rows" in lines[0]
    assert not (tmp_path / "out/manifest.json").exists()


def test_data_sets_and_files_that_are_not_cut(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="`tile` is for the data set 'folder'"):
        pipelines.prepare("camvid", tmp_path, tmp_path / "out", tile=(8, 8))
    make(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'need rasterio\. Call: pip install "kseg\[raster\]"'):
        prepare(tmp_path)


def test_files_that_must_be_decoded_as_a_whole(tmp_path, monkeypatch):
    make(tmp_path, image={"compress": "deflate", "blockysize": 100})
    monkeypatch.setattr("pipelines.rasters._MOST_AT_ONCE", 100 * 70 * 3 - 1)
    with pytest.raises(DataError, match=r"a\.tif: .*this TIFF file is compressed in one piece\. C"):
        prepare(tmp_path)
    make(tmp_path)  # Uncompressed: any row can be read.
    prepare(tmp_path)
    (tmp_path / "images/val/b.tif").unlink()
    content = bytearray(cv2.imencode(".png", np.ones((*SIZE, 3), "uint8"))[1].tobytes())
    content[28] = 1
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "images/val/b.png").write_bytes(content)
    with pytest.raises(DataError, match=r"b\.png: .*PNG file is interlaced"):
        prepare(tmp_path)
