"""RegionContrast (Hu et al., ICCV 2021)."""

import keras
from keras import ops

from kseg.backend import replicas
from kseg.contrast.grouping import sort_by_group
from kseg.contrast.info_nce import info_nce
from kseg.contrast.objective import Objective, output
from kseg.contrast.regions import MODES, region_centers
from kseg.contrast.tiles import tile_sizes
from kseg.losses.reduction import global_mean

# Rows and columns of the tiles on a CPU: few anchors are valid at a time.
_TILES_ON_CPU = (256, 2048)


@keras.saving.register_keras_serializable(package="kseg")
class RegionContrast(Objective):
    """Contrasts the region centres of a batch with those of the whole data set.

    Every class of every image has a centre, the (weighted) mean of the features just before the
    classifier. A centre is pulled towards the stored centres of its class and pushed away from
    all others (Eq. 4). Then it is stored itself.

    Source: Hu et al., "Region-aware Contrastive Learning for Semantic Segmentation", ICCV 2021.
    What the paper leaves open: the temperature is its public code's; how the L_i of
    Eq. 4 become the L_RC of Eq. 5 is `reduction`.

    Args:
        num_classes: int.
        scope: `"dataset"`: the keys are a `MemoryBank` ("inter-image" of Table 1). `"batch"`: no
            bank, the keys are the other centres of the batch ("w/o MB" of Table 3).
        centers: `"weighted"`, `"hard"` or `"average"`, see `region_centers` (Table 2).
        capacity: int, stored centres of each class, or a list with a number for each class: see
            `MemoryBank`. The paper: the number of training images.
        temperature: float > 0.
        reduction: `"sum"`: over the classes of an image, and the mean over the images; the public
            code adds up classes, too. `"mean"`: over the centres of the global batch, as many times
            smaller as an image has classes.
        storage: `"float32"` or `"bfloat16"`, the dtype of the bank.
        cross_replica: bool. With `scope="batch"`, whether the keys are those of the global batch or
            of the replica's own; the bank is always filled by all replicas.

    Call arguments:
        outputs: dict with `features`, float `(batch, h, w, dim)`, and `logits`
            `(batch, any, any, num_classes)`; static shapes.
        labels: int tensor `(batch, height, width)`.

    Returns:
        dict with the float32 scalar `centers`.

    Raises:
        ValueError: if `scope`, `centers` or `reduction` is unknown; in a call, if `prepare` has not
            made the bank or an output is missing.
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
        """Makes the bank, whose width is that of the features."""
        dim = output(outputs, "features", self).shape[-1]
        if self.scope == "dataset":
            self._make_bank(self.num_classes, self.capacity, dim, storage=self.storage)

    def contrast(self, outputs, labels):
        """Computes the term, and gives the batch's centres and their labels."""
        features, logits = (output(outputs, name, self) for name in ("features", "logits"))
        centers, center_labels = region_centers(features, logits, labels, mode=self.centers)
        # Most rows are empty, an image holds few classes: they go last, where they cost nothing.
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
            block_size=tile_sizes(centers.shape[0], *keys.shape, on_cpu=_TILES_ON_CPU),
            **arguments,
        )
        if self.reduction == "sum":
            images = features.shape[0] * replicas.num_replicas()
            term = ops.sum(loss) / images
        else:
            # The bank is one for all replicas, and so is the mean over the anchors that it serves.
            cross_replica = self.cross_replica or self.scope == "dataset"
            term = global_mean(loss, valid, cross_replica=cross_replica)
        return {"centers": term}, (centers, center_labels)

    def remember(self, found):
        """Stores centres in the bank, those of all replicas in the replicas' order."""
        if self.scope == "dataset":
            self._prepared_bank().write(*(replicas.all_gather(ops.stop_gradient(x)) for x in found))

    def get_config(self):
        """The constructor's arguments."""
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
