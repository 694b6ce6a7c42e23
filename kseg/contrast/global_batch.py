"""Row gathering and mean InfoNCE over the global batch, with the work split among replicas."""

from keras import ops

from kseg.backend import replicas
from kseg.contrast.info_nce import info_nce
from kseg.losses.reduction import global_ratio


def take_rows(x, positions, *, cross_replica=True):
    """Takes rows of a tensor, or of the concatenated tensors of all replicas.

    Args:
        x: float tensor `(rows, dim)`, the same shape on every replica.
        positions: int32 tensor `(count,)`, row indices, with `cross_replica` the same on every
            replica; -1 yields an arbitrary row or zeros.
        cross_replica: bool. False: take rows of the replica's own tensor.

    Returns:
        tensor `(count, dim)`; gradients flow to the replica that a row came from.
    """
    if not cross_replica or replicas.num_replicas() == 1:
        return ops.take(x, ops.maximum(positions, 0), axis=0)
    local = positions - replicas.replica_id() * x.shape[0]
    is_local = ops.logical_and(local >= 0, local < x.shape[0])
    rows = ops.take(x, ops.where(is_local, local, 0), axis=0)
    return replicas.all_reduce_sum(ops.where(is_local[:, None], rows, 0.0))


def mean_info_nce(
    anchors, anchor_labels, keys, key_labels, *, exclude_self=False, cross_replica=True, **options
):
    """Averages `info_nce` over the anchors that have a positive.

    Args:
        anchors, anchor_labels, keys, key_labels: as in `info_nce`; with `cross_replica` the same on
            every replica.
        exclude_self: bool, whether the keys are the anchors.
        cross_replica: bool. If True, each of R replicas processes every R-th anchor, which balances
            the work although unused rows come last. If False, each processes all of its own
            anchors, and the result is the mean over replicas.
        **options: further arguments of `info_nce`.

    Returns:
        float32 scalar, this replica's share.
    """
    count = replicas.num_replicas()
    positions = ops.arange(anchors.shape[0])
    if cross_replica and count > 1:
        positions = ops.arange(-(-anchors.shape[0] // count)) * count + replicas.replica_id()
        inside = positions < anchors.shape[0]
        positions = ops.where(inside, positions, 0)
        anchors = ops.take(anchors, positions, axis=0)
        anchor_labels = ops.where(inside, ops.take(anchor_labels, positions), -1)
    total, number = info_nce(
        anchors,
        anchor_labels,
        keys,
        key_labels,
        exclude_self=exclude_self,
        self_positions=positions if exclude_self else None,
        reduction="sum",
        **options,
    )
    return global_ratio(total, number, cross_replica=cross_replica)
