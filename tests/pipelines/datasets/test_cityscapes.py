import itertools

import numpy as np
import pytest

from pipelines.datasets import cityscapes
from pipelines.errors import DataError
from tests.pipelines.tiny_data import all_labels, pack, write_pairs

CITIES = {"train": ("aachen", "ulm"), "val": ("lindau",), "test": ("bonn",), "train_extra": ("x",)}
# Of each image: unlabeled, road, building, pole, polegroup, sky, bicycle, ego vehicle.
VALUES = np.uint8([[0, 7, 11, 17, 18, 23, 33, 1]])
LABELS = [[255, 0, 2, 5, 255, 10, 18, 255]]


def write_download(folder, splits=tuple(CITIES)):
    """`leftImg8bit/`, `gtFine/` and `gtCoarse/` with an image of each city."""
    for split in splits:
        kind = "gtCoarse" if split == "train_extra" else "gtFine"
        pairs = {}
        for city in CITIES[split]:
            name = f"{city}/{city}_000000_000019"
            label = f"{kind}/{split}/{name}_{kind}_labelIds.png"
            # The official labels of the test images hold nothing that is scored.
            pairs[f"leftImg8bit/{split}/{name}_leftImg8bit.png", label] = (
                np.ones_like(VALUES) if split == "test" else VALUES
            )
            for other in ("color.png", "instanceIds.png", "polygons.json"):
                path = folder / f"{kind}/{split}/{name}_{kind}_{other}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
        write_pairs(folder, pairs)


def check(found):
    labels = all_labels(found)
    assert {split: list(ids) for split, ids in labels.items()} == {
        split: [f"{city}_000000_000019" for city in cities] for split, cities in CITIES.items()
    }
    for split, arrays in labels.items():
        for array in arrays.values():
            expected = np.full((1, 8), 255) if split == "test" else LABELS
            np.testing.assert_array_equal(array, expected)


def test_unpacked(tmp_path):
    write_download(tmp_path / "cityscapes")
    check(cityscapes.find(tmp_path / "cityscapes"))
    check(cityscapes.find(tmp_path))


@pytest.mark.parametrize("given", ["files", "folder"])
def test_the_zip_files(tmp_path, given):
    """The layout of the downloads: images, labels and coarse labels in separate files."""
    for part, splits in (("trainvaltest", ("train", "val", "test")), ("extra", ("train_extra",))):
        write_download(tmp_path / part, splits)
        for kind in (tmp_path / part).iterdir():
            pack(tmp_path / f"{kind.name}_{part}.zip", kind, f"{kind.name}/")
        for path in sorted((tmp_path / part).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    archives = sorted(tmp_path.glob("*.zip"))
    assert len(archives) == 4
    check(cityscapes.find(archives if given == "files" else tmp_path))


def test_test_images_without_labels(tmp_path):
    write_download(tmp_path, ("train", "test"))
    (tmp_path / "gtFine" / "test").rename(tmp_path / "elsewhere")
    found = cityscapes.find(tmp_path)
    assert list(found.splits) == ["train", "test"]
    labels = all_labels(found)["test"]["bonn_000000_000019"]
    np.testing.assert_array_equal(labels, np.full((1, 8), 255))


def test_mistakes(tmp_path):
    write_download(tmp_path, ("train",))
    label = tmp_path / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    label.rename(tmp_path / "label.png")
    with pytest.raises(
        DataError, match=r"Without partner: .*ulm_000000_000019_leftImg8bit\.png\. Add"
    ):
        cityscapes.find(tmp_path)
    (tmp_path / "gtFine" / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"leftImg8bit/train/ and gtFine/train/.* It holds elsewhere/"
    ):
        cityscapes.find(tmp_path)
    (tmp_path / "gtFine" / "val").mkdir()
    with pytest.raises(DataError, match="leftImg8bit/val/ is missing"):
        cityscapes.find(tmp_path)


def test_categories():
    taxonomy = cityscapes.taxonomy()
    names = {
        category: [taxonomy.class_names[i] for i in labels]
        for category, labels in taxonomy.categories.items()
    }
    assert list(names) == ["flat", "construction", "object", "nature", "sky", "human", "vehicle"]
    assert names["object"] == ["pole", "traffic light", "traffic sign"]
    assert names["human"] == ["person", "rider"]
    assert sorted(itertools.chain(*taxonomy.categories.values())) == list(range(19))
