import numpy as np
import pytest

from pipelines.datasets import ade20k
from pipelines.errors import DataError
from tests.pipelines.tiny_data import noise_example, pack, write_files


@pytest.fixture
def source(tmp_path):
    """Both splits, as in ADEChallengeData2016."""
    source = tmp_path / "ADEChallengeData2016"
    for number, split in enumerate(("training", "validation")):
        examples = [noise_example(number, suffix=".jpg")]
        write_files(source / "images" / split, source / "annotations" / split, examples)
    return source


def test_the_folder_or_its_parent(source):
    splits = ade20k.find(source).splits
    assert list(splits) == ["train", "val"]
    assert splits["train"][0].image == source / "images" / "training" / "000.jpg"
    assert splits["val"][0].label == source / "annotations" / "validation" / "001.png"
    assert ade20k.find(source.parent).splits == splits


def test_archive(source):
    """The layout of the download: the folder's name comes first."""
    pack(source.parent / "ADEChallengeData2016.zip", source, "ADEChallengeData2016/")
    found = ade20k.find(source.parent / "ADEChallengeData2016.zip")
    assert [e.id for examples in found.splits.values() for e in examples] == ["000", "001"]
    for split, examples in ade20k.find(source).splits.items():
        assert found.splits[split][0].read() == examples[0].read()


def test_one_split_is_enough(source):
    for kind in ("images", "annotations"):
        (source / kind / "training").rename(source / f"{kind} elsewhere")
    assert list(ade20k.find(source).splits) == ["val"]


def test_half_a_split(source):
    (source / "annotations" / "training").rename(source / "elsewhere")
    with pytest.raises(DataError, match="annotations/training/ is missing"):
        ade20k.find(source)


def test_labels_begin_at_one():
    values = np.uint8([0, 1, 2, 150])
    np.testing.assert_array_equal(ade20k.taxonomy().map_labels(values), [255, 0, 1, 149])
    with pytest.raises(DataError, match=r"among 0..150; found 151 \(1 pixels\)"):
        ade20k.taxonomy().map_labels(np.uint8([151]))
