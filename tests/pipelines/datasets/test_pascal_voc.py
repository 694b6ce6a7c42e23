import numpy as np
import pytest

from pipelines.datasets import pascal_voc
from pipelines.errors import DataError
from tests.pipelines.datasets.tiny_annotations import SIZE, write_pascal_voc
from tests.pipelines.tiny_data import all_labels


@pytest.mark.parametrize("colors", [False, True])
def test_numbers_and_colors(tmp_path, colors):
    write_pascal_voc(tmp_path, colors)
    found = pascal_voc.find(tmp_path)
    labels = np.full(SIZE, 255)
    labels[:, :4], labels[:, 4:8], labels[:, 8:12] = 0, 7, 15
    for split in ("train", "val"):
        np.testing.assert_array_equal(all_labels(found)[split][split], labels)
    names = found.taxonomy.class_names
    assert [names[i] for i in (0, 7, 15, 20)] == ["background", "car", "person", "tvmonitor"]
    assert found.taxonomy.palette[20] == [0, 64, 128]


def test_the_larger_list(tmp_path):
    write_pascal_voc(tmp_path)
    (tmp_path / "VOC2012/ImageSets/Segmentation/trainaug.txt").write_text("train\nval\n")
    (tmp_path / "VOC2012/ImageSets/Segmentation/test.txt").write_text("secret\n")
    found = pascal_voc.find(tmp_path)
    assert {split: len(examples) for split, examples in found.splits.items()} == {
        "train": 2,
        "val": 1,
    }


def test_mistakes(tmp_path):
    write_pascal_voc(tmp_path)
    lists = tmp_path / "VOC2012/ImageSets/Segmentation"
    (lists / "val.txt").write_text("gone\n")
    with pytest.raises(DataError, match=r"val.txt names what has no image file: gone"):
        pascal_voc.find(tmp_path)
    for name in ("train", "val"):
        (lists / f"{name}.txt").unlink()
    with pytest.raises(DataError, match=r"Segmentation must hold train.txt, val.txt or both"):
        pascal_voc.find(tmp_path)
    with pytest.raises(DataError, match="with JPEGImages/, SegmentationClass/ and ImageSets"):
        pascal_voc.find(lists)
