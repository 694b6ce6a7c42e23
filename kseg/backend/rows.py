"""Partial reads and writes of large variables, in place where the backend supports it."""

from keras import ops

from kseg.backend import tf


class RowReader:
    """Reads rows of a variable, a few at a time.

    TensorFlow copies a variable that receives partial writes whenever it is read as a whole; a bank
    of millions of rows would be copied in every step. This class reads only the requested rows.

    Args:
        variable: `keras.Variable` `(rows, dim)`. Exactly two axes: XLA cannot gather rows of a
            variable with three.

    Attributes:
        shape: `(rows, dim)`.
        dtype: str, the variable's dtype.
    """

    def __init__(self, variable):
        self._variable = variable
        self.shape = tuple(variable.shape)
        self.dtype = variable.dtype

    def rows(self, start, count):
        """Reads `count` rows from index `start` (int or int32 scalar) on; `(count, dim)`."""
        if tf is None:
            # JAX slices only tensors.
            values = ops.convert_to_tensor(self._variable)
            return ops.slice(values, (start, 0), (count, self.shape[1]))
        return self.take(start + tf.range(count))

    def take(self, positions):
        """Reads the rows at int32 `(count,)` positions; `(count, dim)`."""
        if tf is None:
            return ops.take(ops.convert_to_tensor(self._variable), positions, axis=0)
        return tf.raw_ops.ResourceGather(
            resource=self._variable.value.handle, indices=positions, dtype=self.dtype
        )


def write_rows(variable, positions, rows):
    """Overwrites rows of a variable in place.

    Under a strategy every replica must call this function with the same values, in replica context.

    Args:
        variable: `keras.Variable` `(rows, dim)`.
        positions: int32 tensor `(count,)`, row indices, each at most once; -1 skips a row.
        rows: tensor `(count, dim)`.
    """
    rows = ops.cast(rows, variable.dtype)
    # The scatter kernels cannot skip rows. A skipped row instead repeats the first one that is
    # written, or the variable's own first row: writing the same values twice changes nothing.
    written = positions >= 0
    first = ops.argmax(ops.cast(written, "int32"))
    any_written = ops.any(written)
    spare = ops.where(any_written, ops.take(rows, first, axis=0), RowReader(variable).rows(0, 1)[0])
    spare_position = ops.where(any_written, ops.take(positions, first), 0)
    positions = ops.where(written, positions, spare_position)
    rows = ops.where(written[:, None], rows, spare)
    positions = positions[:, None]
    if tf is None:
        values = ops.convert_to_tensor(variable)
        variable.assign(ops.scatter_update(values, positions, rows))
        return
    tf.raw_ops.ResourceScatterNdUpdate(ref=variable.value.handle, indices=positions, updates=rows)
