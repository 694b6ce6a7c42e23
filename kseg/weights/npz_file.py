"""Reads `.npz` without trusting it: NumPy reserves memory for any shape that a header claims."""

import contextlib
import io
import math

import numpy as np

from kseg.weights.archive import open_archive, read_member, refuse_damage
from kseg.weights.checkpoint import Checkpoint

_SUFFIX = ".npy"
_MOST_AXES = 32
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpzFile:
    """The arrays of an open `.npz`, each read when it is asked for.

    Attributes:
        names: list of str.
    """

    def __init__(self, archive):
        self._archive = archive
        members = archive.namelist()
        self.names = [name.removesuffix(_SUFFIX) for name in members if name.endswith(_SUFFIX)]
        if len(set(self.names)) < len(self.names):
            raise ValueError("a name stands in it twice")

    def read(self, name):
        """Reads an array.

        Args:
            name: str, one of `names`.

        Returns:
            array.

        Raises:
            KeyError: if there is none of this name.
            ValueError: if it is damaged, has another size than its header claims, or is pickled.
        """
        content = read_member(self._archive, f"{name}{_SUFFIX}")
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name!r} is of the unknown version {version}")
        shape, fortran_order, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded: nothing in the file is run")
        if len(shape) > _MOST_AXES or any(extent < 0 for extent in shape):
            raise ValueError(f"{name!r} has an impossible shape")
        data = memoryview(content)[file.tell() :]
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name!r} has {len(data)} bytes for the shape {shape} of {dtype}")
        if not len(data):
            return np.zeros(shape, dtype)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


@contextlib.contextmanager
def open_npz(path):
    """Opens an `.npz` file. Nothing in it is run, and no array is larger than the file allows.

    Args:
        path: `pathlib.Path` of the file.

    Yields:
        `NpzFile`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError, zipfile.BadZipFile, zlib.error...: if it is damaged, here or in a read. See
            `kseg.weights.archive.refuse_damage`.
    """
    with open_archive(path, path.stat().st_size) as archive:
        yield NpzFile(archive)


def read_npz_file(path):
    """Reads the arrays of numbers of an `.npz` file; pickled objects in it are refused.

    Args:
        path: `pathlib.Path` of the file.

    Returns:
        `Checkpoint`.

    Raises:
        UserError: if the file is damaged or holds pickled objects.
    """
    arrays, beside = {}, {}
    with refuse_damage(path, "npz archive"), open_npz(path) as file:
        for name in file.names:
            array = file.read(name)
            if array.dtype.kind in "fiub":
                arrays[name] = array
            else:
                beside[name] = f"is no array of numbers but of {array.dtype}"
    return Checkpoint(arrays, beside)
