"""Which pixels take part: samplers with static shapes, -1 for unused rows."""

import math

import keras
import numpy as np
from keras import ops


def resize_labels(labels, height, width):
    """Brings labels to a feature map's size by nearest sampling (half-pixel centres).

    Args:
        labels: int tensor `(batch, label_height, label_width)`, static height and width.
        height: int, rows of the map.
        width: int, columns of the map.

    Returns:
        int32 tensor `(batch, height, width)`; place i holds source `floor((i + 0.5) * in / out)`.
    """
    for axis, size in ((1, height), (2, width)):
        source = labels.shape[axis]
        if source != size:
            places = np.floor((np.arange(size) + 0.5) * source / size).astype("int32")
            labels = ops.take(labels, places, axis=axis)
    return ops.cast(labels, "int32")


def balanced_anchors(labels, num_classes, *, max_anchors=10_000, min_count=5, seed=None):
    """Draws equally many pixels of every class that is present in a batch.

    A class is present if it has at least `min_count` pixels. Each present class gets K pixels: as
    many as the rarest of them has, but no more than `max_anchors` over all. Its K pixels are
    divided equally among the images that hold it: where an image has fewer than its share, it
    gives all and the others give more; what cannot be divided goes to images drawn at random.

    Source: Pissas et al., ECCV 2022, Sec. 3.3; `min_count` is that of its public code.

    Args:
        labels: int tensor `(batch, positions)`, static shape; values outside
            `[0, num_classes)` are ignored.
        num_classes: int.
        max_anchors: int, A_max. The number of rows is this, or the number of pixels if smaller.
        min_count: int > 0.
        seed: int or `keras.random.SeedGenerator`; the same int gives the same sample.

    Returns:
        `(positions, anchor_labels)`, int32 `(rows,)` each: places in the flattened labels and the
        classes found there, sorted by class; -1 in both marks unused rows, which come last.
    """
    batch, positions = labels.shape
    rows = min(max_anchors, batch * positions)
    groups = num_classes * batch  # One for each class and image, class by class.
    labels = ops.cast(labels, "int32")
    known = ops.logical_and(labels >= 0, labels < num_classes)
    group = ops.where(known, labels * batch + ops.arange(batch, dtype="int32")[:, None], groups)
    group = ops.reshape(group, (-1,))

    # One sort shuffles each group in place: the group's number above random bits.
    random_bits = 31 - math.ceil(math.log2(groups + 1))
    noise = keras.random.randint((batch * positions,), 0, 2**random_bits, dtype="int32", seed=seed)
    order = ops.argsort(group * 2**random_bits + noise)
    starts = ops.searchsorted(ops.take(group, order), ops.arange(groups + 1, dtype="int32"))
    starts = ops.cast(starts, "int32")
    counts = ops.reshape(starts[1:] - starts[:-1], (num_classes, batch))

    # The number of each class: that of the rarest present one.
    class_counts = ops.sum(counts, axis=1)
    present = class_counts >= min_count
    num_present = ops.sum(ops.cast(present, "int32"))
    rarest = ops.min(ops.where(present, class_counts, batch * positions))
    per_class = ops.minimum(rarest, rows // ops.maximum(num_present, 1))
    quotas = _divide(counts, ops.where(present, per_class, 0), seed)

    # Row a takes the a-th pixel of the groups' quotas laid end to end.
    ends = ops.cumsum(ops.reshape(quotas, (-1,)))
    row = ops.arange(rows, dtype="int32")
    owner = ops.cast(ops.searchsorted(ends, row, side="right"), "int32")
    used = owner < groups
    owner = ops.minimum(owner, groups - 1)
    rank = row - ops.take(ends, owner) + ops.take(ops.reshape(quotas, (-1,)), owner)
    place = ops.where(used, ops.take(starts, owner) + rank, 0)
    return (
        ops.where(used, ops.cast(ops.take(order, place), "int32"), -1),
        ops.where(used, owner // batch, -1),
    )


def _divide(counts, totals, seed):
    """Takes `totals[n]` of the `counts[n]` of each row, as equally as they allow.

    The level t is the largest with `sum_b min(count_b, t) <= total`. With the counts in ascending
    order that sum is the least of `first_j(counts) + (batch - j) * t` over j, hence t is the most
    of `(total - first_j(counts)) // (batch - j)`.

    Args:
        counts: int32 tensor `(num_classes, batch)`.
        totals: int32 tensor `(num_classes,)`, at most the row sums of `counts`.
        seed: as in `balanced_anchors`.

    Returns:
        int32 tensor `(num_classes, batch)`, at most `counts`, with row sums `totals`.
    """
    num_classes, batch = counts.shape
    ascending = ops.sort(counts, axis=1)
    saturated = ops.cumsum(ascending, axis=1) - ascending
    others = np.arange(batch, 0, -1, dtype="int32")[None, :]
    level = ops.max((totals[:, None] - saturated) // others, axis=1, keepdims=True)
    quotas = ops.minimum(counts, ops.maximum(level, 0))
    # What is left goes, one each, to images that have more, in random order.
    left = totals - ops.sum(quotas, axis=1)
    lottery = keras.random.uniform((num_classes, batch), seed=seed)
    lottery = ops.where(counts > quotas, lottery, 2.0)
    place = ops.argsort(ops.argsort(lottery, axis=1), axis=1)
    extra = ops.logical_and(place < left[:, None], counts > quotas)
    return quotas + ops.cast(extra, "int32")
