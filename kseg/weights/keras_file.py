"""Reads the weights that Keras 3 saves: `.weights.h5`, and `.keras` which holds one."""

import io
import zipfile

import h5py
import keras
import numpy as np

from kseg.errors import UserError
from kseg.weights.torch_file import Checkpoint, bfloat16_to_float32

_WEIGHTS = "model.weights.h5"  # Inside a `.keras` archive.


def read_keras_file(path):
    """Reads the arrays of a `.weights.h5` or `.keras` file. No class in it is looked up or run.

    Keras files weights by the classes of the layers and numbers those of one class. The names here
    are made of the layers' own names, which Keras notes beside them: `"conv1/convolution/0"` is
    the first weight of `convolution` in the layer `conv1`. Names of models are left out, so that a
    backbone's weights are called the same inside a segmenter. See `keras_names`.

    Args:
        path: `pathlib.Path` of the file.

    Returns:
        `Checkpoint`.

    Raises:
        UserError: if the file is damaged, or so old that the layers' names are not in it.
    """
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                file = io.BytesIO(archive.read(_WEIGHTS))
        else:
            file = path
        with h5py.File(file, "r") as group:
            if "layers" not in group:
                raise UserError(
                    f"{path} has no weights in Keras 3's layout. Load it with the program that "
                    "wrote it and save it again with model.save_weights()"
                )
            arrays = {}
            beside = {
                name: "stands beside the layers" for name in group if name not in ("layers", "vars")
            }
            _collect(path, group, "", arrays, beside)
    except UserError:
        raise
    except (zipfile.BadZipFile, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is damaged, or no weights of Keras ({message}). Fetch or save it again"
        ) from None
    return Checkpoint(arrays, beside)


def _collect(path, group, prefix, arrays, beside):
    """Walks one layer's group: its weights are in `vars`, its parts in the other groups."""
    members = _members(group)
    for index, dataset in _members(members.get("vars", {})).items():
        arrays[f"{prefix}{index}"] = _array(dataset)
    is_model = "layers" in members
    for key in ["layers"] if is_model else [key for key in members if key != "vars"]:
        parts = _members(members[key])
        # Layers of a model, or in a list, have one more level.
        for part in [members[key]] if "vars" in parts and not is_model else parts.values():
            inside = _members(part)
            if "vars" not in inside:
                continue
            name = inside["vars"].attrs.get("name")
            if name is None:
                raise UserError(
                    f"{path} does not have the names of the layers: it is from an older Keras. "
                    "Load it there, and save it again with Keras 3.12 or newer"
                )
            if part.name.rpartition("/")[2].startswith("seed_generator"):
                beside[f"{prefix}{name}"] = "is the state of a random generator"
            elif "layers" in inside:  # A model inside the model.
                _collect(path, part, prefix, arrays, beside)
            else:
                _collect(path, part, f"{prefix}{name}/", arrays, beside)


def _members(group):
    """What a group holds itself; links would let a file read what the user did not name."""
    if not isinstance(group, h5py.Group):
        return {}
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{group.name}/{name} points to another file")
    return dict(group.items())


def _array(dataset):
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} points to another file")
    if dataset.attrs.get("dtype") == "bfloat16":
        return bfloat16_to_float32(np.asarray(dataset).view("uint16"))
    return np.asarray(dataset)


def keras_names(model):
    """Names the weights of a model as `read_keras_file` does.

    Args:
        model: built `keras.Model`.

    Returns:
        dict from name, such as `"conv1/convolution/0"`, to the path of the weight, such as
        `"conv1/convolution/kernel"`.
    """
    names = {}

    def walk(layer, prefix):
        # The order of `Layer.save_own_variables`.
        for index, variable in enumerate(
            layer._trainable_variables + layer._non_trainable_variables
        ):
            names[f"{prefix}{index}"] = variable.path
        # Models do not lend their names.
        for part in layer._layers:
            walk(part, prefix if isinstance(part, keras.Model) else f"{prefix}{part.name}/")

    walk(model, "")
    return names
