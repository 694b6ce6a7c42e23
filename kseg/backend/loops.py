"""A scan for run-time lengths, which `keras.ops.scan` does not support under `tf.function`."""

from keras import ops

from kseg.backend import tf


def scan(step, carry, length, output_shapes=(), *, capacity=None):
    """Runs a loop with a carry and stacks the outputs of its rounds, as `jax.lax.scan` does.

    Unlike in `keras.ops.scan`, the number of rounds may be known only at run time, and an output
    may differ in shape from the carry. The loop is not differentiable: it is meant for functions
    that define their own gradient.

    Args:
        step: `(carry, i) -> (carry, outputs)`; `i` is an int32 scalar, `carry` and `outputs` are
            tuples.
        carry: tuple of tensors, each of the same shape and dtype in every round.
        length: int or int32 scalar tensor, the number of rounds.
        output_shapes: tuple of static shapes, one for each output of a round; all float32.
        capacity: int, rows of the stacked outputs; required if `length` is a tensor.

    Returns:
        `(carry, outputs)`: the last carry, and for each output an object with two methods:
        `read(i)` returns the output of round i; `stack()` returns all rounds,
        `(capacity, *shape)`, with zeros for those that did not run.
    """
    capacity = length if capacity is None else capacity
    if tf is not None:
        return _scan_tensorflow(step, carry, length, output_shapes, capacity)

    def body(i, carry, stacks):
        carry, outputs = step(carry, i)
        return i + 1, tuple(carry), tuple(map(write(i), stacks, outputs))

    def write(i):  # XLA does this in place.
        return lambda stack, y: ops.slice_update(stack, (i,) + (0,) * len(y.shape), y[None])

    stacks = tuple(ops.zeros((capacity, *shape), "float32") for shape in output_shapes)
    start = (ops.zeros((), "int32"), tuple(carry), stacks)
    _, carry, stacks = ops.while_loop(lambda i, carry, stacks: i < length, body, start)
    return carry, tuple(map(_Stack, stacks))


class _Stack:
    def __init__(self, rounds):
        self._rounds = rounds

    def read(self, i):
        return ops.take(self._rounds, i, axis=0)

    def stack(self):
        return self._rounds


def _scan_tensorflow(step, carry, length, output_shapes, capacity):
    def body(i, carry, arrays):
        carry, outputs = step(carry, i)
        arrays = tuple(a.write(i, y) for a, y in zip(arrays, outputs, strict=True))
        return i + 1, tuple(carry), arrays

    arrays = tuple(
        tf.TensorArray("float32", size=capacity, element_shape=shape, clear_after_read=False)
        for shape in output_shapes
    )
    _, carry, arrays = tf.while_loop(
        lambda i, carry, arrays: i < length,
        body,
        (tf.constant(0), tuple(tf.convert_to_tensor(c) for c in carry), arrays),
        parallel_iterations=1,  # More would hold several rounds' tiles in memory.
    )
    return carry, arrays
