"""A reader of the weights that Keras 3 saves: `.weights.h5`, and `.keras`, which contains one."""

import io
import math
import mmap
import struct

import h5py
import numpy as np

from kseg.errors import UserError
from kseg.weights.archive import max_bytes, open_archive, read_member, reporting_damage
from kseg.weights.checkpoint import Checkpoint, bfloat16_to_float32

_WEIGHTS = "model.weights.h5"  # Inside a `.keras` archive.
_HEAP, _HEAP_HEADER = b"GCOL\x01\x00\x00\x00", 16
_MAX_ATTRIBUTE = 4096  # Bytes of a layer's name.


def read_keras_file(path):
    """Reads the arrays of a `.weights.h5` or `.keras` file. No class in it is looked up or run.

    Keras stores weights by the classes of the layers and numbers the layers of a class. The names
    returned here consist of the layers' own names, which Keras stores as attributes:
    `"conv1/convolution/0"` is the first weight of `convolution` in the layer `conv1`. Names of
    models are omitted, so that a backbone's weights have the same names inside a segmenter. See
    `keras_names`.

    Args:
        path: `pathlib.Path` of the file.

    Returns:
        `Checkpoint`.

    Raises:
        UserError: if the file is damaged, or so old that it lacks the layers' names.
    """
    size = path.stat().st_size
    with reporting_damage(path, "Keras weights file", "Fetch or save it again"):
        if path.suffix == ".keras":
            with open_archive(path, size) as archive:
                content = read_member(archive, _WEIGHTS)
            _check_heaps(content)
            file = io.BytesIO(content)
        else:
            with (
                open(path, "rb") as opened,
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as m,
            ):
                _check_heaps(m)
            file = path
        with h5py.File(file, "r") as group:
            if "layers" not in group:
                raise UserError(
                    f"{path} has no weights in Keras 3's layout. Load it with the program that "
                    "wrote it and save it again with model.save_weights()"
                )
            arrays = {}
            beside = {
                name: "not part of the layers" for name in group if name not in ("layers", "vars")
            }
            _Walk(path, max_bytes(size), arrays, beside).collect(group, "")
    return Checkpoint(arrays, beside)


def _check_heaps(content):
    """Refuses global heaps whose objects are not contiguous, which make HDF5 loop forever.

    Source: HDF5 File Format Specification 3.0, III.E, "Disk Format: Level 1E - Global Heap".

    Args:
        content: bytes-like object with `find`, the whole file.
    """
    start = content.find(_HEAP)
    while start >= 0:
        (size,) = struct.unpack_from("<Q", content, start + 8)
        position, end = start + _HEAP_HEADER, min(start + size, len(content))
        while position + _HEAP_HEADER <= end:
            index, _, _, length = struct.unpack_from("<HHIQ", content, position)
            # The size of free space includes its own header.
            step = length if index == 0 else _HEAP_HEADER + -(-length // 8) * 8
            if step < _HEAP_HEADER or position + step > end:
                raise ValueError("the objects of its global heap are not contiguous")
            position += step
        start = content.find(_HEAP, start + 1)


class _Walk:
    """Collects the arrays of a file.

    Args:
        path: path of the file, for messages.
        limit: int, the largest total size of all arrays in bytes.
        arrays, beside: dicts to fill, see `Checkpoint`.
    """

    def __init__(self, path, limit, arrays, beside):
        self.path, self.left, self.arrays, self.beside = path, limit, arrays, beside
        self._seen = set()

    def collect(self, group, prefix):
        """Reads one layer's group: its weights are in `vars`, its sublayers in the other groups."""
        members = self._members(group)
        for index, dataset in self._members(members.get("vars", {})).items():
            self.arrays[f"{prefix}{index}"] = self._array(dataset)
        is_model = "layers" in members
        for key in ["layers"] if is_model else [key for key in members if key != "vars"]:
            parts = self._members(members[key])
            # Layers of a model, or of a list, are nested one level deeper.
            for part in [members[key]] if "vars" in parts and not is_model else parts.values():
                self._collect_part(part, prefix)

    def _collect_part(self, part, prefix):
        inside = self._members(part)
        if "vars" not in inside:
            return
        name = _name(inside["vars"])
        if name is None:
            raise UserError(
                f"{self.path} lacks the names of the layers: an older Keras wrote it. Load it with "
                "that version, and save it again with Keras 3.12 or newer"
            )
        if part.name.rpartition("/")[2].startswith("seed_generator"):
            self.beside[f"{prefix}{name}"] = "state of a random generator"
        elif "layers" in inside:  # A model inside the model.
            self._descend(part, prefix)
        else:
            self._descend(part, f"{prefix}{name}/")

    def _descend(self, group, prefix):
        """Collects a group that was not visited before: cycles would never end."""
        address = h5py.h5o.get_info(group.id).addr
        if address in self._seen:
            raise ValueError(f"{group.name} occurs twice")
        self._seen.add(address)
        self.collect(group, prefix)

    @staticmethod
    def _members(group):
        """Returns the members of a group; refuses links, which could point to other files."""
        if not isinstance(group, h5py.Group):
            return {}
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{group.name}/{name} points to another file")
        return dict(group.items())

    def _array(self, dataset):
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError("it has a group in place of an array")
        if dataset.external or dataset.is_virtual:
            raise ValueError(f"{dataset.name} points to another file")
        if dataset.dtype.hasobject:
            raise ValueError(f"{dataset.name} is not an array of numbers")
        if dataset.id.get_create_plist().get_nfilters():  # Filters can inflate without a limit.
            raise ValueError(f"{dataset.name} is compressed, which Keras does not do")
        # HDF5 would allocate and fill values that the file claims but does not store.
        size = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
        stored = dataset.id.get_storage_size()
        if size > self.left or (dataset.chunks is None and 0 < stored != size):
            raise ValueError(f"{dataset.name} claims {size} bytes and has {stored}")
        self.left -= size
        if dataset.attrs.get("dtype") == "bfloat16":
            return bfloat16_to_float32(np.asarray(dataset).view("uint16"))
        return np.asarray(dataset)


def _name(group):
    """Returns the layer's name that Keras stores with its group, or None."""
    if "name" not in group.attrs:
        return None
    attribute = group.attrs.get_id("name")
    if attribute.get_storage_size() > _MAX_ATTRIBUTE or attribute.shape != ():
        raise ValueError(f"the name of {group.name} is not a string")
    name = group.attrs["name"]
    if not isinstance(name, str):
        raise ValueError(f"the name of {group.name} is not a string")
    return name


def keras_names(model):
    """Names the weights of a model as `read_keras_file` does.

    Args:
        model: built `keras.Model`.

    Returns:
        dict from name, such as `"conv1/convolution/0"`, to the path of the weight, such as
        `"conv1/convolution/kernel"`.
    """
    import keras  # Imported late: files are read without Keras.

    names = {}

    def walk(layer, prefix):
        # The order of `Layer.save_own_variables`.
        for index, variable in enumerate(
            layer._trainable_variables + layer._non_trainable_variables
        ):
            names[f"{prefix}{index}"] = variable.path
        # Names of models are omitted.
        for part in layer._layers:
            walk(part, prefix if isinstance(part, keras.Model) else f"{prefix}{part.name}/")

    walk(model, "")
    return names
