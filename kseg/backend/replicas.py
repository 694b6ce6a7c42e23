"""Communication between the replicas of a `tf.distribute` strategy.

Each function is the identity (or returns the value for a single replica) where there is no other
replica to communicate with: without a strategy, with one replica, outside the replica context,
while a functional model is being built, and on backends other than TensorFlow. Callers therefore
need no special cases.
"""

import contextlib
import threading

from kseg.backend import tf

_thread = threading.local()


@contextlib.contextmanager
def alone():
    """Computes without the other replicas within a block: here `num_replicas()` is 1.

    For losses of batches that differ in size between replicas, which cannot be gathered.
    """
    before = getattr(_thread, "alone", False)
    _thread.alone = True
    try:
        yield
    finally:
        _thread.alone = before


def num_replicas():
    """Counts the replicas that run this computation in sync.

    Returns:
        int, 1 unless called in the replica context of a strategy with more replicas.
    """
    if tf is None or getattr(_thread, "alone", False) or not tf.distribute.has_strategy():
        return 1
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica_id():
    """Returns the index of this replica.

    Returns:
        int32 scalar tensor (or the int 0) in `[0, num_replicas())`.
    """
    if num_replicas() == 1:
        return 0
    return tf.convert_to_tensor(
        tf.distribute.get_replica_context().replica_id_in_sync_group, dtype="int32"
    )


def all_gather(x):
    """Concatenates the tensors of all replicas along axis 0, in the order of their ids.

    The gradient with respect to replica r's `x` is the sum over all replicas of the upstream
    gradients, restricted to the rows that came from r. Each replica must pass the same shape,
    including axis 0: the samplers have static shapes, and a ragged gather would cost another round
    of communication.

    Args:
        x: tensor `(rows, ...)`, any numeric dtype.

    Returns:
        tensor `(num_replicas() * rows, ...)`, the same on every replica.
    """
    replicas = num_replicas()
    if replicas == 1:
        return x
    # A sum over one-hot slots instead of a gather: NCCL reduces it without a copy through a single
    # device, and every strategy implements it. bool cannot be summed, so it is sent as int32.
    x = tf.convert_to_tensor(x)
    values = tf.cast(x, "int32") if x.dtype == tf.bool else x
    slots = tf.one_hot(replica_id(), replicas, dtype=values.dtype)
    slots = tf.reshape(slots, [replicas] + [1] * values.shape.rank)
    gathered = all_reduce_sum(tf.where(slots != 0, values[None], tf.zeros_like(values[None])))
    shape = tf.concat([[-1], tf.shape(x)[1:]], axis=0)
    gathered = tf.reshape(gathered, shape)
    rows = None if x.shape[0] is None else replicas * x.shape[0]
    gathered.set_shape([rows, *x.shape[1:]])
    return tf.cast(gathered, x.dtype)


def all_reduce_sum(x):
    """Sums a tensor, or each of a list of tensors, over all replicas.

    The gradient is likewise the sum of the upstream gradients over all replicas.

    Args:
        x: numeric tensor of the same shape on all replicas, or a list of such tensors, which are
            sent together.

    Returns:
        like `x`, the same on every replica.
    """
    if num_replicas() == 1:
        return x
    return tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, tf.nest.map_structure(tf.convert_to_tensor, x)
    )
