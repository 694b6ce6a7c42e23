import numpy as np
import pytest

from pipelines.datasets import joined
from pipelines.errors import DataError
from tests.pipelines.datasets.tiny_annotations import expected, write_joined, write_json
from tests.pipelines.tiny_data import all_labels


def test_classes_of_one_name_are_one(tmp_path):
    write_joined(tmp_path / "sources.json")
    found = joined.find(tmp_path / "sources.json")
    assert found.taxonomy.class_names == ["background", "car", "tree"]
    labels = all_labels(found)
    assert list(labels["train"]) == ["drone/train", "2/train/a"]
    np.testing.assert_array_equal(labels["train"]["drone/train"], expected())
    swapped = expected(car=2, tree=1, grown=1)
    swapped[3:9, 2:10] = 2  # The smaller one.
    np.testing.assert_array_equal(labels["train"]["2/train/a"], swapped)


def test_order_of_classes(tmp_path):
    write_joined(tmp_path / "sources.json")
    content = {"sources": [{"dataset": "coco", "source": "drone"}]}
    content["classes"] = ["tree", "boat", "background", "car"]
    write_json(tmp_path / "sources.json", content)
    found = joined.find(tmp_path / "sources.json")
    assert found.taxonomy.class_names == content["classes"]
    np.testing.assert_array_equal(all_labels(found)["val"]["1/val"], expected(2, 3, 0))
    write_json(tmp_path / "sources.json", {**content, "classes": ["car"]})
    with pytest.raises(DataError, match=r"must have all classes. Missing: 'background', 'tree'"):
        joined.find(tmp_path / "sources.json")


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"dataset": "cocoa", "source": "drone"}, "`dataset` must be one of .*Received: 'cocoa'"),
        ({"dataset": "coco"}, "`source` must be a path or a list of them. Received: None"),
        ({"dataset": "coco", "source": "gone"}, "source 1: .*gone does not exist"),
        ({"dataset": "coco", "source": "drone", "sed": 1}, "source 1: coco has no option 'sed'"),
        (3, "source 1: must be an object with a name of its own"),
    ],
)
def test_mistakes(tmp_path, entry, message):
    write_joined(tmp_path / "sources.json")
    write_json(tmp_path / "sources.json", {"sources": [entry]})
    with pytest.raises(DataError, match=message):
        joined.find(tmp_path / "sources.json")


def test_mistakes_in_the_file(tmp_path):
    with pytest.raises(DataError, match="The source must be a JSON file with `sources`"):
        joined.find(tmp_path)
    (tmp_path / "sources.json").write_text("[]")
    with pytest.raises(DataError, match="must be a JSON file with `sources`"):
        joined.find(tmp_path / "sources.json")
    (tmp_path / "sources.json").write_text("{")
    with pytest.raises(DataError, match=r"sources.json must be JSON"):
        joined.find(tmp_path / "sources.json")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"colors": {}}, "coco has no option 'colors'. Its options: annotations, crowd, class_map"),
        ({"files": []}, "coco has no option 'files'"),
        ({"split": "train"}, "source 1: `split` must give each split a ratio or a list file"),
        ({"annotations": "x.json"}, "source 1: `annotations` must give the file of each split"),
        ({"unlabeled": None}, "source 1: `unlabeled` must be a name, not None"),
        ({"class_map": 5}, "source 1: `class_map` must be a file, or a dict of names"),
        ({"dataset": []}, "source 1: `dataset` must be one of"),
    ],
)
def test_options_of_another_type(tmp_path, options, message):
    write_joined(tmp_path / "sources.json")
    entry = {"dataset": "coco", "source": "drone", **options}
    write_json(tmp_path / "sources.json", {"sources": [entry]})
    with pytest.raises(DataError, match=message):
        joined.find(tmp_path / "sources.json")


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    write_joined(tmp_path / "here/sources.json")
    monkeypatch.chdir(tmp_path)
    # Files of the same names in the working directory are not meant.
    write_json(tmp_path / "mine.json", {})
    (tmp_path / "all.txt").write_text("nothing\n")
    drone = tmp_path / "here/drone"
    (drone / "annotations/instances_train2017.json").rename(tmp_path / "here/mine.json")
    (tmp_path / "here/all.txt").write_text("train\n")
    entry = {"dataset": "coco", "source": "drone", "annotations": {"data": "mine.json"}}
    write_json(tmp_path / "here/sources.json", {"sources": [{**entry, "split": {"a": "all.txt"}}]})
    found = joined.find(tmp_path / "here/sources.json")
    assert {split: [e.id for e in part] for split, part in found.splits.items()} == {
        "a": ["1/train"]
    }
