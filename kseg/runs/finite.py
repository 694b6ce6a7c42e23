"""Checks for NaN and infinite weights, which are named and counted."""

import numpy as np
from keras import ops

from kseg.errors import UserError


def describe_non_finite(variables):
    """Describes which variables hold a value that is not finite.

    Args:
        variables: dict from name to variable, tensor or array, in the order of the layers; values
            that are not floats pass.

    Returns:
        str, such as `"'model/stem/kernel' and 42 more of 77 arrays"`, or None if all are finite.
    """
    names = list(variables)
    finite = [_is_finite(value) for value in variables.values()]
    broken = [name for name, good in zip(names, finite, strict=True) if not bool(good)]
    if not broken:
        return None
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return f"{broken[0]!r}{more} of {len(names)} arrays"


def check_weights(model, what):
    """Rejects a network whose outputs would be NaN.

    Args:
        model: keras model.
        what: str, its purpose, for the message.

    Raises:
        UserError: naming the first weight that is NaN or infinite.
    """
    if broken := describe_non_finite({weight.path: weight for weight in model.weights}):
        raise UserError(
            f"The weights of {what} must be finite. {broken} are not. Use another checkpoint of "
            "the run, or train again with a lower optimizer.learning_rate"
        )


def _is_finite(value):
    """Checks a value; returns a bool, or a bool tensor to avoid a copy from a device."""
    if isinstance(value, np.ndarray):
        # ml_dtypes' bfloat16 has kind V, but NumPy's `isfinite` supports it.
        return value.dtype.kind in "biuUS" or bool(np.isfinite(value).all())
    if "int" in str(value.dtype) or "bool" in str(value.dtype):
        return True
    return ops.all(ops.isfinite(ops.convert_to_tensor(value)))
