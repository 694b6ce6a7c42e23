import numpy as np
import pytest

from pipelines.datasets import folder, huggingface
from pipelines.errors import DataError
from tests.pipelines.datasets.tiny_annotations import (
    expected,
    table_of_images,
    write_huggingface,
    write_json,
)
from tests.pipelines.tiny_data import all_labels

arrow = pytest.importorskip("pyarrow")


def test_parquet(tmp_path):
    write_huggingface(tmp_path)
    found = huggingface.find(tmp_path)
    assert found.taxonomy.class_names == ["ground", "car", "tree"]
    labels = all_labels(found)
    assert list(labels) == ["train", "val"] and len(labels["val"]) == 3
    for i, array in enumerate(labels["train"].values()):
        np.testing.assert_array_equal(array, np.roll(expected(), i, axis=0))


def test_arrow_files_of_save_to_disk(tmp_path):
    table = table_of_images()
    (tmp_path / "train").mkdir()
    path = str(tmp_path / "train/data-00000-of-00001.arrow")
    with arrow.OSFile(path, "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    write_json(tmp_path / "classes.json", ["ground", "car", "tree"])
    labels = list(all_labels(huggingface.find(tmp_path))["train"].values())
    np.testing.assert_array_equal(labels[2], np.roll(expected(), 2, axis=0))


def test_columns_and_mistakes(tmp_path):
    write_huggingface(tmp_path)
    columns = {"image_column": "image", "label_column": "annotation"}
    assert len(huggingface.find(tmp_path, **columns).splits["train"]) == 3
    message = 'has the columns image, annotation. Say which holds the masks: `label_column="NAME"`'
    with pytest.raises(DataError, match=message):
        huggingface.find(tmp_path, label_column="truth")
    (tmp_path / "id2label.json").unlink()
    with pytest.raises(DataError, match="A class table is needed"):
        huggingface.find(tmp_path)
    with pytest.raises(DataError, match=r"\(data/train-.*parquet\), .*kseg prepare huggingface"):
        folder.find(tmp_path)
    write_json(tmp_path / "id2label.json", {"0": "ground", "1": "car", "2": "tree"})
    (tmp_path / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="parquet cannot be read as a table"):
        huggingface.find(tmp_path)
