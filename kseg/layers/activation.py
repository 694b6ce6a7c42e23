"""ReLU as a single graph node."""

from keras import ops

from kseg.backend import tf


def relu(x, max_value=None):
    """Computes `max(x, 0)`, capped at `max_value` unless that is None."""
    if max_value is not None:
        if max_value == 6:
            return ops.relu6(x) if tf is None else tf.raw_ops.Relu6(features=x)
        return ops.clip(x, 0, max_value)
    return ops.relu(x) if tf is None else tf.raw_ops.Relu(features=x)
