"""A context manager for the dtype policy under which layers are built."""

import contextlib

import keras


@contextlib.contextmanager
def dtype_policy_scope(policy):
    """Sets Keras' global dtype policy within a block and restores the previous one afterwards.

    Args:
        policy: str, such as `"mixed_bfloat16"`, or `keras.DTypePolicy`.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def double_precision():
    """Returns a context manager that enables float64, which JAX otherwise replaces by float32.

    The block may be traced for `jax.jit`, but not differentiated: use it in a function with a
    custom gradient.
    """
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    enable = getattr(jax, "enable_x64", None)
    if enable is None:  # JAX before 0.8.
        from jax.experimental import enable_x64 as enable
    return enable(True)
