"""Assignment of arrays to a model's weights, with conversion from PyTorch's layout."""

import re

import keras
import numpy as np

from kseg.errors import UserError
from kseg.weights.load_report import LoadReport

COUNTER = "counter of batches, which kseg's batch norms do not have"
_PROBLEMS_SHOWN = 5


def load_torch_state(model, arrays, name_map, *, ignore=(), allow_missing=()):
    """Assigns the arrays of a PyTorch `state_dict` to the weights of a model.

    Nothing is assigned unless everything fits. Kernels are converted to the layout of Keras, see
    `keras_layout`. If a convolution before a batch norm has a bias in PyTorch but none in the
    model, the bias is subtracted from that batch norm's moving mean, which is equivalent.

    Args:
        model: built `keras.Model` (or layer).
        arrays: dict from PyTorch's parameter names to arrays.
        name_map: callable from a parameter name to the path of a weight, such as
            `"conv1/convolution/kernel"`; to a tuple of paths, where the first that the model has in
            this shape is used; or to None if the array has no counterpart. See
            `kseg.weights.hrnet.name_map`.
        ignore: regular expressions, matched from the start of a parameter name: arrays that may
            remain unused. Counters (`num_batches_tracked`) always may.
        allow_missing: regular expressions, matched from the start of a weight's path: weights that
            may keep their values.

    Returns:
        `LoadReport`.

    Raises:
        UserError: if an array has no weight and is not ignored, a weight has no array and is not in
            `allow_missing`, two arrays map to one weight, a shape differs, or a value is not
            finite. The message is one line with the first of these problems.
    """
    unused = {}
    for name in arrays:
        if name.endswith("num_batches_tracked"):
            unused[name] = COUNTER
        elif pattern := first_match(ignore, name):
            unused[name] = f"ignored by {pattern!r}"
    weights = weights_by_path(model)
    paths = {
        name: choose_path(weights, name_map(name), array, keras_layout)
        for name, array in arrays.items()
    }
    return assign(
        weights,
        arrays,
        paths,
        layout=keras_layout,
        unused=unused,
        may_miss=lambda path: bool(first_match(allow_missing, path)),
        complaint=f"The checkpoint does not fit {model.name!r}",
    )


def assign(weights, arrays, paths, *, layout, unused, may_miss, complaint):
    """Assigns arrays to weights, all or none.

    Args:
        weights: dict from path to variable.
        arrays: dict from name to array.
        paths: dict from the name of an array to the path of its weight, or None.
        layout: function `(array, weight)` that converts an array to the layout of a variable; the
            shape of its result may still differ.
        unused: dict from the name of an array to the reason for not using it. An array that has a
            weight is used nevertheless.
        may_miss: function from a path to bool, whether the weight may keep its values.
        complaint: str, the beginning of the error message.

    Returns:
        `LoadReport`.

    Raises:
        UserError: as in `load_torch_state`.
    """
    loaded, values, problems, biases = {}, {}, [], {}
    for name, array in arrays.items():
        path = paths[name]
        if path in weights:
            array = np.asarray(array)
            value = layout(array, weights[path])
            expected = tuple(weights[path].shape)
            if path in values:
                problems.append(f"{name}: {path} is already taken by {values[path][0]}")
            elif value.shape != expected:
                becomes = "" if value.shape == array.shape else f" becomes {value.shape}"
                problems.append(f"{name}: shape {array.shape}{becomes}, but {path} has {expected}")
            elif value.dtype.kind == "f" and not np.isfinite(value).all():
                problems.append(f"{name}: has values that are not finite")
            else:
                values[path] = (name, value)
                loaded[name] = path
        elif name in unused:
            continue
        elif (mean := _moving_mean_after(path)) in weights:
            biases[name] = mean
        else:
            target = "no rule for its name" if path is None else f"the model has no weight {path}"
            problems.append(f"{name}: {target}")
    for name, mean in biases.items():
        if mean not in values or values[mean][1].shape != np.shape(arrays[name]):
            problems.append(f"{name}: the model's convolution has no bias")
        else:
            values[mean] = (values[mean][0], values[mean][1] - np.asarray(arrays[name]))
    missing = [path for path in weights if path not in values]
    problems += [f"{path}: no array" for path in missing if not may_miss(path)]
    if problems:
        shown = "; ".join(problems[:_PROBLEMS_SHOWN])
        more = len(problems) - _PROBLEMS_SHOWN
        raise UserError(f"{complaint}: {shown}" + (f"; and {more} more" if more > 0 else ""))
    for path, (_, value) in values.items():
        weights[path].assign(keras.ops.cast(np.array(value), weights[path].dtype))
    return LoadReport(
        loaded,
        {name: reason for name, reason in unused.items() if name not in loaded},
        missing,
        num_values=sum(value.size for _, value in values.values()),
        folded=biases,
    )


def _moving_mean_after(path):
    """Finds the moving mean of the batch norm after the convolution with the bias `path`."""
    end = "convolution/bias"
    if path is None or not path.endswith(end):
        return None
    return path.removesuffix(end) + "normalization/moving_mean"


def weights_by_path(model):
    """Returns the weights of a model by path.

    Args:
        model: built `keras.Model` (or layer).

    Returns:
        dict from path to variable.

    Raises:
        ValueError: if two weights share a path.
    """
    weights = {weight.path: weight for weight in model.weights}
    if len(weights) < len(model.weights):
        raise ValueError(f"Two weights of {model.name!r} share a path. Give their layers names.")
    return weights


def choose_path(weights, paths, array, layout):
    """Chooses, among several paths, the weight that has the shape of an array.

    Args:
        weights: dict from path to variable.
        paths: str, tuple of str, or None, as a name map returns them.
        array: the array.
        layout: as in `assign`.

    Returns:
        str, the first path whose shape fits; else the first that the model has; else the first;
        None if there is no path.
    """
    if paths is None or isinstance(paths, str):
        return paths
    known = [path for path in paths if path in weights]
    fitting = [
        path for path in known if layout(array, weights[path]).shape == tuple(weights[path].shape)
    ]
    return [*fitting, *known, *paths][0]


def first_match(patterns, name):
    """Returns the first regular expression that matches from the start of `name`, or None."""
    return next((pattern for pattern in patterns if re.match(pattern, name)), None)


def keras_layout(array, weight):
    """Converts a parameter of PyTorch to the layout of Keras.

    Kernels of convolutions are transposed from `(out, in, height, width)` to
    `(height, width, in, out)`, those of depthwise convolutions from `(channels, 1, height, width)`
    to `(height, width, channels, 1)`, those of dense layers from `(out, in)` to `(in, out)`.

    Args:
        array: array.
        weight: the target variable; it is a kernel if its path ends in `kernel`.

    Returns:
        array, possibly a view; unchanged if the weight is not a kernel.
    """
    array = np.asarray(array)
    if not weight.path.endswith("kernel"):
        return array
    if array.ndim == 4:
        depthwise = array.shape[1] == 1 and tuple(weight.shape[2:]) == (array.shape[0], 1)
        return array.transpose(2, 3, 0, 1) if depthwise else array.transpose(2, 3, 1, 0)
    return array.T
