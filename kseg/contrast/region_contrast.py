"""The objective of RegionContrast (Hu et al., ICCV 2021)."""

import keras
from keras import ops

from kseg.backend import replicas
from kseg.contrast.grouping import sort_by_group
from kseg.contrast.info_nce import info_nce
from kseg.contrast.objective import Objective, output
from kseg.contrast.regions import MODES, region_centers
from kseg.contrast.tiles import tile_sizes
from kseg.losses.reduction import global_mean

# Rows and columns of the tiles on a CPU: few rows, since few anchors are valid.
_TILES_ON_CPU = (256, 2048)


@keras.saving.register_keras_serializable(package="kseg")
class RegionContrast(Objective):
    """Contrasts the region centers of a batch with those of the whole data set.

    Every class of every image has a center, the (weighted) mean of the features just before the
    classifier. A center is pulled toward the stored centers of its class and pushed away from all
    others (Eq. 4). It is then stored as well.

    Source: Hu et al., "Region-aware Contrastive Learning for Semantic Segmentation", ICCV 2021.
    Not specified by the paper: the temperature, which is that of the public code, and the reduction
    of the L_i of Eq. 4 to the L_RC of Eq. 5, see `reduction`.

    Args:
        num_classes: int.
        scope: `"dataset"`: the keys are a `MemoryBank` ("inter-image" of Table 1). `"batch"`: no
            bank, the keys are the other centers of the batch ("w/o MB" of Table 3).
        centers: `"weighted"`, `"hard"` or `"average"`, see `region_centers` (Table 2).
        capacity: int, stored centers of each class, or a list with one number for each class, see
            `MemoryBank`. In the paper, the number of training images.
        temperature: float > 0.
        reduction: `"sum"`: the sum over the classes of an image, averaged over the images; the
            public code also sums over classes. `"mean"`: the mean over the centers of the global
            batch, smaller by a factor of the number of classes per image.
        storage: `"float32"` or `"bfloat16"`, the dtype of the bank.
        cross_replica: bool. With `scope="batch"`, whether the keys come from the global batch or
            from the replica's own; the bank always receives the centers of all replicas.

    Call arguments:
        outputs: dict with `features`, float `(batch, h, w, dim)`, and `logits`
            `(batch, any, any, num_classes)`; static shapes.
        labels: int tensor `(batch, height, width)`.

    Returns:
        dict with the float32 scalar `centers`.

    Raises:
        ValueError: if `scope`, `centers` or `reduction` is unknown; in a call, if `prepare` has not
            created the bank or an output is missing.

    Example:
        >>> import keras
        >>> from kseg import RegionContrast
        >>> labels = keras.ops.convert_to_tensor([[[0, 0, 1, 1], [0, 0, 1, 255]]] * 2)
        >>> logits = keras.random.normal((2, 2, 4, 3), seed=0)
        >>> outputs = {"logits": logits, "features": keras.random.normal((2, 2, 4, 8), seed=1)}
        >>> objective = RegionContrast(num_classes=3, capacity=10)
        >>> objective.prepare({name: keras.KerasTensor(x.shape) for name, x in outputs.items()})
        >>> terms, found = objective.contrast(outputs, labels)
        >>> objective.remember(found)  # After the training step: fills the memory bank.
        >>> objective.bank.count.numpy().tolist()
        [2, 2, 0]
        >>> terms, _ = objective.contrast(outputs, labels)
        >>> float(terms["centers"]) > 0
        True
    """

    def __init__(
        self,
        num_classes,
        *,
        scope="dataset",
        centers="weighted",
        capacity=1000,
        temperature=0.2,
        reduction="sum",
        storage="float32",
        cross_replica=True,
        name="region_contrast",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if scope not in ("dataset", "batch"):
            raise ValueError(f"`scope` must be 'dataset' or 'batch'. Received: {scope=}")
        if centers not in MODES:
            raise ValueError(f"`centers` must be one of {MODES}. Received: {centers=}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"`reduction` must be 'mean' or 'sum'. Received: {reduction=}")
        self.num_classes = num_classes
        self.scope = scope
        self.centers = centers
        self.capacity = capacity
        self.temperature = temperature
        self.reduction = reduction
        self.storage = storage
        self.cross_replica = cross_replica

    def prepare(self, outputs):
        """Creates the bank with the width of the features."""
        dim = output(outputs, "features", self).shape[-1]
        if self.scope == "dataset":
            self._make_bank(self.num_classes, self.capacity, dim, storage=self.storage)

    def contrast(self, outputs, labels):
        """Computes the term, and the centers of the batch with their labels."""
        features, logits = (output(outputs, name, self) for name in ("features", "logits"))
        centers, center_labels = region_centers(features, logits, labels, mode=self.centers)
        # Most rows are empty, since an image has few classes: sort them last, where they cost
        # nothing.
        order, _ = sort_by_group(center_labels, self.num_classes)
        if self.scope == "dataset":
            keys, key_labels = self._prepared_bank().keys()
            arguments = {"detach_keys": True}
        else:
            keys, key_labels = centers, center_labels
            positions = ops.arange(centers.shape[0])
            if self.cross_replica and replicas.num_replicas() > 1:
                keys, key_labels = replicas.all_gather(keys), replicas.all_gather(key_labels)
                positions = positions + replicas.replica_id() * centers.shape[0]
            arguments = {"exclude_self": True, "self_positions": ops.take(positions, order)}
        loss, valid = info_nce(
            ops.take(centers, order, axis=0),
            ops.take(center_labels, order),
            keys,
            key_labels,
            temperature=self.temperature,
            rows_sorted=True,
            block_size=tile_sizes(centers.shape[0], *keys.shape, on_cpu=_TILES_ON_CPU),
            **arguments,
        )
        if self.reduction == "sum":
            images = features.shape[0] * replicas.num_replicas()
            term = ops.sum(loss) / images
        else:
            # All replicas share the bank, so the mean is over the anchors of all replicas.
            cross_replica = self.cross_replica or self.scope == "dataset"
            term = global_mean(loss, valid, cross_replica=cross_replica)
        return {"centers": term}, (centers, center_labels)

    def remember(self, found):
        """Stores the centers of all replicas in the bank, in order of replica."""
        if self.scope == "dataset":
            self._prepared_bank().write(*(replicas.all_gather(ops.stop_gradient(x)) for x in found))

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "scope": self.scope,
            "centers": self.centers,
            "capacity": self.capacity,
            "temperature": self.temperature,
            "reduction": self.reduction,
            "storage": self.storage,
            "cross_replica": self.cross_replica,
        }
