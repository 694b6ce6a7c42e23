"""How per-pixel and per-anchor losses become one number, on one or many replicas."""

from keras import ops

from kseg import replicas


def global_mean(values, valid, *, cross_replica=True):
    """Averages over what is valid in the global batch.

    The mean is over all replicas' valid values together, not a mean of their means: replicas with
    fewer valid pixels weigh less, as they would in one large batch.

    Args:
        values: float tensor, any shape.
        valid: tensor of the same shape, 1 (or True) where the value counts, else 0.
        cross_replica: bool. False: the mean of the replicas' own means.

    Returns:
        float32 scalar: this replica's share. Its sum over replicas is the mean, 0 if nothing is
        valid; on one replica it is the mean itself.
    """
    valid = ops.cast(valid, "float32")
    total, count = ops.sum(ops.cast(values, "float32") * valid), ops.sum(valid)
    if cross_replica:
        return total / ops.maximum(replicas.all_reduce_sum(count), 1.0)
    return total / ops.maximum(count, 1.0) / replicas.num_replicas()
