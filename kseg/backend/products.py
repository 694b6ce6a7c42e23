"""Matrix products whose operands need not be transposed first."""

from keras import ops

from kseg.backend import tf


def matmul(a, b, transpose_a=False, transpose_b=False):
    """Computes the matrix product over the last two axes.

    On TensorFlow `keras.ops.matmul` would need a transposed copy of an operand, and
    `keras.ops.einsum` does not use oneDNN: for 512 x 512 x 256, it took 1.2 to 1.3 times as long.

    Args:
        a: tensor `(..., rows, inner)`, or `(..., inner, rows)` with `transpose_a`.
        b: tensor `(..., inner, columns)`, or `(..., columns, inner)` with `transpose_b`, of the
            same dtype.
        transpose_a, transpose_b: bools.

    Returns:
        tensor `(..., rows, columns)` of the same dtype.
    """
    a, b = ops.convert_to_tensor(a), ops.convert_to_tensor(b)
    if tf is not None:
        return tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)
