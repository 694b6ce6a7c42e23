"""The memory bank of contrastive objectives: a ring buffer of earlier embeddings per class."""

# ruff: noqa: D102 - what Keras calls (`call`, `build`, `get_config`...) is documented by its class.

import keras
import numpy as np
from keras import ops

from kseg.backend.rows import RowReader, write_rows
from kseg.contrast.grouping import assign_rows_to_groups, random_sort_keys, sort_by_group


@keras.saving.register_keras_serializable(package="kseg")
class MemoryBank(keras.layers.Layer):
    """A ring buffer of the newest embeddings of each class.

    Holds three non-trainable weights: `entries`; `cursor`, int32 `(num_classes,)`, the slot of each
    class to write next; `count`, int32 `(num_classes,)`, the number of its filled slots. Empty
    slots are never used as keys.

    Source: Hu et al., "Region-aware Contrastive Learning for Semantic Segmentation", ICCV 2021,
    Sec. 3.3. Its public code writes one slot per step and advances the cursor by the batch size;
    here every embedding gets a slot.

    Args:
        num_classes: int.
        capacity: int, slots of each class, or a list of ints, one for each class, so that no memory
            is reserved for slots that rare classes will not fill. `entries` is `(slots, dim)`, the
            concatenated rings.
        dim: int, length of an embedding.
        storage: `"float32"` or `"bfloat16"`, the dtype of `entries`. bfloat16 halves the memory, at
            an error of up to 2^-8 in similarities.

    Raises:
        ValueError: if a size is not positive, the length of `capacity` is not the number of
            classes, or `storage` is unknown.
    """

    def __init__(self, num_classes, capacity, dim, *, storage="float32", name="bank", **kwargs):
        super().__init__(name=name, **{"dtype": "float32", **kwargs})
        capacities = [capacity] * num_classes if isinstance(capacity, int) else list(capacity)
        if num_classes < 1 or dim < 1 or min(capacities, default=0) < 1:
            raise ValueError(
                "`num_classes`, `capacity` and `dim` must be positive. Received: "
                f"{num_classes=}, {capacity=}, {dim=}"
            )
        if len(capacities) != num_classes:
            raise ValueError(
                f"`capacity` must be an int, or one int for each of the {num_classes} classes. "
                f"Received: {len(capacities)}"
            )
        if storage not in ("float32", "bfloat16"):
            raise ValueError(f"`storage` must be 'float32' or 'bfloat16'. Received: {storage=}")
        self.num_classes = num_classes
        self.capacity = capacity if isinstance(capacity, int) else capacities
        self.dim = dim
        self.storage = storage
        self._capacities = np.array(capacities, "int32")
        self._starts = np.cumsum(self._capacities, dtype="int32") - self._capacities
        shared = {"initializer": "zeros", "trainable": False, "aggregation": "only_first_replica"}
        # Two axes: XLA cannot gather rows of a variable with three.
        shape = (sum(capacities), dim)
        self.entries = self.add_weight(shape=shape, dtype=storage, name="entries", **shared)
        self.cursor = self.add_weight(shape=(num_classes,), dtype="int32", name="cursor", **shared)
        self.count = self.add_weight(shape=(num_classes,), dtype="int32", name="count", **shared)
        self.built = True

    def keys(self):
        """Returns all slots as keys for `info_nce(..., detach_keys=True)`.

        Returns:
            `(rows, labels)`: a `RowReader` of `(slots, dim)`, sorted by class, and int32
            `(slots,)`, -1 where a slot is empty.
        """
        owner = np.repeat(np.arange(self.num_classes, dtype="int32"), self._capacities)
        slot = np.arange(len(owner), dtype="int32") - self._starts[owner]
        filled = slot < ops.take(self.count, owner)
        return RowReader(self.entries), ops.where(filled, owner, -1)

    def sample(self, max_keys, *, seed=None):
        """Draws a simple random sample of the filled slots, without replacement.

        All sets of `max_keys` filled slots are equally likely. If fewer are filled, all of them are
        returned.

        Args:
            max_keys: int > 0.
            seed: int or `keras.random.SeedGenerator`; the same int yields the same sample.

        Returns:
            `(rows, labels)`: tensor `(rows, dim)` and int32 `(rows,)`, sorted by class, `max_keys`
            rows or as many as there are slots; -1 marks unused rows, which come last.

        Raises:
            ValueError: if `max_keys` is not positive.
        """
        if max_keys < 1:
            raise ValueError(f"`max_keys` must be positive. Received: {max_keys=}")
        slots = int(self._capacities.sum())
        filled = ops.arange(slots, dtype="int32") < ops.sum(self.count)
        # The first of the filled slots in random order; indices of empty ones come last.
        order = ops.where(filled, random_sort_keys((slots,), seed), -1)
        _, drawn = ops.top_k(order, min(max_keys, slots))
        ring, slot = assign_rows_to_groups(self.count, ops.sort(ops.cast(drawn, "int32")))
        position = ops.take(self._starts, ops.maximum(ring, 0)) + slot
        return RowReader(self.entries).take(position), ring

    def write(self, rows, labels):
        """Writes embeddings to the rings of their classes, over the oldest entries.

        Rows are written in their order; if a class has more rows than slots, its last rows are
        kept. Under a strategy every replica must pass the same rows, in replica context.

        Args:
            rows: float tensor `(count, dim)`. No gradient flows through the bank.
            labels: int tensor `(count,)`; -1 skips a row.
        """
        labels = ops.cast(labels, "int32")
        order, starts = sort_by_group(labels, self.num_classes)
        counts = starts[1:] - starts[:-1]
        safe = ops.maximum(labels, 0)
        # The index of a row within its class: its sorted position minus the start of the class.
        rank = ops.cast(ops.argsort(order), "int32") - ops.take(starts, safe)
        capacity = ops.take(self._capacities, safe)
        kept = ops.logical_and(labels >= 0, rank >= ops.take(counts, safe) - capacity)
        slot = (ops.take(self.cursor, safe) + rank) % capacity
        positions = ops.where(kept, ops.take(self._starts, safe) + slot, -1)
        write_rows(self.entries, ops.cast(positions, "int32"), ops.stop_gradient(rows))
        self.cursor.assign((self.cursor + counts) % self._capacities)
        self.count.assign(ops.minimum(self.count + counts, self._capacities))

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "capacity": self.capacity,
            "dim": self.dim,
            "storage": self.storage,
        }
