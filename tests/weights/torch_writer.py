"""Writes files as `torch.save` does, without PyTorch, for tests of damaged or malicious ones."""

import collections
import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Storage:
    """The storage of a tensor: an array, or bit patterns for bfloat16."""

    def __init__(self, array, dtype=None, claimed_size=None):
        self.array = np.asarray(array).ravel()
        self.dtype = dtype or str(self.array.dtype)
        self.claimed_size = self.array.size if claimed_size is None else claimed_size


class Tensor:
    """The data that `torch.save` stores for a tensor."""

    def __init__(self, storage, size, stride, offset=0):
        self.storage, self.size, self.stride, self.offset = storage, size, stride, offset

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        hooks = collections.OrderedDict()
        return rebuild, (self.storage, self.offset, self.size, self.stride, False, hooks)


class Parameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_parameter
        return rebuild, (self.tensor, True, collections.OrderedDict())


def tensor(array, dtype=None):
    """A contiguous tensor with its own storage."""
    array = np.asarray(array)
    strides = [stride // array.itemsize for stride in np.ascontiguousarray(array).strides]
    return Tensor(Storage(array, dtype), array.shape, tuple(strides[: array.ndim]))


@contextlib.contextmanager
def pretended_torch():
    """Creates modules with the names that a pickle refers to; these objects are never called."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(utils, name, function)
    torch._utils = utils
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        yield torch
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def pickled(value, *, legacy=False):
    """The pickle of a value, and its storages in the order of their keys."""
    storages = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if not isinstance(item, Storage):
                return None
            if item not in storages:
                storages.append(item)
            kind = getattr(sys.modules["torch"], STORAGES[item.dtype])
            key = str(storages.index(item))
            view = (None,) if legacy else ()
            return ("storage", kind, key, "cpu", item.claimed_size, *view)

    buffer = io.BytesIO()
    with pretended_torch():
        Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue(), storages


def write_zip(path, value, *, data=None, byteorder="little"):
    """Writes the format since PyTorch 1.6; `data` replaces the pickle."""
    content, storages = pickled(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content if data is None else data)
        archive.writestr("archive/byteorder", byteorder)
        for key, storage in enumerate(storages):
            archive.writestr(f"archive/data/{key}", _bytes(storage, byteorder))
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path, value, *, data=None, byteorder="little"):
    """Writes the format before PyTorch 1.6."""
    content, storages = pickled(value, legacy=True)
    system = {"protocol_version": 1001, "little_endian": byteorder == "little"}
    with open(path, "wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(header, file, protocol=2)
        file.write(content if data is None else data)
        pickle.dump([str(key) for key in range(len(storages))], file, protocol=2)
        for storage in storages:
            file.write(struct.pack("<q" if byteorder == "little" else ">q", storage.array.size))
            file.write(_bytes(storage, byteorder))
    return path


def _bytes(storage, byteorder):
    order = "<" if byteorder == "little" else ">"
    return storage.array.astype(storage.array.dtype.newbyteorder(order)).tobytes()
