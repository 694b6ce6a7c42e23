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
