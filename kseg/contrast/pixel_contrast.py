"""Cross-image pixel contrast (Wang et al., ICCV 2021)."""

import keras
from keras import ops

from kseg.backend import replicas
from kseg.contrast.global_batch import mean_info_nce, take_rows
from kseg.contrast.objective import Objective, output
from kseg.contrast.regions import region_centers
from kseg.contrast.sampling import hard_anchors, pixels_of_each_image
from kseg.contrast.tiles import tile_sizes
from kseg.layers import resize, resize_labels

# Pixels that a step may remember: a bank takes them all at once.
_MAX_REMEMBERED = 8192

MEMORIES = ("none", "pixel", "region", "both")


@keras.saving.register_keras_serializable(package="kseg")
class PixelContrast(Objective):
    """Contrasts hard pixels with each other, or with remembered pixels and regions.

    The anchors are drawn by `hard_anchors`. Without memory they are each other's keys. With memory
    the keys are, as in the public code, those of the memory alone: for each class a ring of pixels,
    a few of each image, and a ring of regions, the mean embedding of the class in each image. A
    step draws `max_keys` of them by chance, as the paper draws some for each anchor. The term is
    the mean of `info_nce` over the anchors that have a positive, times
    `temperature / base_temperature`.

    Source: Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", ICCV
    2021, Eq. 3 and Sec. 3.2. Its public code stores pixels of the wrong class, moves the cursor by
    one for many entries, leaves out class 0, masks bank keys as if they were anchors, counts random
    rows as entries, and fails where no class is present; here none of this is so. The semi-hard
    choice of keys, which that code lacks, is not made here either.

    Args:
        num_classes: int.
        stage: the map that is contrasted.
        memory: `"none"`, `"pixel"`, `"region"` or `"both"`.
        pixel_capacity: int, remembered pixels of each class.
        region_capacity: int, remembered regions of each class.
        pixels_per_image: int, pixels of each class and image that are remembered in a step.
        max_keys: int, remembered rows that a step draws as keys; None: all are keys.
        max_anchors: int, of the global batch.
        max_views: int, anchors of a class in an image.
        min_count: int, pixels that a class needs in an image to give anchors.
        temperature: float > 0.
        base_temperature: float > 0.
        cross_replica: bool. Under a strategy the anchors come from the global batch; else from each
            replica's own, and the mean over replicas is taken. The memory is always filled by all.
        seed: int, of the sampling.

    Call arguments:
        outputs: dict with `logits`, float `(batch, any, any, num_classes)`, and
            `embedding_<stage>`, float `(batch, h, w, dim)`, unit L2 norm; static shapes.
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored.

    Returns:
        dict with the float32 scalar `pixels`.

    Raises:
        ValueError: if `memory` is unknown, or, in a call, `prepare` has not made the memory or an
            output is missing.
    """

    def __init__(
        self,
        num_classes,
        *,
        stage="features",
        memory="none",
        pixel_capacity=1000,
        region_capacity=1000,
        pixels_per_image=10,
        max_keys=4096,
        max_anchors=1024,
        max_views=100,
        min_count=5,
        temperature=0.1,
        base_temperature=0.07,
        cross_replica=True,
        seed=0,
        name="pixel_contrast",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if memory not in MEMORIES:
            raise ValueError(f"`memory` must be one of {MEMORIES}. Received: {memory=}")
        self.num_classes = num_classes
        self.stage = stage
        self.memory = memory
        self.pixel_capacity = pixel_capacity
        self.region_capacity = region_capacity
        self.pixels_per_image = pixels_per_image
        self.max_keys = max_keys
        self.max_anchors = max_anchors
        self.max_views = max_views
        self.min_count = min_count
        self.temperature = temperature
        self.base_temperature = base_temperature
        self.cross_replica = cross_replica
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        # One bank holds all: a class has as many rings as there are kinds, one after the other.
        capacities = {"pixel": pixel_capacity, "region": region_capacity}
        self._rings = [kind for kind in capacities if memory in (kind, "both")]
        self._capacities = [capacities[kind] for kind in self._rings] * num_classes

    @property
    def stages(self):
        """The one map that is read."""
        return [self.stage]

    def prepare(self, outputs):
        """Makes the bank, whose width is that of the embeddings."""
        dim = output(outputs, f"embedding_{self.stage}", self).shape[-1]
        if self._rings:
            self._make_bank(len(self._capacities), self._capacities, dim)

    def contrast(self, outputs, labels):
        """Computes the term, and gives the rows to be remembered and their rings."""
        bank = self._prepared_bank() if self._rings else None
        embeddings = output(outputs, f"embedding_{self.stage}", self)
        batch, height, width, dim = embeddings.shape
        labels = resize_labels(labels, height, width)
        logits = ops.stop_gradient(output(outputs, "logits", self))
        logits = resize(logits, (height, width))
        predictions = ops.cast(ops.argmax(logits, axis=-1), "int32")
        pixels = ops.cast(ops.reshape(embeddings, (batch * height * width, dim)), "float32")
        places = ops.reshape(ops.stack([labels, predictions], axis=-1), (batch, -1, 2))
        everywhere = replicas.all_gather(places)

        known = everywhere if self.cross_replica else places
        positions, anchor_labels = hard_anchors(
            known[..., 0],
            known[..., 1],
            self.num_classes,
            max_anchors=self.max_anchors,
            max_views=self.max_views,
            min_count=self.min_count,
            seed=self.seed_generator,
        )
        anchors = take_rows(pixels, positions, cross_replica=self.cross_replica)
        if bank is None:
            keys, key_labels = anchors, anchor_labels
        else:
            keys, rings = self._keys(bank)
            key_labels = ops.where(rings >= 0, rings // len(self._rings), -1)
        mean = mean_info_nce(
            *(anchors, anchor_labels, keys, key_labels),
            temperature=self.temperature,
            exclude_self=bank is None,
            detach_keys=bank is not None,
            cross_replica=self.cross_replica,
            # A tile of few classes' anchors is negatives only against most keys.
            block_size=tile_sizes(anchors.shape[0], *keys.shape, on_cpu=(256, 1024)),
        )
        found = []
        if "pixel" in self._rings:
            found.append(self._pixels(ops.stop_gradient(pixels), everywhere[..., 0]))
        if "region" in self._rings:
            regions = ops.stop_gradient(embeddings), logits, labels
            found.append(region_centers(*regions, mode="hard"))
        return {"pixels": mean * (self.temperature / self.base_temperature)}, found

    def _keys(self, bank):
        """Remembered rows, and their rings: all of them, or a sample if they are too many."""
        if self.max_keys is None or sum(self._capacities) <= self.max_keys:
            return bank.keys()
        return bank.sample(self.max_keys, seed=self.seed_generator)

    def _pixels(self, pixels, labels):
        """Pixels of the global batch to be remembered, and their classes; -1 for unused rows."""
        positions, classes = pixels_of_each_image(
            labels,
            self.num_classes,
            count=self.pixels_per_image,
            max_rows=_MAX_REMEMBERED,
            seed=self.seed_generator,
        )
        return take_rows(pixels, positions), classes

    def remember(self, found):
        """Stores pixels and regions in the bank, those of all replicas in the replicas' order."""
        for ring, (kind, (rows, classes)) in enumerate(zip(self._rings, found, strict=True)):
            if kind == "region":
                rows, classes = replicas.all_gather(rows), replicas.all_gather(classes)
            rings = ops.where(classes >= 0, classes * len(self._rings) + ring, -1)
            self._prepared_bank().write(rows, rings)

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "stage": self.stage,
            "memory": self.memory,
            "pixel_capacity": self.pixel_capacity,
            "region_capacity": self.region_capacity,
            "pixels_per_image": self.pixels_per_image,
            "max_keys": self.max_keys,
            "max_anchors": self.max_anchors,
            "max_views": self.max_views,
            "min_count": self.min_count,
            "temperature": self.temperature,
            "base_temperature": self.base_temperature,
            "cross_replica": self.cross_replica,
            "seed": self.seed,
        }
