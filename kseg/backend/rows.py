"""Large variables read and written in part, in place where the backend can."""

from keras import ops

from kseg.backend import tf


class RowReader:
    """Reads rows of a variable, a few at a time.

    TensorFlow copies a variable that is written in part whenever it is read as a whole; a bank of
    millions of rows would be copied in every step. This never reads more than it is asked for.

    Args:
        variable: `keras.Variable` `(rows, dim)`. Two axes: XLA cannot read rows of one of three.

    Attributes:
        shape: `(rows, dim)`.
        dtype: str, of the variable.
    """

    def __init__(self, variable):
        self._variable = variable
        self.shape = tuple(variable.shape)
        self.dtype = variable.dtype

    def rows(self, start, count):
        """Reads `count` (an int) rows from `start` on (an int or int32 tensor); `(count, dim)`."""
        if tf is None:
            # JAX slices tensors only.
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

    Under a strategy every replica must call it with the same values, in replica context.

    Args:
        variable: `keras.Variable` `(rows, dim)`.
        positions: int32 tensor `(count,)`, each place at most once; -1 marks a row that is not
            written.
        rows: tensor `(count, dim)`.
    """
    rows = ops.cast(rows, variable.dtype)
    # What is not written repeats the first row that is, or the variable's own first row: no kernel
    # leaves out rows, but to write the same twice is to write it once.
    written = positions >= 0
    first = ops.argmax(ops.cast(written, "int32"))
    any_written = ops.any(written)
    spare = ops.where(any_written, ops.take(rows, first, axis=0), RowReader(variable).rows(0, 1)[0])
    place = ops.where(any_written, ops.take(positions, first), 0)
    positions = ops.where(written, positions, place)
    rows = ops.where(written[:, None], rows, spare)
    positions = positions[:, None]
    if tf is None:
        values = ops.convert_to_tensor(variable)
        variable.assign(ops.scatter_update(values, positions, rows))
        return
    tf.raw_ops.ResourceScatterNdUpdate(ref=variable.value.handle, indices=positions, updates=rows)
