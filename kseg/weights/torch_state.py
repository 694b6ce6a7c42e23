import dataclasses
import re

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the arrays of a checkpoint and of the weights of a model.

    Attributes:
        loaded: dict from the name of each array that was used to the path of its weight.
        unused: dict from the name of each array that was not used to the reason.
        missing: list of the paths of the weights that kept their values.
    """

    loaded: dict
    unused: dict
    missing: list


def load_torch_state(model, arrays, name_map, *, ignore=(), allow_missing=()):
    """Assigns the arrays of a PyTorch `state_dict` to the weights of a model.

    Nothing is assigned unless everything fits. Convolution kernels are brought from
    `(out, in, height, width)` to `(height, width, in, out)`, and kernels of dense layers from
    `(out, in)` to `(in, out)`.

    Args:
        model: built `keras.Model` (or layer).
        arrays: dict from PyTorch's parameter names to arrays.
        name_map: callable from a parameter name to the path of a weight, such as
            `"conv1/convolution/kernel"`, or to None where the array has no counterpart. See
            `kseg.weights.hrnet.name_map`.
        ignore: regular expressions, matched from the start of a parameter name: arrays that may
            stay unused. Counters (`num_batches_tracked`) always may.
        allow_missing: regular expressions, matched from the start of a weight's path: weights that
            may keep their values.

    Returns:
        `LoadReport`.

    Raises:
        ValueError: if an array has no weight and is not ignored, a weight has no array and is not
            allowed to miss it, two arrays claim one weight, or a shape differs. The message lists
            all of them.
    """
    weights = {weight.path: weight for weight in model.weights}
    loaded, unused, values, problems = {}, {}, {}, []
    for name, array in arrays.items():
        path = name_map(name)
        if name.endswith("num_batches_tracked"):
            unused[name] = "counter of batches, which the batch norms here do not keep"
        elif path in weights:
            value = _to_keras_layout(np.asarray(array), path)
            expected = tuple(weights[path].shape)
            if path in values:
                problems.append(f"{name}: {path} is already taken by {values[path][0]}")
            elif value.shape != expected:
                problems.append(
                    f"{name}: shape {np.shape(array)} becomes {value.shape}, "
                    f"but {path} has {expected}"
                )
            else:
                values[path] = (name, value)
                loaded[name] = path
        elif pattern := _first_match(ignore, name):
            unused[name] = f"ignored by {pattern!r}"
        else:
            target = (
                "no rule in the name map" if path is None else f"the model has no weight {path}"
            )
            problems.append(f"{name}: {target}")
    missing = [path for path in weights if path not in values]
    problems += [f"{path}: no array" for path in missing if not _first_match(allow_missing, path)]
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(
            f"The checkpoint does not fit {model.name!r}. Use `ignore` for arrays and "
            f"`allow_missing` for weights that are meant to be left out:\n  {shown}{more}"
        )
    for path, (_, value) in values.items():
        weights[path].assign(keras.ops.cast(value, weights[path].dtype))
    return LoadReport(loaded, unused, missing)


def _first_match(patterns, name):
    return next((pattern for pattern in patterns if re.match(pattern, name)), None)


def _to_keras_layout(array, path):
    if not path.endswith("kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T
