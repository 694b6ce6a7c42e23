"""Tile sizes for `info_nce`: small on a CPU, large on an accelerator."""

import math

import keras

# The largest number of similarities in a tile on an accelerator: 128 MiB.
_LARGEST_TILE = 2**25
# Similarities of one block of anchors with all keys that may be held in any case: 64 and 256 MiB.
_HELD_ON_CPU, _HELD_ON_ACCELERATOR = 2**24, 2**26


def on_accelerator():
    """Returns True if the backend computes on a GPU or TPU."""
    return any(not device.startswith("cpu") for device in keras.distribution.list_devices())


def tile_sizes(num_anchors, num_keys, dim, *, on_cpu, accelerator=None):
    """Chooses the tile size of `info_nce`.

    On a CPU a tile should fit into the caches, and small tiles save arithmetic, since more of them
    have no valid pair or negatives only. On an accelerator each iteration of the loop has a fixed
    cost that exceeds such savings, so a tile is as large as memory allows, and square if both sides
    must be split. Measured on an NVIDIA H200 with JAX 0.11 (docs/benchmarks.md), forward and
    gradient at the papers' sizes: RegionContrast, 152 anchors and 56,525 keys, took 3.66 ms in
    28 tiles, 1.33 ms in 7 and 0.78 ms in one; pixel contrast, 1,024 anchors, 1.74 ms in 4 tiles and
    0.97 ms in one; with 4,096 stored keys 4.95 ms in 16 tiles and 1.95 ms in one. That is 0.09 to
    0.26 ms per tile.

    Args:
        num_anchors, num_keys, dim: ints.
        on_cpu: int or pair of ints, the size on a CPU.
        accelerator: bool, whether the backend computes on an accelerator, or None to detect it.

    Returns:
        pair of ints (rows, columns). On an accelerator `rows * columns` (the similarities) and
        `columns * dim` (the keys read for a tile) are at most 2^25 each, 128 MiB.
    """
    if accelerator is None:
        accelerator = on_accelerator()
    if not accelerator:
        return (on_cpu, on_cpu) if isinstance(on_cpu, int) else tuple(on_cpu)
    side = math.isqrt(_LARGEST_TILE)
    rows = min(num_anchors, max(side, _LARGEST_TILE // num_keys))
    columns = min(num_keys, max(1, _LARGEST_TILE // max(rows, dim)))
    return rows, columns


def held_similarities(accelerator=None):
    """Returns the number of similarities of one block of anchors that may be held in any case."""
    if accelerator is None:
        accelerator = on_accelerator()
    return _HELD_ON_ACCELERATOR if accelerator else _HELD_ON_CPU
