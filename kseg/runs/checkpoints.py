"""Checkpoints: the complete training state in one file, written atomically."""

import itertools
import json
import pathlib

import ml_dtypes
import numpy as np

from kseg import files
from kseg.backend import tf
from kseg.errors import UserError
from kseg.json_text import parse_json
from kseg.runs.finite import describe_non_finite
from kseg.weights.archive import reporting_damage
from kseg.weights.npz_file import open_npz

_META = "meta.json"


class NonFiniteCheckpointError(UserError):
    """A checkpoint with NaN or infinite weights, which only earlier versions could write."""


def read(variables):
    """Reads variables; in a cluster all workers must do it together.

    Args:
        variables: dict from name to variable.

    Returns:
        dict from name to array.
    """
    tensors = {name: variable.value for name, variable in variables.items()}
    if tf is not None:  # A distributed variable converts to a tensor, not to an array.
        tensors = {name: tf.convert_to_tensor(value) for name, value in tensors.items()}
    return {name: np.asarray(value) for name, value in tensors.items()}


def save(path, variables, meta):
    """Writes variables atomically: a killed run leaves the old file or the new one.

    Args:
        path: file to write, `.npz`; its folder is made.
        variables: dict from name to variable, or the result of `read`.
        meta: dict that JSON can hold.
    """
    are_arrays = all(isinstance(value, np.ndarray) for value in variables.values())
    arrays = dict(variables) if are_arrays else read(variables)
    arrays[_META] = np.array(json.dumps(meta))
    with files.replace_file(path) as new, open(new, "wb") as file:
        np.savez(file, **arrays)


def restore(path, variables, *, check=None):
    """Restores variables from a file.

    Args:
        path: file that `save` wrote.
        variables: dict from name to variable; the file may hold more.
        check: function of the metadata that raises if the file must not be used, or None.

    Returns:
        dict, the metadata.

    Raises:
        UserError: if the file is missing or damaged, lacks a variable, or holds it with another
            shape or kind of number. No variable is changed then.
        NonFiniteCheckpointError: if a stored value is NaN or infinite. No variable is changed then.
    """
    meta, arrays = _load(pathlib.Path(path), variables)
    if check is not None:
        check(meta)
    for name, array in arrays.items():
        variable = variables[name]
        if array.shape != tuple(variable.shape):
            raise UserError(
                f"The checkpoint {path} does not fit this model: {name!r} is {array.shape} there "
                f"and {tuple(variable.shape)} here"
            )
        if array.dtype != variable.dtype:
            raise UserError(
                f"The checkpoint {path} does not fit this model: {name!r} is {array.dtype} there "
                f"and {variable.dtype} here"
            )
    if broken := describe_non_finite(arrays):
        raise NonFiniteCheckpointError(
            f"The weights of a checkpoint must be finite. In {path} {broken} are not. Use another "
            "checkpoint of the run, or train again with a lower optimizer.learning_rate"
        )
    for name, array in arrays.items():
        variables[name].assign(array)
    return meta


def _load(path, variables):
    """Reads the metadata and the arrays of some variables; any fault becomes a `UserError`."""
    if not path.exists():
        raise UserError(f"There is no checkpoint {path}")
    if not path.is_file():
        raise UserError(f"A checkpoint must be a regular file. Received: {path}, which is not one")
    named, advice = f"The checkpoint {path}", "Delete it to resume from an older one"
    with reporting_damage(named, "checkpoint of a run", advice), open_npz(path) as file:
        meta = parse_json(str(file.read(_META)))
        if not isinstance(meta, dict):
            raise ValueError("its metadata is not a JSON object")
        missing = sorted(set(variables) - set(file.names))
        if missing:
            more = f" and {len(missing) - 1} more variables" if len(missing) > 1 else ""
            raise UserError(
                f"The checkpoint {path} does not fit this model: it lacks {missing[0]!r}{more}"
            )
        arrays = {name: file.read(name) for name in variables}
        for name, array in arrays.items():
            # NumPy's format lacks bfloat16: such values are read back as two raw bytes each.
            if array.dtype == "V2" and variables[name].dtype == "bfloat16":
                arrays[name] = array.view(ml_dtypes.bfloat16)
            elif array.dtype.kind not in "fiub":
                raise ValueError(f"{name!r} is not an array of numbers but of {array.dtype}")
    return meta, arrays


def model_variables(segmenter):
    """Names the weights of a segmenter for `save` and `restore`.

    Args:
        segmenter: a keras model whose weights have unique paths.

    Returns:
        dict from `"model/<path>"` to variable.

    Raises:
        ValueError: if two weights share a path.
    """
    return _named("model", segmenter.weights)


def averaged_variables(segmenter):
    """Names the weights of a segmenter that are averages over time, as `model_variables`.

    Returns:
        dict from `"ema/<path>"` to variable.
    """
    return _named("ema", segmenter.weights)


def training_variables(trainer):
    """Names all state of a run: weights, their averages, optimizer, seeds, banks.

    Args:
        trainer: a compiled `SegmentationTrainer` with a built optimizer.

    Returns:
        dict from name to variable.
    """
    named = model_variables(trainer.segmenter)
    if trainer.averaged is not None:
        named |= averaged_variables(trainer.averaged)
    named |= _named("optimizer", trainer.optimizer.variables)
    named |= _seeds("seed", trainer.segmenter)
    for objective in trainer.objectives:
        named |= _named(f"objective/{objective.name}", objective.weights)
        named |= _seeds(f"objective/{objective.name}/seed", objective)
    return named


def _seeds(prefix, layer):
    """Names the states of random generators by their order, because their paths are not stable."""
    return {f"{prefix}/{i}": variable for i, variable in enumerate(random_states(layer))}


def random_states(layer):
    """Returns the states of the random generators of a layer or model, a list of variables."""
    weights = {id(weight) for weight in layer.weights}
    return [variable for variable in layer.variables if id(variable) not in weights]


def _named(prefix, variables):
    named = {f"{prefix}/{variable.path}": variable for variable in variables}
    if len(named) < len(variables):
        paths = sorted(variable.path for variable in variables)
        twice = next(a for a, b in itertools.pairwise(paths) if a == b)
        raise ValueError(f"Two variables share the path {twice!r}. Give their layers names.")
    return named
