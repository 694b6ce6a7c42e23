"""The objective of cross-image pixel contrast (Wang et al., ICCV 2021)."""

import keras
from keras import ops

from kseg.backend import replicas
from kseg.contrast.embeddings import Embeddings, embeddings_of
from kseg.contrast.global_batch import mean_info_nce
from kseg.contrast.objective import Objective, check_projection, output
from kseg.contrast.regions import region_centers
from kseg.contrast.sampling import hard_anchors, pixels_of_each_image
from kseg.contrast.tiles import tile_sizes
from kseg.layers import resize, resize_labels

# The largest number of pixels stored in a step: the bank writes them all at once.
_MAX_REMEMBERED = 8192

MEMORIES = ("none", "pixel", "region", "both")


@keras.saving.register_keras_serializable(package="kseg")
class PixelContrast(Objective):
    """Contrasts hard pixels with each other, or with stored pixels and regions.

    The anchors are drawn by `hard_anchors`. Without memory the anchors are also the keys. With
    memory the keys come, as in the public code, from the memory alone: for each class a ring of
    pixels, a few of each image, and a ring of regions, the mean embedding of the class in each
    image. Each step draws `max_keys` of them at random, where the paper draws keys for each anchor.
    The term is the mean of `info_nce` over the anchors that have a positive, times
    `temperature / base_temperature`.

    Source: Wang et al., "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", ICCV
    2021, Eq. 3 and Sec. 3.2. Its public code stores pixels of the wrong class, advances the cursor
    by one for many entries, omits class 0, masks bank keys as if they were anchors, treats random
    rows as entries, and fails if no class is present; this class avoids these faults. As in that
    code, there is no semi-hard selection of keys.

    Args:
        num_classes: int.
        stage: str, the map to contrast.
        memory: `"none"`, `"pixel"`, `"region"` or `"both"`.
        pixel_capacity: int, stored pixels of each class.
        region_capacity: int, stored regions of each class.
        pixels_per_image: int, pixels of each class and image to store in a step.
        max_keys: int, stored rows that a step draws as keys; None: all of them.
        max_anchors: int, anchors of the global batch.
        max_views: int, anchors of a class in an image.
        min_count: int, the number of pixels that a class needs in an image to yield anchors.
        temperature: float > 0.
        base_temperature: float > 0.
        cross_replica: bool. If True, the anchors come from the global batch under a strategy; if
            False, from each replica's own batch, and the result is the mean over replicas. The
            memory always receives the rows of all replicas.
        projection: `"map"`: batch norms of the projector see the whole map; `"drawn"`: in a
            training step they see the anchors alone, and what a memory stores is projected by the
            moving statistics. Layers after the last batch norm are computed for the anchors and
            the stored pixels alone either way, and for regions, without gradients, for the map.
        seed: int, for the sampling.

    Call arguments:
        outputs: dict with `logits`, float `(batch, any, any, num_classes)`, and
            `embedding_<stage>`, float `(batch, h, w, dim)`, unit L2 norm; static shapes.
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored.

    Returns:
        dict with the float32 scalar `pixels`.

    Raises:
        ValueError: if `memory` or `projection` is unknown, or, in a call, `prepare` has not created
            the memory or an output is missing.

    Example:
        >>> import keras
        >>> from kseg import PixelContrast
        >>> labels = keras.ops.convert_to_tensor([[[0, 0, 1, 1], [0, 0, 1, 255]]] * 2)
        >>> logits = keras.random.normal((2, 2, 4, 3), seed=0)
        >>> embedding = keras.utils.normalize(keras.random.normal((2, 2, 4, 8), seed=1), axis=-1)
        >>> objective = PixelContrast(num_classes=3, stage="c2", memory="none", min_count=1)
        >>> terms = objective({"logits": logits, "embedding_c2": embedding}, labels)
        >>> float(terms["pixels"]) > 0
        True
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
        projection="map",
        seed=0,
        name="pixel_contrast",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        check_projection(projection)
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
        self.projection = projection
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        # A single bank: each class has one ring for each kind, in consecutive order.
        capacities = {"pixel": pixel_capacity, "region": region_capacity}
        self._rings = [kind for kind in capacities if memory in (kind, "both")]
        self._capacities = [capacities[kind] for kind in self._rings] * num_classes

    @property
    def stages(self):
        """Name of the single map that is read."""
        return [self.stage]

    @property
    def sampled_stages(self):
        """`stages`."""
        return self.stages

    @property
    def drawn_stages(self):
        """`stages`, or none."""
        return self.stages if self.projection == "drawn" else []

    def prepare(self, outputs):
        """Creates the bank with the width of the embeddings."""
        dim = output(outputs, f"embedding_{self.stage}", self).shape[-1]
        if self._rings:
            self._make_bank(len(self._capacities), self._capacities, dim)

    def contrast(self, outputs, labels):
        """Computes the term, and the rows to store with their classes."""
        bank = self._prepared_bank() if self._rings else None
        embeddings = embeddings_of(outputs, self.stage, self)
        batch, height, width, _ = embeddings.shape
        labels = resize_labels(labels, height, width)
        logits = ops.stop_gradient(output(outputs, "logits", self))
        logits = resize(logits, (height, width))
        predictions = ops.cast(ops.argmax(logits, axis=-1), "int32")
        local = ops.reshape(ops.stack([labels, predictions], axis=-1), (batch, -1, 2))
        gathered = replicas.all_gather(local)

        candidates = gathered if self.cross_replica else local
        positions, anchor_labels = hard_anchors(
            candidates[..., 0],
            candidates[..., 1],
            self.num_classes,
            max_anchors=self.max_anchors,
            max_views=self.max_views,
            min_count=self.min_count,
            seed=self.seed_generator,
        )
        anchors = embeddings.take(positions, cross_replica=self.cross_replica)
        anchors = ops.cast(anchors, "float32")
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
            # A tile with anchors of few classes has only negatives among most keys.
            block_size=tile_sizes(anchors.shape[0], *keys.shape, on_cpu=(256, 1024)),
        )
        to_store, stored = [], embeddings.detached()
        if "region" in self._rings:  # Regions need the whole map; pixels are then taken from it.
            stored = Embeddings(stored.projected())
        if "pixel" in self._rings:
            to_store.append(self._pixels(stored, gathered[..., 0]))
        if "region" in self._rings:
            to_store.append(region_centers(stored.projected(), logits, labels, mode="hard"))
        return {"pixels": mean * (self.temperature / self.base_temperature)}, to_store

    def _keys(self, bank):
        """Returns stored rows and their rings: all, or a sample of `max_keys`."""
        if self.max_keys is None or sum(self._capacities) <= self.max_keys:
            return bank.keys()
        return bank.sample(self.max_keys, seed=self.seed_generator)

    def _pixels(self, embeddings, labels):
        """Draws pixels of the global batch to store, with their classes; -1: unused rows."""
        positions, classes = pixels_of_each_image(
            labels,
            self.num_classes,
            count=self.pixels_per_image,
            max_rows=_MAX_REMEMBERED,
            seed=self.seed_generator,
        )
        return ops.cast(embeddings.take(positions), "float32"), classes

    def remember(self, found):
        """Stores the pixels and regions of all replicas in the bank, in order of replica."""
        for ring, (kind, (rows, classes)) in enumerate(zip(self._rings, found, strict=True)):
            if kind == "region":
                rows, classes = replicas.all_gather(rows), replicas.all_gather(classes)
            rings = ops.where(classes >= 0, classes * len(self._rings) + ring, -1)
            self._prepared_bank().write(rows, rings)

    def get_config(self):
        """Returns the constructor's arguments."""
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
            "projection": self.projection,
            "seed": self.seed,
        }
