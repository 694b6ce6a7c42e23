import zlib

import numpy as np


def random_state(shapes):
    """Draws the parameters of a network, the same in every process and for every order of names.

    Args:
        shapes: dict from PyTorch's name of a parameter to its shape.

    Returns:
        dict from name to float32 array: kernels that keep the size of the signal, batch norms that
        differ from the identity.
    """
    state = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            values = rng.uniform(0.5, 2.0, shape)
        elif len(shape) > 1:
            values = rng.normal(size=shape) * np.prod(shape[1:]) ** -0.5
        else:
            values = rng.normal(size=shape) * 0.3
        state[name] = values.astype("float32")
    return state
