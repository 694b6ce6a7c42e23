"""What a contrastive objective remembers of earlier batches: a ring of embeddings per class."""

# ruff: noqa: D102 - what Keras calls (`call`, `build`, `get_config`...) is documented by its class.

import keras
from keras import ops

from kseg.variables import RowReader, write_rows


@keras.saving.register_keras_serializable(package="kseg")
class MemoryBank(keras.layers.Layer):
    """For each class a ring of its newest embeddings.

    Holds three non-trainable weights: `entries` `(num_classes, capacity, dim)`, `cursor` and
    `count` int32 `(num_classes,)`: the slot of each class that is written next, and the number of
    its slots that hold something. Empty slots never take part.

    Source: Hu et al., "Region-aware Contrastive Learning for Semantic Segmentation", ICCV 2021,
    Sec. 3.3. Its public code writes one slot a step and moves the cursor by the batch size; here
    every embedding that comes gets a slot.

    Args:
        num_classes: int.
        capacity: int, slots of each class.
        dim: int, length of an embedding.
        storage: `"float32"` or `"bfloat16"`, the dtype of `entries`. bfloat16 halves the memory;
            similarities then err by up to 2^-8.
    """

    def __init__(self, num_classes, capacity, dim, *, storage="float32", name="bank", **kwargs):
        super().__init__(name=name, **{"dtype": "float32", **kwargs})
        if min(num_classes, capacity, dim) < 1:
            raise ValueError(
                "`num_classes`, `capacity` and `dim` must be positive. Received: "
                f"{num_classes=}, {capacity=}, {dim=}"
            )
        if storage not in ("float32", "bfloat16"):
            raise ValueError(f"`storage` must be 'float32' or 'bfloat16'. Received: {storage=}")
        self.num_classes = num_classes
        self.capacity = capacity
        self.dim = dim
        self.storage = storage
        shared = {"initializer": "zeros", "trainable": False, "aggregation": "only_first_replica"}
        self.entries = self.add_weight(
            shape=(num_classes, capacity, dim), dtype=storage, name="entries", **shared
        )
        self.cursor = self.add_weight(shape=(num_classes,), dtype="int32", name="cursor", **shared)
        self.count = self.add_weight(shape=(num_classes,), dtype="int32", name="count", **shared)
        self.built = True

    def keys(self):
        """Gives all slots as keys for `info_nce(..., detach_keys=True)`.

        Returns:
            `(rows, labels)`: a `RowReader` of `(num_classes * capacity, dim)`, sorted by class,
            and int32 `(num_classes * capacity,)`, -1 where a slot is empty.
        """
        slot = ops.arange(self.capacity)[None, :]
        filled = slot < ops.expand_dims(self.count, 1)
        labels = ops.where(filled, ops.arange(self.num_classes)[:, None], -1)
        return RowReader(self.entries), ops.reshape(labels, (-1,))

    def write(self, rows, labels):
        """Puts embeddings into the rings of their classes, over the oldest ones there.

        In the order of the rows; of more rows of a class than it has slots, the last ones stay.
        Under a strategy every replica must bring the same rows, in replica context.

        Args:
            rows: float tensor `(count, dim)`. No gradient flows through the bank.
            labels: int tensor `(count,)`; -1 marks a row that is not stored.
        """
        rank, counts = _rank_within_class(ops.cast(labels, "int32"), self.num_classes)
        safe = ops.maximum(labels, 0)
        stays = ops.logical_and(labels >= 0, rank >= ops.take(counts, safe) - self.capacity)
        slot = (ops.take(self.cursor, safe) + rank) % self.capacity
        positions = ops.where(stays, safe * self.capacity + slot, -1)
        write_rows(self.entries, ops.cast(positions, "int32"), ops.stop_gradient(rows))
        self.cursor.assign((self.cursor + counts) % self.capacity)
        self.count.assign(ops.minimum(self.count + counts, self.capacity))

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "capacity": self.capacity,
            "dim": self.dim,
            "storage": self.storage,
        }


def _rank_within_class(labels, num_classes):
    """Numbers the rows of each class in their order.

    Args:
        labels: int32 tensor `(count,)`, -1 for none.
        num_classes: int.

    Returns:
        `(rank, counts)`, int32 `(count,)` and `(num_classes,)`: how many rows of the same class
        come before, and how many there are of each class.
    """
    rows = labels.shape[0]
    place = ops.arange(rows)
    # One sort of distinct numbers, so that no backend needs a stable one.
    group = ops.where(labels >= 0, labels, num_classes)
    order = ops.argsort(group * rows + place)
    starts = ops.searchsorted(ops.take(group, order), ops.arange(num_classes + 1))
    starts = ops.cast(starts, "int32")
    inverse = ops.argsort(order)
    rank = ops.cast(inverse, "int32") - ops.take(starts, group)
    return rank, starts[1:] - starts[:-1]
