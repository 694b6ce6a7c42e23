"""Large variables read and written in part, in place where the backend can."""

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None


class RowReader:
    """Reads a variable as rows of its last axis, a few at a time.

    TensorFlow copies a variable that is written in part whenever it is read as a whole; a bank of
    millions of rows would be copied in every step. This never reads more than it is asked for.

    Args:
        variable: `keras.Variable` `(..., dim)`.

    Attributes:
        shape: `(number of rows, dim)`.
        dtype: str, of the variable.
    """

    def __init__(self, variable):
        self._variable = variable
        dim = variable.shape[-1]
        self.shape = (_size(variable.shape[:-1]), dim)
        self.dtype = variable.dtype

    def rows(self, start, count):
        """Reads `count` (an int) rows from `start` on (an int or int32 tensor); `(count, dim)`."""
        shape = self._variable.shape
        if tf is None:
            flat = ops.reshape(self._variable, self.shape)
            return ops.slice(flat, (start, 0), (count, shape[-1]))
        positions = start + tf.range(count)
        if len(shape) == 2:  # XLA has only this one.
            return tf.raw_ops.ResourceGather(
                resource=self._variable.value.handle, indices=positions, dtype=self.dtype
            )
        return tf.raw_ops.ResourceGatherNd(
            resource=self._variable.value.handle,
            indices=tf.stack(_unravel(positions, shape[:-1]), axis=1),
            dtype=self.dtype,
        )


def write_rows(variable, positions, rows):
    """Overwrites rows of a variable in place.

    Under a strategy every replica must call it with the same values, in replica context.

    Args:
        variable: `keras.Variable` `(..., dim)`.
        positions: int32 tensor `(count,)`, places in the flattened leading axes, each at most
            once; -1 marks a row that is not written.
        rows: tensor `(count, dim)`.
    """
    shape = tuple(variable.shape)
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
    indices = ops.stack(_unravel(positions, shape[:-1]), axis=1)
    if tf is None:
        variable.assign(ops.scatter_update(variable, indices, rows))
        return
    tf.raw_ops.ResourceScatterNdUpdate(ref=variable.value.handle, indices=indices, updates=rows)


def _size(shape):
    size = 1
    for extent in shape:
        size *= extent
    return size


def _unravel(positions, shape):
    """Indices along each axis of flat positions, row-major."""
    indices = []
    for extent in reversed(shape[1:]):
        indices.insert(0, positions % extent)
        positions = positions // extent
    return [positions, *indices]
