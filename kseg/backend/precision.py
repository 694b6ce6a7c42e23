"""The precision of what is built, whatever was built before."""

import contextlib

import keras


@contextlib.contextmanager
def building(policy):
    """Makes a dtype policy that of all layers built in the block; afterwards it is as before.

    Args:
        policy: str, such as `"mixed_bfloat16"`, or `keras.DTypePolicy`.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
