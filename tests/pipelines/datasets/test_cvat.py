import numpy as np
import pytest

from pipelines.datasets import cvat, folder
from pipelines.errors import DataError
from pipelines.sources import Member
from tests.pipelines.datasets.tiny_annotations import (
    CAR,
    SIZE,
    TREE,
    cvat_polygon,
    cvat_text,
    expected,
    write_cvat,
    write_image,
)
from tests.pipelines.tiny_data import all_labels, pack

HEAD = f'id="0" name="a.png" width="{SIZE[1]}" height="{SIZE[0]}"'


def one(tmp_path, shapes, head=HEAD):
    write_image(tmp_path / "a.png")
    (tmp_path / "annotations.xml").write_text(cvat_text({head: shapes}))
    return cvat.find(tmp_path, split={"train": 1})


def labels_of(found):
    return all_labels(found)["train"]["a"]


def test_depths_and_splits_in_an_archive(tmp_path):
    write_cvat(tmp_path / "job")
    pack(tmp_path / "job.zip", tmp_path / "job")
    for source in (tmp_path / "job", tmp_path / "job.zip"):
        found = cvat.find(source)
        assert found.taxonomy.class_names == ["background", "car", "tree"]
        assert found.taxonomy.palette == [[0, 0, 0], [0, 2, 3], [1, 2, 3]]
        labels = all_labels(found)
        np.testing.assert_array_equal(labels["train"]["train/a"], expected())
        np.testing.assert_array_equal(labels["val"]["val/a"], expected())
    with pytest.raises(DataError, match=r"\(annotations.xml\), .*kseg prepare cvat"):
        folder.find(tmp_path / "job")


def test_masks_boxes_and_what_is_left_out(tmp_path):
    mask = '<mask label="car" rle="1, 2, 1, 2" left="2" top="4" width="3" height="2"></mask>'
    box = '<box label="tree" xtl="6.00" ytl="5.00" xbr="14.00" ybr="10.00"></box>'
    points = '<points label="car" points="1.00,2.00"></points>'
    found = one(tmp_path, mask + box + points)
    assert found.notes[0] == "1 shapes of kind 'points' are not drawn"
    labels = expected(car=0)
    labels[4:6, 3:5] = 1
    np.testing.assert_array_equal(labels_of(found), labels)


def test_subset_is_the_split(tmp_path):
    head = HEAD + ' subset="Validation"'
    write_image(tmp_path / "a.png")
    (tmp_path / "annotations.xml").write_text(cvat_text({head: cvat_polygon("car", CAR)}))
    assert list(cvat.find(tmp_path).splits) == ["val"]


@pytest.mark.parametrize(
    "shapes, message",
    [
        (cvat_polygon("boat", CAR), "polygon 0: unknown class 'boat'. The file has car, tree"),
        (cvat_polygon("car", CAR[:4]), "polygon 0: a polygon must have three points or more, and"),
        ('<box label="car" xtl="1"></box>', "box 0: must have coordinates"),
        ('<box label="car" rotation="30"></box>', "a box that is rotated is not read"),
        ('<mask label="car" rle="1,x"></mask>', "mask 0: must have coordinates, or run lengths"),
        ("<polygon>", r"annotations.xml must be XML: mismatched tag"),
    ],
)
def test_mistakes(tmp_path, shapes, message):
    with pytest.raises(DataError, match=message):
        one(tmp_path, shapes)


def test_mistakes_in_files(tmp_path):
    polygon = cvat_polygon("tree", TREE)
    with pytest.raises(DataError, match=r"annotations.xml names images that are missing: b.png"):
        one(tmp_path, polygon, HEAD.replace("a.png", "b.png"))
    with pytest.raises(DataError, match=r"a.png: an image must have height and width, not '0'"):
        one(tmp_path, polygon, HEAD.replace('height="12"', 'height="0"'))
    with pytest.raises(DataError, match=r"annotations.xml: a label must have the size of its im"):
        labels_of(one(tmp_path, polygon, HEAD.replace('height="12"', 'height="11"')))
    shape = '<polygon frame="0" points="1,1;2,2;3,1"></polygon>'
    text = f'<annotations><meta></meta><track label="car">{shape}</track></annotations>'
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=r"holds tracks of a video. Export it as `CVAT for images"):
        cvat.find(tmp_path)
    (tmp_path / "annotations.xml").write_text("")
    with pytest.raises(DataError, match=r"annotations.xml must hold annotations, and is empty"):
        cvat.find(tmp_path)


def test_file_names_are_no_splits(tmp_path):
    names = ["images/train_station_1.png", "images/test.png", "valid.png"]
    heads = {}
    for number, name in enumerate(names):
        write_image(tmp_path / name, number)
        heads[HEAD.replace("a.png", name)] = cvat_polygon("car", CAR)
    (tmp_path / "annotations.xml").write_text(cvat_text(heads))
    assert len(cvat.find(tmp_path, split={"all": 1}).splits["all"]) == 3
    with pytest.raises(DataError, match="is not divided into splits"):
        cvat.find(tmp_path)


@pytest.mark.parametrize("encoding", ["foo", "gb2312", "utf-7", "utf-16"])
def test_encodings_that_are_not_read(tmp_path, encoding):
    one(tmp_path, cvat_polygon("car", CAR))
    file = tmp_path / "annotations.xml"
    file.write_text(file.read_text().replace("utf-8", encoding))
    with pytest.raises(DataError, match=r"annotations.xml must be XML: "):
        cvat.find(tmp_path, split={"train": 1})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_encodings_that_are_read(tmp_path, encoding):
    one(tmp_path, cvat_polygon("car", CAR))
    file = tmp_path / "annotations.xml"
    content = file.read_text().replace("utf-8", "utf-16" if encoding == "utf-16" else "utf-8")
    file.write_text(content, encoding=encoding)
    labels = np.zeros(SIZE)
    labels[3:8, 2:9] = 1
    np.testing.assert_array_equal(labels_of(cvat.find(tmp_path, split={"train": 1})), labels)


@pytest.mark.parametrize("depth", ["1.5", "high", "inf", "1e30"])
def test_depths_are_whole(tmp_path, depth):
    with pytest.raises(DataError, match=r"polygon 0: `z_order` must be a whole number, not '"):
        one(tmp_path, cvat_polygon("car", CAR, depth))


def test_files_are_read_once(tmp_path, monkeypatch):
    write_cvat(tmp_path / "job")
    (tmp_path / "job/other.xml").write_text("<annotation></annotation>")
    (tmp_path / "job/empty.xml").write_text("")  # Of another tool.
    pack(tmp_path / "job.zip", tmp_path / "job")
    read, read_bytes = [], Member.read_bytes
    monkeypatch.setattr(
        Member, "read_bytes", lambda self: read.append(self.path) or read_bytes(self)
    )
    cvat.find(tmp_path / "job.zip")
    assert sorted(read) == ["annotations.xml", "empty.xml", "other.xml"]


def test_an_empty_section_of_runs(tmp_path):
    mask = '<mask label="car" rle="3,3" left="0" top="0" width="-3" height="-2"></mask>'
    with pytest.raises(DataError, match="section of -2x-3 pixels must not be empty"):
        labels_of(one(tmp_path, mask))
