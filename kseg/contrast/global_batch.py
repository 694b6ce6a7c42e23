"""Row gathering and mean InfoNCE over the global batch, with the work split among replicas."""

from keras import ops

from kseg.backend import replicas
from kseg.contrast.info_nce import info_nce
from kseg.losses.reduction import global_ratio


def take_rows(x, positions, *, cross_replica=True, transform=None):
    """Takes rows of a tensor, or of the concatenated tensors of all replicas.

    Args:
        x: float tensor `(rows, dim)`, the same shape on every replica.
        positions: int32 tensor `(count,)`, row indices, with `cross_replica` the same on every
            replica; -1 yields an arbitrary row or zeros.
        cross_replica: bool. False: take rows of the replica's own tensor.
        transform: function of `(count, dim)` rows, each of which it must transform on its own;
            every replica applies it to the rows that it contributes. None: the identity.

    Returns:
        tensor `(count, dim)`, transformed; gradients flow to the replica that a row came from.
    """
    transform = transform or (lambda rows: rows)
    if not cross_replica or replicas.num_replicas() == 1:
        return transform(ops.take(x, ops.maximum(positions, 0), axis=0))
    local = positions - replicas.replica_id() * x.shape[0]
    is_local = ops.logical_and(local >= 0, local < x.shape[0])
    rows = transform(ops.take(x, ops.where(is_local, local, 0), axis=0))
    return replicas.all_reduce_sum(ops.where(is_local[:, None], rows, 0.0))


def replica_share(count):
    """Selects every R-th row for this replica, one of R.

    Args:
        count: int, rows, the same on every replica.

    Returns:
        `(positions, inside)`: int32 and bool tensors `(ceil(count / R),)`: indices of this
        replica's rows, and whether there is such a row (otherwise its index is 0).
    """
    number = replicas.num_replicas()
    positions = ops.arange(-(-count // number), dtype="int32") * number + replicas.replica_id()
    inside = positions < count
    return ops.where(inside, positions, 0), inside


def gather_shares(rows, count):
    """Joins the results of all replicas for their shares, in the order of `replica_share`.

    Args:
        rows: tensor `(ceil(count / R), dim)`.
        count: int, rows of all replicas.

    Returns:
        tensor `(count, dim)`, the same on every replica.
    """
    shares = ops.reshape(replicas.all_gather(rows), (-1, *rows.shape))
    return ops.reshape(ops.transpose(shares, (1, 0, 2)), (-1, rows.shape[1]))[:count]


def mean_info_nce(
    anchors, anchor_labels, keys, key_labels, *, exclude_self=False, cross_replica=True, **options
):
    """Averages `info_nce` over the anchors that have a positive.

    Args:
        anchors, anchor_labels, keys, key_labels: as in `info_nce`, fastest if sorted by class with
            empty rows last; with `cross_replica` the same on every replica.
        exclude_self: bool, whether the keys are the anchors.
        cross_replica: bool. If True, each of R replicas processes every R-th anchor, which balances
            the work although unused rows come last. If False, each processes all of its own
            anchors, and the result is the mean over replicas.
        **options: further arguments of `info_nce`.

    Returns:
        float32 scalar, this replica's share.
    """
    positions = ops.arange(anchors.shape[0])
    if cross_replica and replicas.num_replicas() > 1:
        positions, inside = replica_share(anchors.shape[0])
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
        rows_sorted=True,
        **options,
    )
    return global_ratio(total, number, cross_replica=cross_replica)
