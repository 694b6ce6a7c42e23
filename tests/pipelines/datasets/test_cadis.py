import itertools

import numpy as np
import pytest

from pipelines import prepare
from pipelines.datasets import cadis
from pipelines.errors import DataError
from tests.pipelines.tiny_data import all_labels, encode, pack, write_pairs

# Pupil, Hydro. Cannula, Cap. Cystotome, Visc. Cannula Handle, two that tasks 2 and 3 ignore.
VALUES = np.uint8([[0, 7, 9, 27, 25, 35]])


@pytest.fixture
def source(tmp_path):
    """A frame each of five videos. Folders have two digits, files have one."""
    pairs = {}
    for video in (1, 5, 2, 25, 12):
        name = f"Video{video}_frame000090.png"
        pairs[f"Video{video:02d}/Images/{name}", f"Video{video:02d}/Labels/{name}"] = VALUES
    write_pairs(tmp_path / "segmentation", pairs)
    return tmp_path / "segmentation"


@pytest.mark.parametrize(
    "task, expected",
    [(1, [0, 7, 7, 7, 7, 7]), (2, [0, 7, 8, 7, 255, 255]), (3, [0, 7, 9, 255, 255, 255])],
)
def test_tasks(source, task, expected):
    labels = all_labels(cadis.Task(task).find(source))
    assert {split: list(ids) for split, ids in labels.items()} == {
        "train": ["Video1_frame000090", "Video25_frame000090"],
        "val": ["Video5_frame000090"],
        "test": ["Video2_frame000090", "Video12_frame000090"],
    }
    for arrays in labels.values():
        for array in arrays.values():
            np.testing.assert_array_equal(array, [expected])


def test_archive(source, tmp_path):
    pack(tmp_path / "CaDIS.zip", source, "segmentation/")
    assert all_labels(cadis.Task(1).find(tmp_path / "CaDIS.zip")).keys() == {"train", "val", "test"}


def test_labels_with_three_or_four_equal_channels(source):
    """Some of the files are like that."""
    rgba = np.dstack([VALUES] * 3 + [np.full_like(VALUES, 255)])
    for video, picture in ((1, rgba[..., :3]), (25, rgba)):
        path = source / f"Video{video:02d}/Labels/Video{video}_frame000090.png"
        path.write_bytes(encode(picture))
    for array in all_labels(cadis.Task(2).find(source))["train"].values():
        np.testing.assert_array_equal(array, [[0, 7, 8, 7, 255, 255]])


def test_videos_are_divided_as_published():
    videos = cadis.facts("cadis")["split_videos"]
    assert videos["val"] == [5, 7, 16] and videos["test"] == [2, 12, 22]
    assert sorted(itertools.chain(*videos.values())) == list(range(1, 26))


def test_groups():
    """Rare classes are of other groups, too; the rest divides the classes."""
    for task, count in ((1, 8), (2, 17), (3, 25)):
        taxonomy = cadis.Task(task).taxonomy()
        groups = dict(taxonomy.groups)
        rare = groups.pop("rare")
        assert sorted(itertools.chain(*groups.values())) == list(range(count))
        assert set(rare) < set(range(count))
        assert [taxonomy.class_names[i] for i in groups["anatomies"]] == [
            "Pupil", "Iris", "Skin", "Cornea",
        ]  # fmt: skip
    taxonomy = cadis.Task(2).taxonomy()
    rare = [taxonomy.class_names[i] for i in taxonomy.groups["rare"]]
    assert sorted(rare) == [
        "Cap. Forceps", "Lens Injector", "Primary Knife", "Secondary Knife", "Tissue Forceps",
    ]  # fmt: skip


def test_the_task_is_a_part_of_the_data(source, tmp_path):
    manifest = prepare("cadis_task3", source, tmp_path / "out", progress=False)
    assert manifest.dataset == "cadis_task3"
    assert manifest.num_classes == 25 and manifest.groups["rare"][0] == 24
    with pytest.raises(DataError, match="with other options"):
        prepare("cadis_task2", source, tmp_path / "out", progress=False)


def test_mistakes(source, tmp_path):
    (source / "Video05" / "Labels").rename(tmp_path / "Labels")
    with pytest.raises(DataError, match="Video05/Labels/ is missing"):
        cadis.Task(2).find(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"with Video01/Images/ .* up to Video25\. It holds nothing"
    ):
        cadis.Task(2).find(tmp_path / "empty")
