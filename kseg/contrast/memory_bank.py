"""What a contrastive objective remembers of earlier batches: a ring of embeddings per class."""

# ruff: noqa: D102 - what Keras calls (`call`, `build`, `get_config`...) is documented by its class.

import keras
import numpy as np
from keras import ops

from kseg.backend.rows import RowReader, write_rows
from kseg.contrast.grouping import end_to_end, lottery, sort_by_group


@keras.saving.register_keras_serializable(package="kseg")
class MemoryBank(keras.layers.Layer):
    """For each class a ring of its newest embeddings.

    Holds three non-trainable weights: `entries`, `cursor` and `count` int32 `(num_classes,)`: the
    slot of each class that is written next, and the number of its slots that hold something. Empty
    slots never take part.

    Source: Hu et al., "Region-aware Contrastive Learning for Semantic Segmentation", ICCV 2021,
    Sec. 3.3. Its public code writes one slot a step and moves the cursor by the batch size; here
    every embedding that comes gets a slot.

    Args:
        num_classes: int.
        capacity: int, slots of each class, or a list of ints, one for each class, so that rare
            classes need no memory for slots that they will not fill. `entries` is
            `(slots, dim)`, the rings one after the other.
        dim: int, length of an embedding.
        storage: `"float32"` or `"bfloat16"`, the dtype of `entries`. bfloat16 halves the memory;
            similarities then err by up to 2^-8.

    Raises:
        ValueError: if a size is not positive, `capacity` has another length than there are classes,
            or `storage` is unknown.
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
                f"`capacity` must be an int or have one for each of the {num_classes} classes. "
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
        # Two axes: XLA has no operation that reads rows of a variable of three.
        shape = (sum(capacities), dim)
        self.entries = self.add_weight(shape=shape, dtype=storage, name="entries", **shared)
        self.cursor = self.add_weight(shape=(num_classes,), dtype="int32", name="cursor", **shared)
        self.count = self.add_weight(shape=(num_classes,), dtype="int32", name="count", **shared)
        self.built = True

    def keys(self):
        """Gives all slots as keys for `info_nce(..., detach_keys=True)`.

        Returns:
            `(rows, labels)`: a `RowReader` of `(slots, dim)`, sorted by class, and int32
            `(slots,)`, -1 where a slot is empty.
        """
        owner = np.repeat(np.arange(self.num_classes, dtype="int32"), self._capacities)
        slot = np.arange(len(owner), dtype="int32") - self._starts[owner]
        filled = slot < ops.take(self.count, owner)
        return RowReader(self.entries), ops.where(filled, owner, -1)

    def sample(self, max_keys, *, seed=None):
        """Draws some of the slots that hold something, each equally likely and at most once.

        A simple random sample without replacement: all sets of `max_keys` slots are equally
        likely. If there are no more, all are given.

        Args:
            max_keys: int > 0.
            seed: int or `keras.random.SeedGenerator`; the same int gives the same sample.

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
        # The first of a random order of those filled; the empty ones come after all of them.
        order = ops.where(filled, lottery((slots,), seed), -1)
        _, drawn = ops.top_k(order, min(max_keys, slots))
        ring, slot = end_to_end(self.count, ops.sort(ops.cast(drawn, "int32")))
        place = ops.take(self._starts, ops.maximum(ring, 0)) + slot
        return RowReader(self.entries).take(place), ring

    def write(self, rows, labels):
        """Puts embeddings into the rings of their classes, over the oldest ones there.

        In the order of the rows; of more rows of a class than it has slots, the last ones stay.
        Under a strategy every replica must bring the same rows, in replica context.

        Args:
            rows: float tensor `(count, dim)`. No gradient flows through the bank.
            labels: int tensor `(count,)`; -1 marks a row that is not stored.
        """
        labels = ops.cast(labels, "int32")
        order, starts = sort_by_group(labels, self.num_classes)
        counts = starts[1:] - starts[:-1]
        safe = ops.maximum(labels, 0)
        # A row's number within its class: its place in the order, from the start of the class on.
        rank = ops.cast(ops.argsort(order), "int32") - ops.take(starts, safe)
        capacity = ops.take(self._capacities, safe)
        stays = ops.logical_and(labels >= 0, rank >= ops.take(counts, safe) - capacity)
        slot = (ops.take(self.cursor, safe) + rank) % capacity
        positions = ops.where(stays, ops.take(self._starts, safe) + slot, -1)
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
