"""Rows by group, in static shapes: what samplers and banks are made of."""

import math

import keras
from keras import ops


def sort_by_group(groups, num_groups, minor=None):
    """Orders rows by group, one group after the other.

    Args:
        groups: int32 tensor `(rows,)`; what is outside `[0, num_groups)` comes last.
        num_groups: int.
        minor: int32 tensor `(rows,)` in `[0, 2^minor_bits(num_groups))`, by which the rows of a
            group are ordered (what draws, or a distance); None: they keep their order.

    Returns:
        `(order, starts)`, int32 `(rows,)` and `(num_groups + 1,)`: the rows of group g are
        `order[starts[g]:starts[g + 1]]`.
    """
    groups = ops.where(ops.logical_and(groups >= 0, groups < num_groups), groups, num_groups)
    # Keras sorts in a stable way on every backend.
    key = groups if minor is None else groups * 2 ** minor_bits(num_groups) + minor
    order = ops.argsort(key)
    starts = ops.searchsorted(ops.take(groups, order), ops.arange(num_groups + 1, dtype="int32"))
    return ops.cast(order, "int32"), ops.cast(starts, "int32")


def minor_bits(num_groups):
    """Bits that the number of a group leaves to `minor` in an int32."""
    return 31 - math.ceil(math.log2(num_groups + 1))


def random_minor(shape, num_groups, seed):
    """Draws a `minor` for `sort_by_group`, which shuffles each group.

    Args:
        shape: ints.
        num_groups: int.
        seed: int or `keras.random.SeedGenerator`.

    Returns:
        int32 tensor.
    """
    return keras.random.randint(shape, 0, 2 ** minor_bits(num_groups), dtype="int32", seed=seed)


def lottery(shape, seed):
    """Draws integers that decide an order; unlike floats, the same with XLA and without.

    Args:
        shape: ints.
        seed: int or `keras.random.SeedGenerator`.

    Returns:
        int32 tensor in `[0, 2^31 - 1)`.
    """
    return keras.random.randint(shape, 0, 2**31 - 1, dtype="int32", seed=seed)


def end_to_end(quotas, rows):
    """Lays the rows that each group may give one group after the other.

    Args:
        quotas: int32 tensor `(num_groups,)`.
        rows: int, how many of them are wanted, from the first on; or int32 tensor `(rows,)`, which.

    Returns:
        `(owner, rank)`, int32 `(rows,)` each: the group of a row, -1 for rows beyond the last
        group's, and its number within the group from 0 on.
    """
    ends = ops.cumsum(quotas)
    row = ops.arange(rows, dtype="int32") if isinstance(rows, int) else rows
    owner = ops.cast(ops.searchsorted(ends, row, side="right"), "int32")
    used = owner < quotas.shape[0]
    safe = ops.minimum(owner, quotas.shape[0] - 1)
    rank = row - ops.take(ends, safe) + ops.take(quotas, safe)
    return ops.where(used, owner, -1), ops.where(used, rank, 0)


def within(quotas, rows, seed):
    """Cuts what groups may give down to so many rows in all.

    Args:
        quotas: int32 tensor `(num_groups,)`.
        rows: int.
        seed: int or `keras.random.SeedGenerator`.

    Returns:
        int32 tensor `(num_groups,)`: `quotas`, if they fit; else those of the groups that come last
        in a random order are cut.
    """
    order = ops.argsort(lottery(quotas.shape, seed))
    drawn = ops.take(quotas, order)
    drawn = ops.clip(rows - ops.cumsum(drawn) + drawn, 0, drawn)
    return ops.take(drawn, ops.argsort(order))
