import numpy as np
import pytest

from pipelines import datasets
from pipelines.datasets.dataset import Taxonomy
from pipelines.errors import DataError


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_taxonomy(name):
    taxonomy = datasets.get(name).taxonomy()
    num_classes = {"ade20k": 150, "camvid": 11, "synthetic": 8}[name]
    assert len(taxonomy.class_names) == len(set(taxonomy.class_names)) == num_classes
    assert np.array(taxonomy.palette).shape == (num_classes, 3)
    # Two classes of ADE20K share a colour in the official palette.
    assert len(set(map(tuple, taxonomy.palette))) >= num_classes - (name == "ade20k")
    assert np.array(taxonomy.palette).min() >= 0 and np.array(taxonomy.palette).max() <= 255
    assert set(taxonomy.label_map.values()) == {*range(num_classes), 255}
    assert set(taxonomy.label_map) <= set(range(256))


def test_label_map():
    taxonomy = Taxonomy(["a", "b"], [[0, 0, 0], [1, 1, 1]], {3: 0, 4: 1, 0: 255})
    labels = taxonomy.map_labels(np.uint8([[3, 4], [0, 3]]))
    np.testing.assert_array_equal(labels, [[0, 1], [255, 0]])
    assert labels.dtype == np.uint8
    with pytest.raises(DataError, match=r"among 0, 3..4; found 5 \(1 pixels\), 9 \(2 pixels\)"):
        taxonomy.map_labels(np.uint8([[9, 4, 9, 5]]))


def test_unknown_name():
    with pytest.raises(DataError, match=r"'kamvid'\. Use one of: ade20k, camvid, synthetic"):
        datasets.get("kamvid")
