import base64
import struct
import zlib

import numpy as np
import pytest

from pipelines.datasets import folder, labelme
from pipelines.errors import DataError
from tests.pipelines.datasets.tiny_annotations import (
    SIZE,
    expected,
    labelme_content,
    write_image,
    write_json,
    write_labelme,
)
from tests.pipelines.tiny_data import all_labels, encode


def one(tmp_path, *shapes, **more):
    """Reads one image with some shapes; the default: the two polygons."""
    write_image(tmp_path / "a.png")
    content = labelme_content("..\\pictures\\a.png", **more)
    content["shapes"] = list(shapes) or content["shapes"]
    write_json(tmp_path / "a.json", content)
    return labelme.find(tmp_path, split={"train": 1})


def labels_of(found):
    return all_labels(found)["train"]["a"]


def test_polygons(tmp_path):
    found = one(tmp_path)
    assert found.taxonomy.class_names == ["background", "car", "tree"]
    np.testing.assert_array_equal(labels_of(found), expected(grown=1))
    np.testing.assert_array_equal(labels_of(one(tmp_path, imageHeight=None)), expected(grown=1))


def test_splits_and_images_without_annotations(tmp_path):
    write_labelme(tmp_path)
    write_image(tmp_path / "train/b.jpg", 7)
    found = labelme.find(tmp_path)
    assert found.notes[0] == "1 images have no JSON file and are left out"
    assert [e.image for e in found.splits["val"]] == [tmp_path / "val/a.jpg"]
    with pytest.raises(DataError, match=r"\(train/a.json\), .* kseg prepare labelme"):
        folder.find(tmp_path)


def test_shapes_and_labels_with_a_meaning(tmp_path):
    picture = np.zeros((3, 4), "uint8")
    picture[1:, 2:] = 255
    mask = base64.b64encode(encode(picture)).decode()
    found = one(
        tmp_path,
        {"label": "b", "points": [[9, 8], [2, 3]], "shape_type": "rectangle"},
        {"label": "__ignore__", "points": [[0, 0], [0, 1], [1, 1], [1, 0]]},
        {"label": "a", "points": [[6, 5], [9, 7]], "shape_type": "mask", "mask": mask},
        {"label": "_background_", "points": [[2, 3], [3, 3], [3, 4]]},
    )
    assert found.taxonomy.class_names == ["background", "a", "b"]
    labels = np.zeros(SIZE)
    labels[3:9, 2:10] = 2
    labels[:2, :2] = 255
    labels[6:8, 8:10] = 1
    labels[[3, 3, 4], [2, 3, 3]] = 0
    np.testing.assert_array_equal(labels_of(found), labels)


@pytest.mark.parametrize(
    "shape, message",
    [
        (
            {"label": "a", "points": [[1, 2], [3, 4]]},
            r"a.json, shape 0: a polygon must have three points or more, and has 2 points",
        ),
        ({"label": "a", "points": [[1, 2]], "shape_type": "circle"}, "a circle must not have 1 po"),
        ({"label": "a", "points": [[1, 2]], "shape_type": "star"}, "unknown kind of shape 'star'"),
        ({"label": " ", "points": []}, "shape 0: a label must be a name, not ' '"),
        ({"points": []}, "shape 0: must have `label` and `points`"),
        (
            {"label": "a", "points": [["x"]], "shape_type": "line"},
            "points must be pairs of numbers",
        ),
    ],
)
def test_mistakes(tmp_path, shape, message):
    with pytest.raises(DataError, match=message):
        one(tmp_path, shape)


def test_mistakes_in_files(tmp_path):
    one(tmp_path)
    write_json(tmp_path / "second.json", labelme_content("a.png"))
    with pytest.raises(DataError, match=r"annotated in .*a.json and in .*second.json"):
        labelme.find(tmp_path)
    (tmp_path / "second.json").write_text("")
    with pytest.raises(DataError, match=r"second.json must hold annotations, and is empty"):
        labelme.find(tmp_path)
    write_json(tmp_path / "second.json", labelme_content("gone.png"))
    with pytest.raises(DataError, match=r"second.json names images that are missing: gone.png"):
        labelme.find(tmp_path)
    (tmp_path / "second.json").unlink()
    with pytest.raises(DataError, match=r"a.json: a label must have the size of its image, \(12"):
        labels_of(one(tmp_path, imageHeight=11))


@pytest.mark.parametrize("place", ["renamed", "upper case", "embedded"])
def test_images_that_are_not_where_their_files_say(tmp_path, place):
    content = labelme_content("old.png")
    write_image(tmp_path / ("OLD.PNG" if place == "upper case" else "a.png"))
    if place == "embedded":
        content["imageData"] = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
        (tmp_path / "a.png").unlink()
    write_json(tmp_path / "a.json", content)
    found = labelme.find(tmp_path, split={"train": 1})
    said = {"renamed": ["1 files name a missing image"], "embedded": ["1 images are missing"]}
    notes = [note.split(":")[0] for note in found.notes if "missing" in note]
    assert notes == said.get(place, [])
    (labels,) = all_labels(found)["train"].values()
    np.testing.assert_array_equal(labels, expected(grown=1))
    assert found.splits["train"][0].fingerprint
    if place == "embedded":
        content["imageData"] = "no base64!"
        write_json(tmp_path / "a.json", content)
        with pytest.raises(DataError, match=r"a\.json, imageData must be base64"):
            found.splits["train"][0].read()


@pytest.mark.parametrize("shapes", [None, 3, {}, "lack"])
def test_files_without_shapes(tmp_path, shapes):
    one(tmp_path)
    content = labelme_content("a.png", shapes=shapes)
    if shapes == "lack":
        del content["shapes"]
    write_json(tmp_path / "a.json", content)
    with pytest.raises(DataError, match=r"a.json must have a list `shapes`; it may be empty"):
        labelme.find(tmp_path, split={"train": 1})


def test_unrelated_json_is_skipped(tmp_path):
    one(tmp_path)
    write_json(tmp_path / "settings.json", {"labels": ["car"]})
    write_json(tmp_path / "list.json", ["car"])
    assert len(labelme.find(tmp_path, split={"train": 1}).splits["train"]) == 1


def test_a_bitmap_that_claims_to_be_huge(tmp_path):
    """A header of 100000 x 100000 pixels, with a sound checksum."""
    content = bytearray(encode(np.ones((3, 4), "uint8")))
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    mask = base64.b64encode(content).decode()
    shape = {"label": "a", "points": [[6, 5], [9, 7]], "shape_type": "mask", "mask": mask}
    with pytest.raises(DataError, match="section of 100000x100000 pixels must not be empty, or"):
        labels_of(one(tmp_path, shape))
