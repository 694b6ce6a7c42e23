import numpy as np
import pytest

from pipelines import datasets
from pipelines.datasets.dataset import Taxonomy
from pipelines.errors import DataError

NUM_CLASSES = {
    "ade20k": 150,
    "cadis_task1": 8,
    "cadis_task2": 17,
    "cadis_task3": 25,
    "camvid": 11,
    "cityscapes": 19,
    "coco_stuff": 171,
    "oxford_iiit_pet": 2,
    "pascal_context": 59,
    "pascal_voc": 21,
    "synthetic": 8,
}
# Some official palettes give two classes one colour.
SHARED_COLORS = {"ade20k": 1, "pascal_context": 1}


@pytest.mark.parametrize("name", sorted(NUM_CLASSES))
def test_taxonomy(name):
    taxonomy = datasets.get(name).taxonomy()
    num_classes = NUM_CLASSES[name]
    assert len(taxonomy.class_names) == len(set(taxonomy.class_names)) == num_classes
    assert np.array(taxonomy.palette).shape == (num_classes, 3)
    colors = set(map(tuple, taxonomy.palette))
    assert len(colors) == num_classes - SHARED_COLORS.get(name, 0)
    assert np.array(taxonomy.palette).min() >= 0 and np.array(taxonomy.palette).max() <= 255
    assert set(taxonomy.label_map.values()) - {255} == set(range(num_classes))
    assert set(taxonomy.label_map) <= set(range(256))
    for labels in (*taxonomy.categories.values(), *taxonomy.groups.values()):
        assert labels and set(labels) <= set(range(num_classes))


@pytest.mark.parametrize(
    "name, values, names",
    [
        ("ade20k", [1, 3, 150], ["wall", "sky", "flag"]),
        ("camvid", [0, 3, 10], ["sky", "road", "bicyclist"]),
        ("cityscapes", [7, 26, 33], ["road", "car", "bicycle"]),
        ("coco_stuff", [1, 90, 92, 182], ["person", "toothbrush", "banner", "wood"]),
        ("pascal_context", [1, 6, 59], ["aeroplane", "bicycle", "wood"]),
        ("cadis_task2", [4, 20, 19], ["Iris", "Cannula", "Cap. Forceps"]),
    ],
)
def test_values_of_well_known_classes(name, values, names):
    taxonomy = datasets.get(name).taxonomy()
    labels = taxonomy.map_labels(np.uint8(values))
    assert [taxonomy.class_names[label] for label in labels] == names


def test_label_map():
    taxonomy = Taxonomy(["a", "b"], [[0, 0, 0], [1, 1, 1]], {3: 0, 4: 1, 0: 255})
    labels = taxonomy.map_labels(np.uint8([[3, 4], [0, 3]]))
    np.testing.assert_array_equal(labels, [[0, 1], [255, 0]])
    assert labels.dtype == np.uint8
    with pytest.raises(DataError, match=r"among 0, 3..4; found 5 \(1 pixels\), 9 \(2 pixels\)"):
        taxonomy.map_labels(np.uint8([[9, 4, 9, 5]]))


def test_label_map_of_wide_values():
    taxonomy = Taxonomy(["a", "b"], [[0, 0, 0], [1, 1, 1]], {300: 0, 2: 1})
    labels = taxonomy.map_labels(np.uint16([[300, 2]]))
    np.testing.assert_array_equal(labels, [[0, 1]])
    assert labels.dtype == np.uint8
    with pytest.raises(DataError, match=r"among 2, 300; found 44 \(1 pixels\)"):
        taxonomy.map_labels(np.uint16([[44, 2]]))  # 300 modulo 256.


def test_unknown_name():
    with pytest.raises(
        DataError, match=r"'kamvid'\. Use one of: ade20k, cadis_task1, cadis_task2,"
    ):
        datasets.get("kamvid")
