"""The builders of TensorFlow Datasets run for real, on tiny downloads."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pipelines import prepare
from pipelines.datasets import tfds_source
from pipelines.errors import DataError
from tests.pipelines.datasets.test_cityscapes import LABELS, VALUES, write_download
from tests.pipelines.tiny_data import all_labels, encode, pack, write_pairs


def write_pets(folder):
    """The two archives of the download, unpacked; as many images as files need a second shard."""
    pairs = {}
    for split, names in (("trainval", ("Bombay_1", "pug_2", "pug_3")), ("test", ("boxer_4",))):
        for number, name in enumerate(names):
            label = f"annotations/annotations/trimaps/{name}.png"
            pairs[f"images/images/{name}.jpg", label] = np.uint8([[1, 2, 3, 1 + number]])
        lines = "".join(f"{name} 1 1 1\n" for name in names)
        path = folder / f"annotations/annotations/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines)
    write_pairs(folder, pairs)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data folder of TensorFlow Datasets: all three data sets, from tiny downloads."""
    root = tmp_path_factory.mktemp("tfds")
    write_pets(root / "pets")
    instances = {}
    for kind, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        paths = (
            f"images/images/{kind}/{name}.jpg",
            f"annotations/annotations_instance/{kind}/{name}.png",
        )
        # Red: nothing, bed, person, flag; green: numbers of instances.
        red, green = np.uint8([[0, 1, 4, 100]]), np.uint8([[0, 1, 2, 3]])
        instances[paths] = np.dstack([red, green, np.zeros_like(red)])
    write_pairs(root / "scene_parse150", instances)
    downloads = {"pets": root / "pets", "sceneparsing": root / "scene_parse150"}

    def download_and_extract(self, urls):
        (folder,) = (path for key, path in downloads.items() if key in str(urls))
        return {name: str(folder / name) for name in urls}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.download.DownloadManager, "download_and_extract", download_and_extract)
        for name in ("oxford_iiit_pet", "scene_parse150"):
            tfds.builder(name, data_dir=root).download_and_prepare()
    return root


def labels_of(found):
    return {
        split: [array.tolist() for array in arrays.values()]
        for split, arrays in all_labels(found).items()
    }


def test_pets(data_dir):
    found = tfds_source.find("oxford_iiit_pet", "tfds://oxford_iiit_pet", data_dir)
    assert {split: [e.id for e in examples] for split, examples in found.splits.items()} == {
        "train": ["train_000000", "train_000001", "train_000002"],
        "test": ["test_000000"],
    }
    labels = labels_of(found)
    # TensorFlow Datasets shuffles once, when it writes.
    assert sorted(labels["train"]) == [[[0, 1, 255, 0]], [[0, 1, 255, 1]], [[0, 1, 255, 255]]]
    assert labels["test"] == [[[0, 1, 255, 0]]]


def test_any_order(data_dir):
    examples = tfds_source.find("oxford_iiit_pet", "tfds://oxford_iiit_pet", data_dir).splits[
        "train"
    ]
    expected = [example.read() for example in examples]
    for index in (2, 0, 1, 1, 2):
        assert examples[index].read() == expected[index]


def test_prepare(data_dir, tmp_path):
    name, source = "oxford_iiit_pet", "tfds://oxford_iiit_pet"
    arguments = {"data_dir": data_dir, "num_shards": 2, "progress": False}
    manifest = prepare(name, source, tmp_path, **arguments)
    assert manifest.options == {}
    assert manifest.split("train").pixels == [4, 4, 4]


def test_instances_of_scene_parse150(data_dir):
    found = tfds_source.find("ade20k", "tfds://scene_parse150:1.0.0", data_dir)
    assert labels_of(found) == {split: [[[255, 7, 12, 149]]] for split in ("train", "val")}
    names = found.taxonomy.class_names
    assert [names[i] for i in (7, 12, 149)] == ["bed", "person", "flag"]


def test_cityscapes(tmp_path):
    """From the zip files that have to be downloaded by hand."""
    write_download(tmp_path / "set")
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    for kind in ("leftImg8bit", "gtFine"):
        pack(manual / f"{kind}_trainvaltest.zip", tmp_path / "set" / kind, f"{kind}/")
    labels = labels_of(tfds_source.find("cityscapes", "tfds://cityscapes", tmp_path))
    assert labels == {
        "train": [LABELS] * 2,
        "val": [LABELS],
        "test": [[[255] * 8]],
    }


def test_coarse_labels_of_cityscapes(tmp_path):
    """The config that has them gives no fine ones: `train` and `val` are left out."""
    write_download(tmp_path / "set")
    root, name = tmp_path / "set" / "gtCoarse", "000000_000019"
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "lindau")):
        (root / split / city).mkdir(parents=True)
        label = root / split / city / f"{city}_{name}_gtCoarse_labelIds.png"
        label.write_bytes(encode(VALUES))
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (tmp_path / "extra").mkdir()
    images = tmp_path / "set" / "leftImg8bit"
    (images / "train_extra").rename(tmp_path / "extra" / "train_extra")
    pack(manual / "leftImg8bit_trainvaltest.zip", images, "leftImg8bit/")
    pack(manual / "leftImg8bit_trainextra.zip", tmp_path / "extra", "leftImg8bit/")
    pack(manual / "gtCoarse.zip", root, "gtCoarse/")
    source = "tfds://cityscapes/semantic_segmentation_extra"
    labels = labels_of(tfds_source.find("cityscapes", source, tmp_path))
    assert labels == {"train_extra": [LABELS]}


def test_mistakes(data_dir, tmp_path):
    with pytest.raises(
        DataError, match=r"coco is not a source of 'ade20k'\. Use tfds://scene_parse150"
    ):
        tfds_source.find("ade20k", "tfds://coco", data_dir)
    with pytest.raises(DataError, match=r"not a source of 'cityscapes'\. Use tfds://cityscapes"):
        tfds_source.find("cityscapes", "tfds://scene_parse150", data_dir)
    with pytest.raises(DataError, match="That has none in TensorFlow Datasets"):
        tfds_source.find("camvid", "tfds://camvid", data_dir)
    with pytest.raises(DataError, match=r"cannot give cityscapes: .*download") as error:
        tfds_source.find("cityscapes", "tfds://cityscapes", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"cannot give scene_parse150:7\.0\.0"):
        tfds_source.find("ade20k", "tfds://scene_parse150:7.0.0", data_dir)


def test_a_file_that_is_gone(data_dir, tmp_path):
    found = tfds_source.find("ade20k", "tfds://scene_parse150", data_dir)
    (file,) = pathlib.Path(data_dir, "scene_parse150", "1.0.0").glob("*train.tfrecord*")
    content = file.read_bytes()
    file.write_bytes(content[:100])
    try:
        with pytest.raises(DataError, match="scene_parse150: example train_000000 cannot be read"):
            found.splits["train"][0].read()
    finally:
        file.write_bytes(content)
    assert found.splits["train"][0].read()


def test_one_source_only(data_dir):
    with pytest.raises(DataError, match="tfds:// must be the only source"):
        prepare("ade20k", ["tfds://scene_parse150", "folder"])
    with pytest.raises(DataError, match="`data_dir` is for tfds://"):
        prepare("ade20k", os.fspath(data_dir), data_dir=data_dir)
