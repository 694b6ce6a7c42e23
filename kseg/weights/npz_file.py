"""A reader of untrusted `.npz` files: NumPy's own allocates any shape that a header claims."""

import contextlib
import io
import math

import numpy as np

from kseg.weights.archive import open_archive, read_member, reporting_damage
from kseg.weights.checkpoint import Checkpoint

_SUFFIX = ".npy"
_MAX_AXES = 32
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpzFile:
    """The arrays of an open `.npz`, each read on request.

    Attributes:
        names: list of str.
    """

    def __init__(self, archive):
        self._archive = archive
        members = archive.namelist()
        self.names = [name.removesuffix(_SUFFIX) for name in members if name.endswith(_SUFFIX)]
        if len(set(self.names)) < len(self.names):
            raise ValueError("it has a duplicate name")

    def read(self, name):
        """Reads an array.

        Args:
            name: str, one of `names`.

        Returns:
            array.

        Raises:
            KeyError: if there is no array of this name.
            ValueError: if it is damaged, its size is not that of its header, or it is pickled.
        """
        content = read_member(self._archive, f"{name}{_SUFFIX}")
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name!r} has the unknown version {version}")
        shape, fortran_order, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded: nothing in the file is run")
        if len(shape) > _MAX_AXES or any(extent < 0 for extent in shape):
            raise ValueError(f"{name!r} has an impossible shape")
        data = memoryview(content)[file.tell() :]
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name!r} has {len(data)} bytes for the shape {shape} of {dtype}")
        if not len(data):
            return np.zeros(shape, dtype)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


@contextlib.contextmanager
def open_npz(path):
    """Opens an `.npz` file without running any of its content or exceeding `max_bytes`.

    Args:
        path: `pathlib.Path` of the file.

    Yields:
        `NpzFile`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError, zipfile.BadZipFile, zlib.error...: if it is damaged, when opening or reading.
            See `kseg.weights.archive.reporting_damage`.
    """
    with open_archive(path, path.stat().st_size) as archive:
        yield NpzFile(archive)


def read_npz_file(path):
    """Reads the numeric arrays of an `.npz` file; refuses pickled objects.

    Args:
        path: `pathlib.Path` of the file.

    Returns:
        `Checkpoint`.

    Raises:
        UserError: if the file is damaged or holds pickled objects.
    """
    arrays, beside = {}, {}
    with reporting_damage(path, "npz archive"), open_npz(path) as file:
        for name in file.names:
            array = file.read(name)
            if array.dtype.kind in "fiub":
                arrays[name] = array
            else:
                beside[name] = f"array of {array.dtype}, not of numbers"
    return Checkpoint(arrays, beside)
