import concurrent.futures
import threading

import numpy as np
import pytest

from pipelines.datasets import folder, huggingface
from pipelines.errors import DataError
from pipelines.examples import read_checked
from tests.pipelines.datasets.tiny_annotations import (
    expected,
    table_of_images,
    write_huggingface,
    write_json,
)
from tests.pipelines.tiny_data import all_labels

arrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")


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


def write_one(folder, rows=3):
    """One Parquet file of the split `train`, in groups of two rows."""
    path = folder / "data/train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    arrow.parquet.write_table(table_of_images(rows=rows), path, row_group_size=2)
    write_json(folder / "id2label.json", {"0": "ground", "1": "car", "2": "tree"})
    return path


def test_a_single_split_can_be_divided(tmp_path):
    write_one(tmp_path, rows=4)
    found = huggingface.find(tmp_path, split={"train": 0.5, "val": 0.5})
    assert {name: len(examples) for name, examples in found.splits.items()} == {
        "train": 2,
        "val": 2,
    }


def test_damaged_pages_name_file_and_group(tmp_path):
    path = write_one(tmp_path)
    found = huggingface.find(tmp_path)
    column = arrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    sound, _, damaged = found.splits["train"]
    read_checked(sound, found.taxonomy)
    with pytest.raises(DataError, match=r"parquet, group 1, cannot be read as a table: \w"):
        read_checked(damaged, found.taxonomy)


def test_choices(tmp_path):
    write_one(tmp_path)
    with pytest.raises(DataError, match=r"`masks` must be one of auto, index, colors, binary. Rec"):
        huggingface.find(tmp_path, masks="foo")
    with pytest.raises(DataError, match=r"`unknown` must be one of error, ignore. Received: 3"):
        huggingface.find(tmp_path, unknown=3)


def test_threads_do_not_evict_each_others_groups(tmp_path, monkeypatch):
    """Eight threads read a group each, row by row and in turn."""
    write_one(tmp_path, rows=16)
    cells = [example.image for example in huggingface.find(tmp_path).splits["train"]]
    opened, open_anew = [], huggingface._open_anew
    monkeypatch.setattr(
        huggingface, "_open_anew", lambda file: opened.append(file) or open_anew(file)
    )
    barrier = threading.Barrier(8, timeout=60)

    def read(number):
        for cell in 3 * [cells[2 * number], cells[2 * number + 1]]:
            barrier.wait()
            cell.read_bytes()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert len(opened) == 8
