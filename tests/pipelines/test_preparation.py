import pytest

import pipelines
from pipelines.errors import DataError

TINY = {"train_images": 3, "val_images": 2, "size": (32, 48), "progress": False}


def test_prepare(tmp_path):
    manifest = pipelines.prepare("synthetic", output=tmp_path, **TINY)
    assert (
        manifest == pipelines.read_manifest(tmp_path) == pipelines.verify(tmp_path, progress=False)
    )
    assert manifest.dataset == "synthetic"
    assert {name: split.num_images for name, split in manifest.splits.items()} == {
        "train": 3,
        "val": 2,
    }
    assert manifest.split("val").image_size == [32, 48]
    assert manifest.options == {"train_images": 3, "val_images": 2, "size": [32, 48]}
    with pytest.raises(DataError, match="made from other files or with other options"):
        pipelines.prepare("synthetic", output=tmp_path, seed=1, **TINY)


def test_default_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipelines.prepare("synthetic", **TINY)
    assert pipelines.read_manifest("data/synthetic").split("train").num_images == 3


def test_prepare_once_takes_what_is_there(tmp_path):
    made = pipelines.prepare_once("synthetic", tmp_path, **TINY)
    assert pipelines.prepare_once("synthetic", tmp_path) == made
    next(tmp_path.glob("*.tfrecord")).unlink()
    with pytest.raises(DataError, match="is missing"):
        pipelines.prepare_once("synthetic", tmp_path)


def test_mistakes(tmp_path):
    with pytest.raises(
        DataError, match=r"Unknown data set 'kitti'\. Use one of: ade20k, cadis_task1"
    ):
        pipelines.prepare("kitti", tmp_path)
    with pytest.raises(DataError, match="'camvid' is made from files"):
        pipelines.prepare("camvid", output=tmp_path)


def test_skip(tmp_path):
    manifest = pipelines.prepare("synthetic", output=tmp_path, skip=["train_00001"], **TINY)
    assert manifest.split("train").num_images == 2
    assert manifest.options["skip"] == ["train_00001"]
    with pytest.raises(DataError, match=r"There is no train_00007"):
        pipelines.prepare("synthetic", output=tmp_path, skip=["train_00007"], **TINY)
