import argparse
import collections
import datetime
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from kseg.errors import UserError
from kseg.weights.torch_file import read_torch_file
from tests.weights import torch_writer
from tests.weights.torch_writer import Parameter, Storage, Tensor, tensor

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
WRITERS = [torch_writer.write_zip, torch_writer.write_legacy]


@pytest.fixture(params=WRITERS, ids=["zip", "legacy"])
def write(request):
    return request.param


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_dtypes(write, byteorder, tmp_path):
    arrays = {
        name: np.array([[0, 1, 2], [3, 4, 100]], name)
        for name in torch_writer.STORAGES
        if name != "bfloat16"
    }
    state = {name: tensor(array) for name, array in arrays.items()}
    # 1, -2 and 1 + 2^-7 are bfloat16 numbers; their bits are the upper halves of the float32's.
    numbers = np.array([1.0, -2.0, 1.0078125], "float32")
    state["bfloat16"] = tensor((numbers.view("uint32") >> 16).astype("uint16"), "bfloat16")
    path = write(tmp_path / "x.pth", collections.OrderedDict(state), byteorder=byteorder)
    checkpoint = read_torch_file(path)
    assert list(checkpoint.arrays) == list(state)
    for name, array in arrays.items():
        assert checkpoint.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(checkpoint.arrays[name], array)
    np.testing.assert_array_equal(checkpoint.arrays["bfloat16"], numbers)
    assert checkpoint.arrays["bfloat16"].dtype == "float32"


def test_views_of_one_storage(write, tmp_path):
    memory = np.arange(12, dtype="float32")
    storage = Storage(memory)
    state = {
        "matrix": Tensor(storage, (3, 4), (4, 1)),
        "transposed": Tensor(storage, (4, 3), (1, 4)),
        "every second of the last row": Tensor(storage, (2,), (2,), offset=8),
        "expanded": Tensor(storage, (2, 3), (0, 1)),
        "scalar": Tensor(storage, (), (), offset=5),
        "empty": Tensor(storage, (0, 4), (4, 1)),
        "parameter": Parameter(Tensor(storage, (1,), (1,), offset=11)),
    }
    arrays = read_torch_file(write(tmp_path / "x.pt", state)).arrays
    expected = {
        "matrix": memory.reshape(3, 4),
        "transposed": memory.reshape(3, 4).T,
        "every second of the last row": [8, 10],
        "expanded": [[0, 1, 2], [0, 1, 2]],
        "scalar": 5,
        "empty": np.zeros((0, 4)),
        "parameter": [11],
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=False, err_msg=name)


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_what_pytorch_itself_wrote(name):
    # Made by make_torch_fixtures.py.
    checkpoint = read_torch_file(FIXTURES / f"torch_{name}.pth")
    assert checkpoint.beside == {
        "epoch": "not part of 'state_dict'",
        "optimizer": "not part of 'state_dict'",
    }
    arrays = checkpoint.arrays
    kernel = np.arange(24, dtype="float32").reshape(2, 3, 2, 2)
    expected = {
        "conv.weight": kernel,
        "conv.bias": np.array([0.5, -0.25], "float32"),
        "tied": kernel,
        "half": np.array([1.5, 2.0], "float16"),
        "bfloat16": np.array([1.0, -3.0], "float32"),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "channels_last": kernel,
        "slice": np.array([3, 4], "int64"),
        "flag": np.array(True),
        "empty": np.zeros((0, 2), "float32"),
    }
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
        assert arrays[name].dtype == array.dtype


@pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["state_dict", "model"]])
def test_wrappers(write, keys, tmp_path):
    value = {"w": tensor(np.ones(2, "float32")), "version": 3}
    for key in reversed(keys):
        value = {"epoch": 5, key: value, "meta": {"CLASSES": ("a", "b")}}
    checkpoint = read_torch_file(write(tmp_path / "x.pth", value))
    np.testing.assert_array_equal(checkpoint.arrays["w"], [1, 1])
    assert checkpoint.beside == {
        "epoch": f"not part of {keys[-1]!r}",
        "meta": f"not part of {keys[-1]!r}",
        "version": "not a tensor",
    }


class Evil:
    """Unpickled by Python's own unpickler, it would make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda folder: Evil(folder), f"{os.mkdir.__module__}.mkdir"),
        (lambda folder: {"lr": np.float64(0.1)}, "numpy"),  # Without any tensor.
        (lambda folder: {"w": eval}, "builtins.eval|__builtin__.eval"),
        (lambda folder: pathlib.PurePosixPath("a"), "pathlib"),
    ],
)
def test_refuses_every_other_name(write, make, name, tmp_path):
    folder = tmp_path / "made"
    data = pickle.dumps(make(folder), protocol=2)
    path = write(tmp_path / "x.pth", {}, data=data)
    with pytest.raises(UserError, match=rf"Python objects \(({name}).*not executed") as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE_TYPE = b"ctorch\nFloatStorage\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + REBUILD + b"}(X\x04\x00\x00\x00nameK\x01ub.",  # Attributes of a function.
        b"\x80\x02" + STORAGE_TYPE + b"}(X\x05\x00\x00\x00dtypeK\x01ub.",
        b"\x80\x02ccollections\nOrderedDict\n}X\x05\x00\x00\x00itemsK\x01sb.",
        b"\x80\x02" + STORAGE_TYPE + b")R.",  # Called.
        b"\x80\x02" + REBUILD + b")\x81.",  # Instantiated.
        b"\x80\x02X\x07\x00\x00\x00storageQ.",  # A reference that is not a tuple.
        b"\x80\x02" + REBUILD + b"(NK\x00K\x01\x85K\x01\x85tR}K\x00sQ.",
        b"\x80\x02" + b"]" * 100_000 + b".",
        b"\x80\x02\x82\x01.",  # An extension code.
        b"\x80\x02Nr\x00\x00\x00\x40.",  # Python's C unpickler allocates 16 GB for this.
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"",
        b".",
    ],
)
def test_senseless_pickles(write, data, tmp_path):
    with pytest.raises(UserError, match=r"x\.pth (is damaged|holds no dictionary of tensors)"):
        read_torch_file(write(tmp_path / "x.pth", {}, data=data))
    # The reader is unchanged.
    state = collections.OrderedDict(w=tensor(np.ones(2, "float32")))
    np.testing.assert_array_equal(
        read_torch_file(write(tmp_path / "y.pth", state)).arrays["w"], [1, 1]
    )


@pytest.mark.parametrize(
    "size, stride, offset",
    [
        ((5,), (1,), 0),  # One more than the storage has.
        ((4,), (1,), 1),
        ((2, 2), (3, 1), 1),
        ((2,), (1 << 62,), 0),
        ((2,), (-1,), 1),
        ((-1,), (1,), 0),
        ((2,), (1, 1), 0),
        ((1,), (1,), -1),
        ((1.0,), (1,), 0),
        ((True,), (1,), 0),
    ],
)
def test_tensors_outside_of_their_storage(write, size, stride, offset, tmp_path):
    state = {"w": Tensor(Storage(np.ones(4, "float32")), size, stride, offset)}
    with pytest.raises(UserError, match="is damaged"):
        read_torch_file(write(tmp_path / "x.pth", state))


def test_storage_of_another_size(write, tmp_path):
    state = {"w": Tensor(Storage(np.ones(4, "float32"), claimed_size=8), (8,), (1,))}
    with pytest.raises(UserError, match="storage 0"):
        read_torch_file(write(tmp_path / "x.pth", state))


def test_truncated(write, tmp_path):
    path = write(tmp_path / "x.pth", {"w": tensor(np.arange(50, dtype="float32"))})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged"):
            read_torch_file(path)


def test_random_damage_is_a_line_at_worst(write, tmp_path):
    state = {"w": tensor(np.arange(8, dtype="float32")), "v": tensor(np.arange(4))}
    path = write(tmp_path / "x.pth", {"state_dict": state, "epoch": 3})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for index in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[index] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_torch_file(path)
        except UserError as error:
            assert "\n" not in str(error)


def test_no_tensors(write, tmp_path):
    with pytest.raises(UserError, match=r"holds no dictionary of tensors.*Its keys: 'epoch'"):
        read_torch_file(write(tmp_path / "x.pth", {"epoch": 1}))
    with pytest.raises(UserError, match="holds no dictionary of tensors"):
        read_torch_file(write(tmp_path / "x.pth", [tensor(np.ones(1))]))


def test_another_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    with pytest.raises(UserError, match=r"the archive has no data\.pkl"):
        read_torch_file(tmp_path / "x.pth")


@pytest.mark.parametrize("best", [np.float64(0.71), np.arange(3), np.float32(1), np.dtype("f4")])
def test_what_training_code_of_hrnet_keeps(write, best, tmp_path):
    """`checkpoint.pth.tar` contains the best IoU so far, a NumPy number, next to the weights."""
    value = {"epoch": 1, "best_mIoU": best, "state_dict": {"w": tensor(np.ones(2, "float32"))}}
    checkpoint = read_torch_file(write(tmp_path / "checkpoint.pth.tar", value))
    np.testing.assert_array_equal(checkpoint.arrays["w"], [1, 1])
    assert checkpoint.beside["best_mIoU"] == "not part of 'state_dict'"
    named = [name for name in checkpoint.beside if name.startswith("numpy.")]
    assert named
    assert all("are not executed" in checkpoint.beside[name] for name in named)


class Hyperparameters(dict):
    """A class like Lightning's `AttributeDict`."""


@pytest.mark.parametrize(
    "thing",
    [
        argparse.Namespace(lr=0.1, data="/x", nested=argparse.Namespace(a=1)),
        pathlib.PurePosixPath("/x/y"),
        Hyperparameters(lr=0.1),
        collections.Counter("abca"),
        datetime.datetime(2020, 1, 2),
        {1, 2, 3},
        complex(1, 2),
        [argparse.Namespace(a=[1, 2])] * 2,
    ],
)
def test_other_objects_beside_the_weights_do_nothing(write, thing, tmp_path):
    state = {"w": tensor(np.ones(2, "float32"))}
    for value in ({"model": state, "args": thing}, {**state, "args": thing}):
        checkpoint = read_torch_file(write(tmp_path / "x.ckpt", value))
        assert list(checkpoint.arrays) == ["w"]
        assert "args" in checkpoint.beside


def test_a_function_beside_the_weights_is_named_and_not_run(write, tmp_path):
    folder = tmp_path / "made"
    state = {"w": tensor(np.ones(2, "float32"))}
    checkpoint = read_torch_file(write(tmp_path / "x.pth", {"model": state, "a": Evil(folder)}))
    assert list(checkpoint.arrays) == ["w"]
    assert f"{os.mkdir.__module__}.mkdir" in checkpoint.beside
    assert not folder.exists()


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema_state_dict", "ema"])
def test_averaged_weights_where_there_are_no_others(write, key, tmp_path):
    averaged, own = (
        {"n_averaged": tensor(np.array(3)), "w": tensor(np.full(2, x, "float32"))} for x in (1, 2)
    )
    only = read_torch_file(write(tmp_path / "x.pth", {key: averaged, "epoch": 1}))
    np.testing.assert_array_equal(only.arrays["w"], [1, 1])
    both = read_torch_file(write(tmp_path / "y.pth", {key: averaged, "model": own}))
    np.testing.assert_array_equal(both.arrays["w"], [2, 2])
    assert both.beside == {key: "not part of 'model'"}
