"""Reads what `torch.save` wrote, without PyTorch and without running anything that is in it.

A PyTorch checkpoint is a pickle, and a pickle is a program. The reader here knows the handful of
names that a dictionary of tensors needs, and refuses every other one. None of the names it knows
can do more than describe a tensor; the memory that a description points to is checked before it is
touched.
"""

import dataclasses
import io
import pickle
import struct
import sys
import typing
import zipfile

import numpy as np

from kseg.errors import UserError

# Entries of a training checkpoint that hold the network, the first one present counts.
WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict", "net", "network", "params")

_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_CORRUPT = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # An encrypted or strangely compressed archive.
    TypeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The arrays of a file, and what else stood in it.

    Attributes:
        arrays: dict from name to array. Arrays may be read-only, and views of one another.
        beside: dict from the name of anything else to what it is.
    """

    arrays: dict
    beside: dict


def read_torch_file(path):
    """Reads the tensors of a `.pth`, `.pt` or `.bin` file.

    Both formats of `torch.save` are read: the zip archive (since PyTorch 1.6) and the stream of
    pickles before it. Only what a dictionary of tensors consists of is accepted: storages of
    float64, float32, float16, bfloat16, integers and booleans, tensors and parameters on them with
    any strides, `OrderedDict`, and Python's plain values.

    Source: `torch/serialization.py` of PyTorch, for the layout.

    Args:
        path: `pathlib.Path` of the file.

    Returns:
        `Checkpoint`. Tensors are those of the file's dictionary, or of the one that it holds under
        a key of `WRAPPERS`. bfloat16 comes as float32, the others as the dtype of the same name.

    Raises:
        UserError: if the file is damaged, holds no tensors, or names a function or class that is
            not among the above. Nothing of it was run then.
    """
    try:
        file = _Bytes(path.read_bytes())
        if file.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                return _select(path, *_read_archive(path, archive))
        return _select(path, *_read_legacy(path, file))
    except UserError:
        raise
    except _CORRUPT as error:
        raise UserError(
            f"{path} is damaged, or no PyTorch checkpoint ({_first_line(error)}). Fetch it again"
        ) from None


def _first_line(error):
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class _StorageType(typing.NamedTuple):
    dtype: str


class _Storage(typing.NamedTuple):
    dtype: str
    key: str
    numel: int
    view: tuple | None  # (offset, length) in elements: how old files shared memory.


class _Tensor(typing.NamedTuple):
    storage: _Storage
    offset: int
    size: tuple
    stride: tuple


class _StateDict(dict):
    """Stands for `OrderedDict`; drops the attributes that PyTorch hangs on it."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Rebuild:
    """A function that a pickle may call, but not alter."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a function is given attributes")


def _tensor(storage, offset, size, stride, *unused):
    return _Tensor(storage, offset, size, stride)


def _parameter(tensor, *unused):
    return tensor


_GLOBALS = {
    ("collections", "OrderedDict"): _StateDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _Rebuild(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Rebuild(_parameter),
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
}


class _Bytes(io.BytesIO):
    """A file in memory which knows that a name cut off at its end is none."""

    def readline(self, *arguments):
        line = super().readline(*arguments)
        if not line.endswith(b"\n"):
            raise EOFError("it is cut off")
        return line


# The unpickler written in Python: the one in C reserves memory for any number that a file names.
class _Unpickler(pickle._Unpickler):
    def __init__(self, file, path):
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.storages = {}

    def find_class(self, module, name):
        known = _GLOBALS.get((module, name))
        if known is None:
            raise UserError(
                f"{self.path} holds {f'{module}.{name}'!r}, which is no part of a dictionary of "
                "tensors and is not run here. If you trust the file, load it with PyTorch and save "
                "its state_dict() alone"
            )
        return known

    def persistent_load(self, pid):
        kind, storage_type, key, _, numel, *view = pid
        if kind != "storage" or type(storage_type) is not _StorageType or type(key) is not str:
            raise pickle.UnpicklingError(f"unknown reference {kind!r}")
        view = view[0] if view else None
        storage = _Storage(
            storage_type.dtype, key, _count(numel), view and (_count(view[1]), _count(view[2]))
        )
        self.storages[key] = storage
        return storage


def _count(value):
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _read_archive(path, archive):
    """Gives `(tree, read)`: the unpickled tree, and a function from a storage to its values."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("the archive has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist():
        byteorder = archive.read(f"{root}byteorder").decode()
    else:
        byteorder = "little"
    tree = _Unpickler(_Bytes(archive.read(pickles[0])), path).load()

    def read(storage):
        info = archive.getinfo(f"{root}data/{storage.key}")
        expected = storage.numel * _itemsize(storage.dtype)
        if info.file_size != expected:
            raise ValueError(
                f"storage {storage.key} has {info.file_size} bytes instead of {expected}"
            )
        return archive.read(info), byteorder

    return tree, read


def _read_legacy(path, file):
    """As `_read_archive`, for the stream of pickles that PyTorch wrote before 1.6."""
    file.seek(0)
    if _Unpickler(file, path).load() != _LEGACY_MAGIC:
        raise ValueError("it begins with another number than PyTorch's")
    protocol = _Unpickler(file, path).load()
    if protocol != _LEGACY_PROTOCOL:
        raise ValueError(f"protocol {protocol!r} is unknown")
    byteorder = "little" if _Unpickler(file, path).load()["little_endian"] else "big"
    unpickler = _Unpickler(file, path)
    tree = unpickler.load()
    keys = _Unpickler(file, path).load()
    places, end = {}, len(file.getbuffer())
    for key in keys:
        storage = unpickler.storages[key]
        (numel,) = struct.unpack("<q" if byteorder == "little" else ">q", file.read(8))
        length = storage.numel * _itemsize(storage.dtype)
        places[key] = file.tell()
        if numel != storage.numel or places[key] + length > end:
            raise ValueError(f"storage {key} is cut off")
        file.seek(length, 1)

    def read(storage):
        place = places[storage.key]
        return file.getbuffer()[place : place + storage.numel * _itemsize(storage.dtype)], byteorder

    return tree, read


def _itemsize(dtype):
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _select(path, tree, read):
    """Finds the network's dictionary in an unpickled tree and reads its tensors."""
    beside = {}
    for _ in range(3):  # Wrapped at most thrice.
        if not isinstance(tree, dict) or any(type(value) is _Tensor for value in tree.values()):
            break
        wrapper = next((key for key in WRAPPERS if isinstance(tree.get(key), dict)), None)
        if wrapper is None:
            break
        beside.update({str(key): f"stands beside {wrapper!r}" for key in tree if key != wrapper})
        tree = tree[wrapper]
    tensors = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if type(value) is _Tensor and type(key) is str:
            tensors[key] = value
        else:
            beside[str(key)] = "is no tensor"
    if not tensors:
        found = f" Its keys: {', '.join(map(ascii, list(beside)[:8]))}" if beside else ""
        raise UserError(
            f"{path} holds no dictionary of tensors, neither at its top nor under one of "
            f"{', '.join(WRAPPERS)}.{found}"
        )
    values = {}
    arrays = {name: _view(tensor, values, read) for name, tensor in tensors.items()}
    return Checkpoint(arrays, beside)


def _view(tensor, values, read):
    """Gives a tensor's array, a view of its storage's values, which are read once."""
    storage = tensor.storage
    if type(storage) is not _Storage:
        raise ValueError("a tensor has no storage")
    whole = storage._replace(view=None)
    if whole not in values:
        data, byteorder = read(whole)
        values[whole] = _decode(data, whole.dtype, byteorder)
    flat = values[whole]
    if storage.view is not None:
        offset, length = storage.view
        if offset + length > flat.size:
            raise ValueError("a view reaches beyond its storage")
        flat = flat[offset : offset + length]
    offset = _count(tensor.offset)
    size = tuple(_count(extent) for extent in tensor.size)
    stride = tuple(_count(step) for step in tensor.stride)
    if len(size) != len(stride):
        raise ValueError("a tensor has more sizes than strides, or fewer")
    if 0 in size:
        return np.zeros(size, flat.dtype)
    # What the strides reach must be inside: NumPy would read any memory.
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if last >= flat.size:
        raise ValueError("a tensor reaches beyond its storage")
    strides = tuple(step * flat.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(flat[offset:], size, strides, writeable=False)


def _decode(data, dtype, byteorder):
    if byteorder not in ("little", "big"):
        raise ValueError(f"byte order {byteorder!r} is unknown")
    order = "<" if byteorder == "little" else ">"
    if dtype == "bfloat16":
        return bfloat16_to_float32(np.frombuffer(data, f"{order}u2"))
    array = np.frombuffer(data, np.dtype(dtype).newbyteorder(order))
    return array if byteorder == sys.byteorder else array.astype(dtype)


def bfloat16_to_float32(bits):
    """Widens bfloat16 numbers, given by their bits.

    Args:
        bits: uint16 array.

    Returns:
        float32 array of the same shape: a bfloat16 is the upper half of a float32.
    """
    return (bits.astype("uint32") << 16).view("float32")
