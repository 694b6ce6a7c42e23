"""Sorting and selecting rows by group in static shapes, for samplers and memory banks."""

import math

import keras
from keras import ops


def sort_by_group(groups, num_groups, minor=None):
    """Sorts rows by group.

    Args:
        groups: int32 tensor `(rows,)`; rows with values outside `[0, num_groups)` come last.
        num_groups: int.
        minor: int32 tensor `(rows,)` in `[0, 2^minor_bits(num_groups))`, the secondary sort key
            (random numbers, or a distance); None: the rows of a group keep their order.

    Returns:
        `(order, starts)`, int32 `(rows,)` and `(num_groups + 1,)`: the rows of group g are
        `order[starts[g]:starts[g + 1]]`.
    """
    groups = ops.where(ops.logical_and(groups >= 0, groups < num_groups), groups, num_groups)
    # Keras sorts stably on every backend.
    key = groups if minor is None else groups * 2 ** minor_bits(num_groups) + minor
    order = ops.argsort(key)
    starts = ops.searchsorted(ops.take(groups, order), ops.arange(num_groups + 1, dtype="int32"))
    return ops.cast(order, "int32"), ops.cast(starts, "int32")


def minor_bits(num_groups):
    """Returns the number of bits of an int32 that the group index leaves for `minor`."""
    return 31 - math.ceil(math.log2(num_groups + 1))


def random_minor(shape, num_groups, seed):
    """Draws a random `minor` for `sort_by_group`, which shuffles each group.

    Args:
        shape: ints.
        num_groups: int.
        seed: int or `keras.random.SeedGenerator`.

    Returns:
        int32 tensor.
    """
    return keras.random.randint(shape, 0, 2 ** minor_bits(num_groups), dtype="int32", seed=seed)


def random_sort_keys(shape, seed):
    """Draws integers as sort keys of a random order; unlike floats, the same with and without XLA.

    Args:
        shape: ints.
        seed: int or `keras.random.SeedGenerator`.

    Returns:
        int32 tensor in `[0, 2^31 - 1)`.
    """
    return keras.random.randint(shape, 0, 2**31 - 1, dtype="int32", seed=seed)


def assign_rows_to_groups(quotas, rows):
    """Assigns rows to groups, consecutively, as many to each group as its quota.

    Args:
        quotas: int32 tensor `(num_groups,)`, numbers of rows of the groups.
        rows: int, the number of rows to assign, or int32 tensor `(rows,)`, their indices.

    Returns:
        `(owner, rank)`, int32 `(rows,)` each: the group of a row, -1 for rows after the last
        group's, and the row's index within its group.
    """
    ends = ops.cumsum(quotas)
    row = ops.arange(rows, dtype="int32") if isinstance(rows, int) else rows
    owner = ops.cast(ops.searchsorted(ends, row, side="right"), "int32")
    used = owner < quotas.shape[0]
    safe = ops.minimum(owner, quotas.shape[0] - 1)
    rank = row - ops.take(ends, safe) + ops.take(quotas, safe)
    return ops.where(used, owner, -1), ops.where(used, rank, 0)


def within(quotas, rows, seed):
    """Reduces the quotas of groups so that their sum does not exceed a number of rows.

    Args:
        quotas: int32 tensor `(num_groups,)`, numbers of rows of the groups.
        rows: int, the largest sum.
        seed: int or `keras.random.SeedGenerator`.

    Returns:
        int32 tensor `(num_groups,)`: `quotas`, if their sum fits; else with reduced quotas of the
        groups that come last in a random order.
    """
    order = ops.argsort(random_sort_keys(quotas.shape, seed))
    drawn = ops.take(quotas, order)
    drawn = ops.clip(rows - ops.cumsum(drawn) + drawn, 0, drawn)
    return ops.take(drawn, ops.argsort(order))
