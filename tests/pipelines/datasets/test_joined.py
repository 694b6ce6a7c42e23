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
