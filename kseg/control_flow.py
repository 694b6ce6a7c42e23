"""Loops that `keras.ops` lacks under `tf.function`."""

import keras
from keras import ops


def scan(step, carry, length, output_shapes=()):
    """A loop with a carry that also stacks what each round gives, as `jax.lax.scan` does.

    Keras' own `ops.scan` demands on TensorFlow that a round's output has the shape of the carry.
    There is no gradient through it: it serves functions that bring their own.

    Args:
        step: `(carry, i) -> (carry, outputs)`; `i` is an int32 scalar, the others tuples.
        carry: tuple of tensors, of the same shape and dtype in every round.
        length: int, the number of rounds.
        output_shapes: tuple of static shapes, one for each output of a round; float32 all.

    Returns:
        `(carry, outputs)`: the last carry, and each output stacked, `(length, *shape)`.
    """
    if keras.backend.backend() != "tensorflow":
        carry, outputs = ops.scan(step, carry, ops.arange(length, dtype="int32"))
        return carry, outputs
    import tensorflow as tf

    def body(i, carry, arrays):
        carry, outputs = step(carry, i)
        arrays = tuple(a.write(i, y) for a, y in zip(arrays, outputs, strict=True))
        return i + 1, tuple(carry), arrays

    arrays = tuple(
        tf.TensorArray("float32", size=length, element_shape=shape) for shape in output_shapes
    )
    _, carry, arrays = tf.while_loop(
        lambda i, carry, arrays: i < length,
        body,
        (tf.constant(0), tuple(tf.convert_to_tensor(c) for c in carry), arrays),
        parallel_iterations=1,  # More would hold several rounds' tiles in memory.
    )
    return carry, tuple(a.stack() for a in arrays)
