import hashlib
import json
import struct

import numpy as np
import pytest

from kseg.errors import UserError
from kseg.weights.files import READERS, checksum, read_file
from tests.weights.torch_writer import tensor, write_zip


def test_npz(tmp_path):
    arrays = {"a/b": np.arange(3.0), "c.weight": np.array(2, "int64")}
    np.savez(tmp_path / "x.npz", meta=np.array("text"), **arrays)
    checkpoint = read_file(tmp_path / "x.npz")
    assert set(checkpoint.arrays) == set(arrays)
    np.testing.assert_array_equal(checkpoint.arrays["a/b"], [0, 1, 2])
    assert list(checkpoint.beside) == ["meta"]


def test_npz_with_objects(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(UserError, match="Object arrays cannot be loaded"):
        read_file(tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_any_other_content(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    for content in (b"", b"PK\x03\x04", b"no weights at all, but some lines\n" * 9):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged or not a .*(Fetch|save)") as caught:
            read_file(path)
        assert "\n" not in str(caught.value)


def test_names_that_would_break_a_line(tmp_path):
    np.savez(tmp_path / "x.npz", **{"a\nb": np.zeros(2)})
    with pytest.raises(UserError, match=r"damaged: it has an array 'a\\nb'"):
        read_file(tmp_path / "x.npz")


def test_names(tmp_path):
    with pytest.raises(UserError, match=r"There is no weights file .*gone\.npz"):
        read_file(tmp_path / "gone.npz")
    with pytest.raises(UserError, match=r"must end in one of \.weights\.h5, .*Received: .*x\.onnx"):
        read_file(tmp_path / "x.onnx")
    with pytest.raises(UserError, match="is a folder"):
        read_file(tmp_path)


def write_shards(folder, arrays, files=("model-1-of-2.safetensors", "model-2-of-2.safetensors")):
    """The form in which the Hugging Face hub splits large checkpoints."""
    names = list(arrays)
    where = {name: files[int(2 * i >= len(names))] for i, name in enumerate(names)}
    for file in files:
        header, data = {}, b""
        for name in names:
            if where[name] == file:
                end = len(data) + arrays[name].nbytes
                shape = list(arrays[name].shape)
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), end]}
                data += arrays[name].tobytes()
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


ARRAYS = {name: np.full(n + 1, n, "float32") for n, name in enumerate(["a", "b", "c"])}


def test_several_files_and_their_index(tmp_path):
    index = write_shards(tmp_path, ARRAYS)
    for source in (index, tmp_path):
        checkpoint = read_file(source)
        assert list(checkpoint.arrays) == ["a", "b", "c"]
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(checkpoint.arrays[name], array)


def test_checksum_of_a_file_and_of_an_index(tmp_path):
    single = tmp_path / "a.npz"
    assert checksum(single) is None
    single.write_bytes(b"content")
    assert checksum(single) == hashlib.sha256(b"content").hexdigest()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert checksum(tmp_path) is None
    for name in ("1", "2"):
        (tmp_path / f"{name}.safetensors").write_text(name)
    before = checksum(index)
    assert checksum(tmp_path) == before
    (tmp_path / "2.safetensors").write_text("other")
    assert checksum(tmp_path) != before
    with pytest.raises(UserError, match="must end in one of"):
        (tmp_path / "weights.txt").touch()
        checksum(tmp_path / "weights.txt")


def test_an_index_that_does_not_fit_its_files(tmp_path):
    index = write_shards(tmp_path, ARRAYS)
    shard = tmp_path / "model-2-of-2.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=r"names 2 files, of which model-2-of-2.* is missing"):
        read_file(index)
    shard.write_bytes((tmp_path / "model-1-of-2.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"holds 'a', as does another file"):
        read_file(index)
    shard.write_bytes(content)
    values = json.loads(index.read_text())
    values["weight_map"]["d"] = shard.name
    index.write_text(json.dumps(values))
    with pytest.raises(
        UserError, match=r"names 'd' and 0 more arrays that model-2.* does not hold"
    ):
        read_file(index)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b.bin", "x.txt", 3])
def test_an_index_must_not_name_files_elsewhere(name, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="is damaged or not a valid index of weights files"):
        read_file(index)


def test_lightning_and_tar_suffixes(tmp_path):
    for suffix in (".ckpt", ".pth.tar"):
        path = write_zip(tmp_path / f"x{suffix}", {"state_dict": {"w": tensor(np.ones(2, "f4"))}})
        assert list(read_file(path).arrays) == ["w"]
