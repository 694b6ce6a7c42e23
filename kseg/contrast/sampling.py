"""Samplers of pixels, with static shapes and -1 for unused rows."""

import numpy as np
from keras import ops

from kseg.contrast.grouping import (
    assign_rows_to_groups,
    random_minor,
    random_sort_keys,
    sort_by_group,
    within,
)


def balanced_anchors(labels, num_classes, *, max_anchors=10_000, min_count=5, seed=None):
    """Draws the same number of pixels of every class that is present in a batch.

    A class is present if it has at least `min_count` pixels. Each present class gets K pixels: as
    many as the rarest present class has, but at most `max_anchors` in total, and at least two (with
    too many classes for that, only a random selection of them is sampled). The K pixels are divided
    equally among the images that contain the class: an image with fewer pixels than its share
    contributes all of them, the others more; a remainder goes to random images.

    Source: Pissas et al., ECCV 2022, Sec. 3.3; `min_count` is that of its public code.

    Args:
        labels: int tensor `(batch, positions)`, static shape; values outside
            `[0, num_classes)` are ignored.
        num_classes: int.
        max_anchors: int, A_max. The number of rows is this, or the number of pixels if smaller.
        min_count: int > 0.
        seed: int or `keras.random.SeedGenerator`; the same int yields the same sample.

    Returns:
        `(positions, anchor_labels)`, int32 `(rows,)` each: indices into the flattened labels and
        the classes at these, sorted by class; -1 in both marks unused rows, which come last.
    """
    batch, positions = labels.shape
    rows = min(max_anchors, batch * positions)
    groups = num_classes * batch  # One for each class and image, class by class.
    group = _class_and_image(labels, num_classes)
    noise = random_minor((batch * positions,), groups, seed)
    order, starts = sort_by_group(group, groups, noise)
    counts = ops.reshape(starts[1:] - starts[:-1], (num_classes, batch))

    # The number of pixels of each class: that of the rarest present one.
    class_counts = ops.sum(counts, axis=1)
    present = class_counts >= min_count
    num_present = ops.sum(ops.cast(present, "int32"))
    rarest = ops.min(ops.where(present, class_counts, batch * positions))
    share = ops.maximum(rows // ops.maximum(num_present, 1), 2)  # A single one has no positive.
    totals = within(ops.where(present, ops.minimum(rarest, share), 0), rows, seed)
    quotas = _divide(counts, totals, seed)

    return _rows_of(ops.reshape(quotas, (-1,)), order, starts, rows, batch)


def hard_anchors(
    labels,
    predictions,
    num_classes,
    *,
    max_anchors=1024,
    max_views=100,
    min_count=5,
    seed=None,
):
    """Draws pixels of every class in every image, half of them wrongly predicted.

    Each pair of a class and an image with at least `min_count` pixels yields the same number of
    views, at most `max_views` and in total at most `max_anchors`, or all its pixels if there are
    fewer. With more pairs than `max_anchors`, a random selection of them is used. Half of the
    views are wrongly predicted, half correctly; if there are too few of one kind, more of the other
    are drawn.

    Source: Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", ICCV
    2021, Sec. 3.2, the "segmentation-aware hard anchor sampling". Its public code samples only
    classes with more than `max_views` pixels, and fails if there are none.

    Args:
        labels: int tensor `(batch, positions)`, static shape; values outside `[0, num_classes)` are
            ignored.
        predictions: int tensor of the same shape.
        num_classes: int.
        max_anchors: int > 0. The number of rows is this, or the number of pixels if smaller.
        max_views: int > 0.
        min_count: int > 0.
        seed: as in `balanced_anchors`.

    Returns:
        `(positions, anchor_labels)` as in `balanced_anchors`.
    """
    batch, positions = labels.shape
    rows = min(max_anchors, batch * positions)
    groups = num_classes * batch
    group = _class_and_image(labels, num_classes)
    correct = ops.reshape(ops.cast(predictions == labels, "int32"), (-1,))
    kind = ops.where(group < groups, 2 * group + correct, 2 * groups)  # Wrong, then correct ones.
    noise = random_minor((batch * positions,), 2 * groups, seed)
    order, starts = sort_by_group(kind, 2 * groups, noise)
    counts = ops.reshape(starts[1:] - starts[:-1], (groups, 2))
    total = ops.sum(counts, axis=1)
    present = total >= min_count
    num_present = ops.maximum(ops.sum(ops.cast(present, "int32")), 1)
    views = ops.clip(max_anchors // num_present, 1, max_views)
    total = ops.where(present, ops.minimum(total, views), 0)
    total = within(total, rows, seed)
    wrong = ops.minimum(counts[:, 0], ops.maximum(total // 2, total - counts[:, 1]))
    quotas = ops.reshape(ops.stack([wrong, total - wrong], axis=1), (-1,))
    return _rows_of(quotas, order, starts, rows, 2 * batch)


def pixels_of_each_image(labels, num_classes, *, count, max_rows, seed=None):
    """Draws up to `count` pixels of each class of each image.

    Args:
        labels: int tensor `(batch, positions)`, static shape; values outside `[0, num_classes)` are
            ignored.
        num_classes: int.
        count: int > 0.
        max_rows: int, the largest number of rows; pairs of class and image beyond it are dropped at
            random.
        seed: as in `balanced_anchors`.

    Returns:
        `(positions, pixel_labels)` as in `balanced_anchors`, image by image within each class.
    """
    batch, positions = labels.shape
    groups = num_classes * batch
    noise = random_minor((batch * positions,), groups, seed)
    order, starts = sort_by_group(_class_and_image(labels, num_classes), groups, noise)
    quotas = ops.minimum(starts[1:] - starts[:-1], count)
    rows = min(max_rows, batch * positions, groups * count)
    return _rows_of(within(quotas, rows, seed), order, starts, rows, batch)


def _class_and_image(labels, num_classes):
    """Computes the index `class * batch + image` of each pixel, int32 `(pixels,)`.

    The index of ignored pixels is `num_classes * batch`.
    """
    batch = labels.shape[0]
    labels = ops.cast(labels, "int32")
    known = ops.logical_and(labels >= 0, labels < num_classes)
    group = labels * batch + ops.arange(batch, dtype="int32")[:, None]
    return ops.reshape(ops.where(known, group, num_classes * batch), (-1,))


def _rows_of(quotas, order, starts, rows, groups_per_class):
    """Selects the first `quotas[g]` rows of each group g; returns `(positions, labels)`."""
    owner, rank = assign_rows_to_groups(quotas, rows)
    used = owner >= 0
    index = ops.where(used, ops.take(starts, ops.maximum(owner, 0)) + rank, 0)
    positions = ops.where(used, ops.take(order, index), -1)
    return positions, ops.where(used, owner // groups_per_class, -1)


def _divide(counts, totals, seed):
    """Divides `totals[n]` among the columns of `counts[n]`, as equally as the counts allow.

    The level t is the largest with `sum_b min(count_b, t) <= total`. With the counts in ascending
    order and c_j the sum of the first j, the left side is the minimum of `c_j + (batch - j) * t`
    over j, hence t is the maximum of `(total - c_j) // (batch - j)`.

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
    # The remainder goes, one each, to images with more pixels, in random order.
    remainder = totals - ops.sum(quotas, axis=1)
    noise = ops.where(counts > quotas, random_sort_keys((num_classes, batch), seed), 2**31 - 1)
    rank = ops.argsort(ops.argsort(noise, axis=1), axis=1)
    extra = ops.logical_and(rank < remainder[:, None], counts > quotas)
    return quotas + ops.cast(extra, "int32")
