import base64
import zlib

import numpy as np
import pytest

from pipelines.datasets import folder, supervisely
from pipelines.errors import DataError
from tests.pipelines.datasets.tiny_annotations import (
    SIZE,
    expected,
    supervisely_content,
    write_json,
    write_supervisely,
)
from tests.pipelines.tiny_data import all_labels, encode


def read(tmp_path, *objects):
    """The labels of an image with some objects."""
    write_supervisely(tmp_path)
    write_json(tmp_path / "train/ann/a.jpg.json", supervisely_content(*objects))
    return all_labels(supervisely.find(tmp_path))["train"]["train/a"]


def polygon(exterior, *interior, name="car"):
    points = {"exterior": exterior, "interior": list(interior)}
    return {"classTitle": name, "geometryType": "polygon", "points": points}


def test_project(tmp_path):
    np.testing.assert_array_equal(read(tmp_path), expected(grown=1))
    found = supervisely.find(tmp_path)
    assert found.taxonomy.class_names == ["background", "car", "tree"]
    assert found.taxonomy.palette == [[0, 0, 0], [0, 2, 3], [1, 2, 3]]
    assert list(found.splits) == ["train", "val"]
    with pytest.raises(DataError, match=r"\(meta.json\), .*kseg prepare supervisely"):
        folder.find(tmp_path)


def test_holes_bitmaps_and_rectangles(tmp_path):
    holed = polygon([[1, 1], [10, 1], [10, 10], [1, 10]], [[3, 3], [6, 3], [6, 6], [3, 6]])
    labels = np.zeros(SIZE)
    labels[1:11, 1:11] = 1
    labels[3:7, 3:7] = 0
    np.testing.assert_array_equal(read(tmp_path, holed), labels)
    picture = np.zeros((3, 4), "uint8")
    picture[1:, 2:] = 255
    data = base64.b64encode(zlib.compress(encode(picture))).decode()
    bitmap = {"classTitle": "tree", "geometryType": "bitmap"}
    bitmap["bitmap"] = {"data": data, "origin": [6, 5]}
    labels = np.zeros(SIZE)
    labels[6:8, 8:10] = 2
    np.testing.assert_array_equal(read(tmp_path, bitmap), labels)
    corners = {"exterior": [[2, 3], [9, 8]], "interior": []}
    box = {"classTitle": "car", "geometryType": "rectangle", "points": corners}
    labels = np.zeros(SIZE)
    labels[3:9, 2:10] = 1
    np.testing.assert_array_equal(read(tmp_path, box), labels)


def test_tags_are_splits(tmp_path):
    write_supervisely(tmp_path)
    content = {**supervisely_content(), "tags": [{"name": "val"}]}
    write_json(tmp_path / "train/ann/a.jpg.json", content)
    found = supervisely.find(tmp_path)
    assert {split: [e.id for e in examples] for split, examples in found.splits.items()} == {
        "val": ["train/a", "val/a"]
    }


@pytest.mark.parametrize(
    "item, message",
    [
        (polygon([[1, 2], [3, 4]]), r"a.jpg.json, object 0: a polygon must have three points or m"),
        (polygon([[1, 2], [3, 4], [5, 5]], [[1, 1]]), "object 0: a hole must have three points"),
        (polygon([], name="boat"), "unknown class 'boat'. The project has car, tree"),
        ({"classTitle": "car", "geometryType": "bitmap"}, "object 0: 'bitmap' is missing or wrong"),
    ],
)
def test_mistakes(tmp_path, item, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, item)


def test_mistakes_in_files(tmp_path):
    write_supervisely(tmp_path)
    (tmp_path / "val/ann/a.jpg.json").write_text("")
    with pytest.raises(DataError, match=r"a.jpg.json must hold annotations, and is empty"):
        supervisely.find(tmp_path)
    write_json(tmp_path / "val/ann/a.jpg.json", {"objects": []})
    with pytest.raises(DataError, match="must be an annotation with `size` and `objects`"):
        supervisely.find(tmp_path)
    write_supervisely(tmp_path)
    for split in ("train", "val"):
        (tmp_path / f"{split}/img/a.jpg").rename(tmp_path / f"{split}/img/b.jpg")
    with pytest.raises(DataError, match=r"a.jpg.json names images that are missing: a.jpg"):
        supervisely.find(tmp_path)


@pytest.mark.parametrize("color", ["#zzzzzz", "#fff", 5, None])
def test_colors_that_are_none(tmp_path, color):
    write_supervisely(tmp_path)
    classes = [{"title": "car", "color": color}, {"title": "tree", "color": "#010203"}]
    write_json(tmp_path / "meta.json", {"classes": classes})
    assert supervisely.find(tmp_path).taxonomy.palette[2] == [1, 2, 3]


@pytest.mark.parametrize(
    "objects, message",
    [
        (None, "must be an annotation with `size` and `objects`"),
        ({}, "must be an annotation with `size` and `objects`"),
        ([5], "object 0: an entry is missing or wrong"),
        (
            [{"classTitle": "car", "bitmap": {"origin": [float("inf"), 0], "data": "x"}}],
            "object 0: the origin of a bitmap must be a whole number, not inf",
        ),
    ],
)
def test_damaged_objects(tmp_path, objects, message):
    write_supervisely(tmp_path)
    content = {**supervisely_content(), "objects": objects}
    write_json(tmp_path / "train/ann/a.jpg.json", content)
    with pytest.raises(DataError, match=message):
        supervisely.find(tmp_path)
