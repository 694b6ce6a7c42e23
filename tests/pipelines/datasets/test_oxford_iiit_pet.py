import numpy as np
import pytest

from pipelines.datasets import oxford_iiit_pet
from pipelines.errors import DataError
from tests.pipelines.tiny_data import all_labels, pack, write_pairs


def write_download(folder):
    pairs = {}
    for name in ("Bombay_1", "pug_2", "pug_3"):
        pairs[f"images/{name}.jpg", f"annotations/trimaps/{name}.png"] = np.uint8([[1, 2, 3]])
    write_pairs(folder, pairs)
    (folder / "annotations" / "trimaps" / "._pug_2.png").write_bytes(b"")  # There are such files.
    (folder / "annotations" / "trainval.txt").write_text("Bombay_1 1 1 1\npug_2 2 2 1\n")
    (folder / "annotations" / "test.txt").write_text("pug_3 2 2 1\n")


def test_folder_and_archives(tmp_path):
    write_download(tmp_path / "pets")
    for kind in ("images", "annotations"):
        pack(tmp_path / f"{kind}.tar.gz", tmp_path / "pets" / kind, f"{kind}/")
    archives = [tmp_path / "images.tar.gz", tmp_path / "annotations.tar.gz"]
    for source in (tmp_path / "pets", archives):
        labels = all_labels(oxford_iiit_pet.find(source))
        assert {split: list(ids) for split, ids in labels.items()} == {
            "train": ["Bombay_1", "pug_2"],
            "test": ["pug_3"],
        }
        np.testing.assert_array_equal(labels["test"]["pug_3"], [[0, 1, 255]])


def test_mistakes(tmp_path):
    write_download(tmp_path)
    (tmp_path / "images" / "pug_3.jpg").unlink()
    with pytest.raises(DataError, match=r"test\.txt names what has no image file: pug_3"):
        oxford_iiit_pet.find(tmp_path)
    for name in ("trainval.txt", "test.txt"):
        (tmp_path / "annotations" / name).unlink()
    with pytest.raises(DataError, match=r"annotations must hold trainval\.txt, test\.txt or one"):
        oxford_iiit_pet.find(tmp_path)
    (tmp_path / "annotations").rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"with images/ and annotations/trimaps/\. It holds elsewhere/"
    ):
        oxford_iiit_pet.find(tmp_path)
