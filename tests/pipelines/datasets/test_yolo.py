import numpy as np
import pytest

from pipelines.datasets import folder, yolo
from pipelines.errors import DataError
from tests.pipelines.datasets.tiny_annotations import expected, write_image, write_yolo
from tests.pipelines.tiny_data import all_labels


def test_smaller_objects_are_seen(tmp_path):
    write_yolo(tmp_path)
    labels = all_labels(yolo.find(tmp_path))
    smaller = expected(grown=1)  # 6 x 8 against 6 x 9 pixels: edges belong to the area.
    smaller[3:9, 2:10] = 1
    np.testing.assert_array_equal(labels["train"]["train/a"], smaller)
    labels = all_labels(yolo.find(tmp_path, overlap="later"))
    np.testing.assert_array_equal(labels["val"]["val/a"], expected(grown=1))


def test_other_order_of_folders_and_images_without_objects(tmp_path):
    (tmp_path / "data.yaml").write_text("names: ['car', 'tree']\nnc: 2\ntrain: ../train/images\n")
    for number, split in enumerate(("train", "valid")):
        write_image(tmp_path / f"{split}/images/a.png", number)
        write_image(tmp_path / f"{split}/images/b.png", 9 + number)
        (tmp_path / f"{split}/labels").mkdir()
        (tmp_path / f"{split}/labels/a.txt").write_text("1 0 0 1 0 1 0.25\n")
    (tmp_path / "train/labels/b.txt").write_text("")
    found = yolo.find(tmp_path)
    assert found.notes[0] == "2 images have no polygon and are unlabeled throughout"
    labels = all_labels(found)
    assert sorted(labels) == ["train", "val"] and sorted(labels["val"]) == ["a", "b"]
    assert labels["train"]["a"].max() == 2 and labels["train"]["b"].max() == 0


@pytest.mark.parametrize("place", ["", "Labels/train/", "Labels/"])
def test_classes_of_other_tools_and_folders_of_windows(tmp_path, place):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    for name in ("images", "labels"):
        (tmp_path / name).rename(tmp_path / name.capitalize())
    (tmp_path / f"{place}classes.txt").write_text("car\r\ntree\r\n")
    found = yolo.find(tmp_path)
    assert found.taxonomy.class_names == ["background", "car", "tree"]
    assert all_labels(found)["train"]["train/a"].max() == 2
    with pytest.raises(DataError, match="kseg prepare yolo"):
        folder.find(tmp_path)
    (tmp_path / "Images/classes.txt").write_text("tree\ncar\n")
    with pytest.raises(DataError, match="must have the same classes, and differ"):
        yolo.find(tmp_path)


def test_splits_by_lists_and_ratios(tmp_path):
    write_yolo(tmp_path)
    table = "names: [car, tree]\ntrain: train.txt\nval: val.txt\n"
    (tmp_path / "data.yaml").write_text(table)
    (tmp_path / "train.txt").write_text("./images/val/a.jpg\n")
    (tmp_path / "val.txt").write_text("./images/train/a.jpg\n")
    found = yolo.find(tmp_path)
    assert [e.id for e in found.splits["train"]] == ["val/a"]
    assert [e.id for e in found.splits["val"]] == ["train/a"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("2 0 0 1 0 1 1", "a.txt, line 1: unknown class 2. The classes are 0 to 1"),
        ("0 0.1 0.1 0.5 0.5", "line 1: must be a class and three points or more, and has 4 numb"),
        ("0 0 0 1 0 1", "line 1: a polygon must be x and y in turn, and has 5 numbers"),
        ("0 3 4 100 4 100 90", "coordinates must be shares of the image, 0 to 1. Found 3 to 100"),
        ("car 0 0 1 0 1 1", "line 1: must be numbers, not 'car 0 0 1 0 1 1'"),
    ],
)
def test_mistakes(tmp_path, line, message):
    write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        yolo.find(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("nc: 2\n", "must hold data.yaml with `names`.* Found: no file with `names`"),
        ("names: {1: car}\n", r"`names` must be numbered from 0. Found: \[1\]"),
        ("names: [car, car]\n", "every class must have a name of its own: car, car"),
        ("names: [car\n", r"data.yaml must be YAML: "),
        ("names: 3\n", "`names` must be a list of classes, not 3"),
    ],
)
def test_mistakes_in_the_table(tmp_path, text, message):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        yolo.find(tmp_path)


def test_missing_image_and_recognition(tmp_path):
    write_yolo(tmp_path)
    with pytest.raises(DataError, match=r"holds annotations \(data.yaml\).*kseg prepare yolo"):
        folder.find(tmp_path)
    (tmp_path / "images/train/a.jpg").unlink()
    with pytest.raises(DataError, match=r"labels/train/a.txt must have an image of the same name"):
        yolo.find(tmp_path)


def test_several_folders_of_a_split(tmp_path):
    (tmp_path / "data.yaml").write_text(
        "names: [car, tree]\ntrain: [images/p, images/q]\nval: images/r\nvalid: images/s\n"
    )
    for number, name in enumerate("pqrs"):
        write_image(tmp_path / f"images/{name}/{name}.png", number)
        (tmp_path / f"labels/{name}").mkdir(parents=True)
        (tmp_path / f"labels/{name}/{name}.txt").write_text("0 0 0 1 0 1 1\n")
    found = yolo.find(tmp_path)
    assert {split: [e.id for e in examples] for split, examples in found.splits.items()} == {
        "train": ["p/p", "q/q"],
        "val": ["r/r", "s/s"],
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("names: [car, tree]\nmade: 2024-13-45\n", "data.yaml must be YAML: month must be in"),
        ("names: !!int x\n", "data.yaml must be YAML: invalid literal"),
        ("[" * 3000, "data.yaml must be YAML: it is nested too deeply"),
        ("names: {0: a, b: c}\n", r"`names` must be numbered from 0. Found: \[0, 'b'\]"),
        ("names: [car, [tree]]\n", "must be a list of classes, not nested or empty entries"),
        ("names: [car, ~]\n", "must be a list of classes, not nested or empty entries"),
    ],
)
def test_damaged_tables(tmp_path, text, message):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        yolo.find(tmp_path)
