"""A reader of files from `torch.save`, without PyTorch and without running any of their content.

A PyTorch checkpoint is a pickle, and a pickle is a program. This reader resolves only the few names
that a dictionary of tensors needs; any other name becomes an inert object and is reported. The
resolved names can only describe a tensor; the memory that a description refers to is checked before
it is accessed.
"""

import io
import math
import pickle
import struct
import sys
import typing

import numpy as np

from kseg.errors import UserError
from kseg.weights.archive import max_bytes, open_archive, read_member, reporting_damage
from kseg.weights.checkpoint import Checkpoint, bfloat16_to_float32

# Entries of a training checkpoint that contain the network; the first one present is used. Averaged
# weights come last, for files that have no others.
WRAPPERS = (
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
    "net",
    "network",
    "params",
    "model_ema",
    "ema_model",
    "state_dict_ema",
    "ema_state_dict",
    "params_ema",
    "ema",
)

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
# More classes than any training code stores in its checkpoints.
_MAX_CLASSES = 1000
_MAX_ARGUMENTS = 100
_MAX_AXES = 32
_PLAIN = (str, bytes, int, float, bool, type(None))


def read_torch_file(path):
    """Reads the tensors of a `.pth`, `.pt`, `.bin` or `.ckpt` file.

    Both formats of `torch.save` are supported: the zip archive (since PyTorch 1.6) and the earlier
    stream of pickles. Supported content is that of a dictionary of tensors: storages of float64,
    float32, float16, bfloat16, integers and booleans, tensors and parameters on them with any
    strides, `OrderedDict`, and plain Python values. Objects of other classes (a NumPy number, the
    arguments of the training script) may be present; they are not created.

    Source: `torch/serialization.py` of PyTorch, for the layout.

    Args:
        path: `pathlib.Path` of the file.

    Returns:
        `Checkpoint` with the tensors of the file's dictionary, or of the one under a key of
        `WRAPPERS`. bfloat16 is converted to float32; other dtypes are kept. `beside` also lists the
        classes of other objects.

    Raises:
        UserError: if the file is damaged, or holds no tensors (or only objects of other classes,
            which the message names). None of its content has been run.
    """
    with reporting_damage(path, "PyTorch checkpoint"):
        file = _Bytes(path.read_bytes())
        size = len(file.getbuffer())
        if file.read(4) == b"PK\x03\x04":
            with open_archive(file, size) as archive:
                return _select(path, *_read_archive(archive, size), max_bytes(size))
        return _select(path, *_read_legacy(file, size), max_bytes(size))


class _StorageType(typing.NamedTuple):
    dtype: str


class _Storage(typing.NamedTuple):
    dtype: str
    key: str
    numel: int
    view: tuple | None  # (offset, length) in elements, by which old files share memory.


class _Tensor(typing.NamedTuple):
    storage: _Storage
    offset: int
    size: tuple
    stride: tuple


class _StateDict(dict):
    """Replaces `OrderedDict`; drops the attributes that PyTorch sets on it."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Rebuild:
    """A function that a pickle may call but not modify."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it sets attributes of a function")


def _tensor(storage, offset, size, stride, *unused):
    return _Tensor(storage, offset, size, stride)


def _parameter(tensor, *unused):
    return tensor


def _size(extents=()):
    if len(extents) > _MAX_AXES:  # Copies of a long tuple could exhaust the memory.
        raise ValueError("a tensor has too many axes")
    return tuple(extents)


class _Inert:
    """Replaces an object of an unknown class: accepts everything, stores and does nothing."""

    __slots__ = ()

    def __new__(cls, *arguments, **named):
        return object.__new__(cls)

    def __init__(self, *arguments, **named):
        pass

    def __setstate__(self, state):
        pass

    def __call__(self, *arguments):
        return self

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    add = append


_GLOBALS = {
    ("torch", "Size"): _Rebuild(_size),
    ("torch._utils", "_rebuild_tensor"): _Rebuild(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Rebuild(_parameter),
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
}


class _Bytes(io.BytesIO):
    """A file in memory that refuses a line truncated at its end."""

    def readline(self, *arguments):
        line = super().readline(*arguments)
        if not line.endswith(b"\n"):
            raise EOFError("it is truncated")
        return line


# The Python implementation: the C implementation allocates any size that a file claims.
class _Unpickler(pickle._Unpickler):
    """Unpickles a tree of plain values, tensors and inert objects.

    Args:
        file: `_Bytes`.
        classes: dict to fill, from the name of an unknown class to its replacement.

    Attributes:
        storages: dict from key to `_Storage`, all storages that the tree refers to.
    """

    # Opcodes that hash objects, or allocate a size that the file claims, are overridden.
    dispatch: typing.ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file, classes):
        super().__init__(file, encoding="utf-8")
        self.storages = {}
        self._classes = classes
        self._pairs_left = len(file.getbuffer())

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return _Rebuild(self._state_dict)
        known = _GLOBALS.get((module, name))
        if known is not None:
            return known
        full = f"{module}.{name}"
        if full not in self._classes:
            if len(self._classes) == _MAX_CLASSES:
                raise pickle.UnpicklingError(f"more than {_MAX_CLASSES} classes")
            self._classes[full] = type("_Inert", (_Inert,), {"__slots__": ()})
        return self._classes[full]

    def _state_dict(self, pairs=()):
        """Creates an `OrderedDict` as pickled by Python 2, with its items as an argument."""
        self._pairs_left -= len(pairs)
        if self._pairs_left < 0:  # The pickle repeats the same items.
            raise pickle.UnpicklingError("a dictionary is larger than the file")
        items = _StateDict()
        for key, value in pairs:
            items[_hashable(key)] = value
        return items

    def load_setitem(self):
        _hashable(self.stack[-2])
        super().load_setitem()

    def load_setitems(self):
        for key in self.stack[::2]:
            _hashable(key)
        super().load_setitems()

    def load_dict(self):
        for key in self.stack[::2]:
            _hashable(key)
        super().load_dict()

    def load_additems(self):
        for item in self.stack:
            _hashable(item)
        super().load_additems()

    def load_frozenset(self):
        for item in self.stack:
            _hashable(item)
        super().load_frozenset()

    def load_reduce(self):
        _few(self.stack[-1])
        super().load_reduce()

    def load_newobj(self):
        _few(self.stack[-1])
        super().load_newobj()

    def load_newobj_ex(self):
        _few(self.stack[-1])
        _few(self.stack[-2])
        super().load_newobj_ex()

    def load_bytearray8(self):
        raise pickle.UnpicklingError("a byte array")

    dispatch.update(
        {
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.DICT[0]: load_dict,
            pickle.ADDITEMS[0]: load_additems,
            pickle.FROZENSET[0]: load_frozenset,
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_newobj,
            pickle.NEWOBJ_EX[0]: load_newobj_ex,
            pickle.BYTEARRAY8[0]: load_bytearray8,
        }
    )

    def persistent_load(self, pid):
        kind, storage_type, key, _, numel, *view = pid
        if kind != "storage" or type(storage_type) is not _StorageType or type(key) is not str:
            raise pickle.UnpicklingError("an unknown reference")
        view = view[0] if view else None
        storage = _Storage(
            storage_type.dtype, key, _count(numel), view and (_count(view[1]), _count(view[2]))
        )
        self.storages[key] = storage
        return storage


def _hashable(key):
    """Refuses keys that are costly to hash: nested tuples, whose recursion in C is unbounded.

    Also refuses integers of 2^60 or more: arbitrarily many with equal hashes can be constructed.
    """
    for part in key if type(key) is tuple else (key,):
        plain = type(part) in _PLAIN and not (type(part) is int and abs(part) >= 2**60)
        if not plain and not _is_inert(part):
            raise pickle.UnpicklingError("a dictionary has a key that is not a plain value")
    return key


def _few(arguments):
    """Refuses calls with many arguments: each call copies them, and many calls can share them."""
    if len(arguments) > _MAX_ARGUMENTS:
        raise pickle.UnpicklingError("a call has too many arguments")


def _is_inert(value):
    return isinstance(value, _Inert) or (isinstance(value, type) and issubclass(value, _Inert))


def _count(value):
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a size is not a number, or negative")
    return value


def _read_archive(archive, size):
    """Reads the pickle of a zip archive.

    Returns:
        `(tree, read, classes)`: the unpickled tree; a function from a storage to its bytes and
        their byte order; the unknown classes by name.
    """
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("the archive has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist():
        byteorder = read_member(archive, f"{root}byteorder").decode()
    else:
        byteorder = "little"
    classes = {}
    tree = _Unpickler(_Bytes(read_member(archive, pickles[0])), classes).load()

    def read(storage):
        info = archive.getinfo(f"{root}data/{storage.key}")
        expected = storage.numel * _itemsize(storage.dtype)
        if info.file_size != expected:
            raise ValueError(
                f"storage {storage.key} has {info.file_size} bytes instead of {expected}"
            )
        return read_member(archive, info.filename), byteorder

    return tree, read, classes


def _read_legacy(file, end):
    """Does the same as `_read_archive` for the stream of pickles written before PyTorch 1.6."""
    file.seek(0)
    classes = {}
    if _Unpickler(file, classes).load() != _LEGACY_MAGIC:
        raise ValueError("it does not begin with PyTorch's magic number")
    if _Unpickler(file, classes).load() != _LEGACY_PROTOCOL:
        raise ValueError("its protocol is unknown")
    byteorder = "little" if _Unpickler(file, classes).load()["little_endian"] else "big"
    unpickler = _Unpickler(file, classes)
    tree = unpickler.load()
    keys = _Unpickler(file, classes).load()
    positions = {}
    for key in keys:
        storage = unpickler.storages[_hashable(key)]
        (numel,) = struct.unpack("<q" if byteorder == "little" else ">q", file.read(8))
        length = storage.numel * _itemsize(storage.dtype)
        positions[key] = file.tell()
        if numel != storage.numel or positions[key] + length > end:
            raise ValueError(f"storage {key} is truncated")
        file.seek(length, 1)

    def read(storage):
        start = positions[storage.key]
        return file.getbuffer()[start : start + storage.numel * _itemsize(storage.dtype)], byteorder

    return tree, read, classes


def _itemsize(dtype):
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _select(path, tree, read, classes, limit):
    """Finds the network's dictionary in an unpickled tree and reads its tensors.

    Args:
        path: path of the file, for messages.
        tree, read, classes: see `_read_archive`.
        limit: int, the largest total size of all arrays in bytes: a stride of 0 can make a tensor
            of any size from a single value.
    """
    beside = {}
    for _ in range(3):  # At most three levels of wrappers.
        if not isinstance(tree, dict) or any(type(value) is _Tensor for value in tree.values()):
            break
        wrapper = next((key for key in WRAPPERS if isinstance(tree.get(key), dict)), None)
        if wrapper is None:
            break
        beside.update({str(key): f"not part of {wrapper!r}" for key in tree if key != wrapper})
        tree = tree[wrapper]
    tensors = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if type(value) is _Tensor and type(key) is str:
            tensors[key] = value
        else:
            beside[str(key)] = "not a tensor"
    if not tensors and classes:
        raise UserError(
            f"{path} holds Python objects ({next(iter(classes))}) in place of a dictionary of "
            "tensors. They are not executed. If you trust the file, load it with PyTorch and save "
            "only its state_dict()"
        )
    if not tensors:
        keys = f" Its keys: {', '.join(map(ascii, list(beside)[:8]))}" if beside else ""
        raise UserError(
            f"{path} holds no dictionary of tensors, neither at its top level nor under one of "
            f"{', '.join(WRAPPERS)}.{keys}"
        )
    values, arrays = {}, {}
    for name, tensor in tensors.items():
        arrays[name] = _view(tensor, values, read)
        limit -= arrays[name].nbytes
        if limit < 0:
            raise ValueError("its tensors are far larger than the stored data")
    beside.update(dict.fromkeys(classes, "Python objects, which are not executed"))
    return Checkpoint(arrays, beside)


def _view(tensor, values, read):
    """Returns a tensor's array, a view of the values of its storage, which are read once."""
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
    if len(size) != len(stride) or len(size) > _MAX_AXES:
        raise ValueError("a tensor has too many axes, or not one stride for each")
    if 0 in size:
        return np.zeros(size, flat.dtype)
    if math.prod(size) >= 2**48:
        raise ValueError("a tensor is larger than any memory")
    # All elements must be within the storage: NumPy would read any memory.
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
