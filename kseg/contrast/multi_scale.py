"""The objective of multi-scale and cross-scale contrast (MS/CS; Pissas et al., ECCV 2022)."""

import keras
from keras import ops

from kseg.backend import replicas
from kseg.contrast.embeddings import embeddings_of
from kseg.contrast.global_batch import mean_info_nce
from kseg.contrast.objective import Objective, check_projection
from kseg.contrast.sampling import balanced_anchors
from kseg.contrast.tiles import tile_sizes
from kseg.layers import resize_labels

SCALE_WEIGHTS = {"c2": 1.0, "c3": 0.7, "c4": 0.4, "c5": 0.1}
CROSS_SCALE_PAIRS = (("c2", "c5"), ("c2", "c4"))


@keras.saving.register_keras_serializable(package="kseg")
class MultiScaleContrast(Objective):
    """Contrasts balanced anchors within each scale and across pairs of scales.

    `same_scale = sum_s w_s L(A_s, A_s)` (Eq. 3) and
    `cross_scale = cross_scale_weight * sum_(s, s') L(A_s, A_s')` (Eq. 4), where L is the mean of
    `info_nce` over the anchors that have a positive (the public code includes the others in the
    cross-scale mean), and gradients flow into both sets of a pair. The anchor sets are drawn
    independently for each scale by `balanced_anchors` (Sec. 3.3).

    Args:
        num_classes: int.
        scale_weights: dict from stage to w_s; anchors are drawn at these stages.
        cross_scale_pairs: pairs (stage of the anchors, stage of the keys), each in
            `scale_weights`.
        cross_scale_weight: float, weight of the cross-scale term relative to the same-scale one.
        temperature: float > 0.
        max_anchors: int, A_max for each scale of the global batch.
        min_count: int, the number of pixels that a class needs at a scale to be sampled.
        cross_replica: bool. If True, anchors come from the global batch under a strategy, and the
            result is that of one device with the whole batch; if False, each replica contrasts its
            own batch with itself, and the result is the mean over replicas.
        projection: `"map"`: batch norms of the projectors see the whole map of each stage;
            `"drawn"`: in a training step they see the anchors alone. Layers after the last batch
            norm are computed for the anchors alone either way.
        seed: int, for the sampling.

    Call arguments:
        outputs: dict with `embedding_<stage>`, float `(batch, h, w, dim)`, unit L2 norm, for
            each sampled stage; static shapes.
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored.
        training: bool; the loss is the same either way.

    Returns:
        dict of float32 scalars, `same_scale` and (if there are pairs) `cross_scale`: this
        replica's share; the sum over replicas is the loss.

    Raises:
        ValueError: if a stage of a pair has no scale weight, a pair is one stage twice, all weights
            are 0, `max_anchors` is below 2, or `projection` is unknown; in a call, if an output is
            missing.

    Example:
        >>> import keras
        >>> from kseg import MultiScaleContrast
        >>> labels = keras.ops.convert_to_tensor([[[0, 1], [0, 1]]] * 8)
        >>> embedding = keras.utils.normalize(keras.random.normal((8, 2, 2, 16), seed=0), axis=-1)
        >>> objective = MultiScaleContrast(
        ...     num_classes=2, scale_weights={"c2": 1.0}, cross_scale_pairs=[], max_anchors=20
        ... )
        >>> terms = objective({"embedding_c2": embedding}, labels)
        >>> sorted(terms), float(terms["same_scale"]) > 0
        (['same_scale'], True)
    """

    def __init__(
        self,
        num_classes,
        *,
        scale_weights=SCALE_WEIGHTS,
        cross_scale_pairs=CROSS_SCALE_PAIRS,
        cross_scale_weight=1.0,
        temperature=0.1,
        max_anchors=10_000,
        min_count=5,
        cross_replica=True,
        projection="map",
        seed=0,
        name="multi_scale",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        check_projection(projection)
        for pair in cross_scale_pairs:
            for stage in pair:
                if stage not in scale_weights:
                    raise ValueError(
                        "Every stage of `cross_scale_pairs` needs a key in `scale_weights` (0 is "
                        f"allowed). Received: {pair} and the keys {sorted(scale_weights)}."
                    )
            if len(set(pair)) < 2:
                raise ValueError(
                    "A pair of `cross_scale_pairs` must have two different stages. Received: "
                    f"{tuple(pair)}. To contrast a stage with itself, set its weight in "
                    "`scale_weights`"
                )
        if not any(scale_weights.values()) and not (cross_scale_pairs and cross_scale_weight):
            raise ValueError(
                "At least one of `scale_weights` must be above 0, or `cross_scale_pairs` must not "
                "be empty and `cross_scale_weight` above 0. Received: "
                f"{scale_weights=}, {cross_scale_pairs=}, {cross_scale_weight=}, which contrast "
                "nothing"
            )
        if max_anchors < 2:
            raise ValueError(
                "`max_anchors` must be at least 2: an anchor needs another of its class. Received: "
                f"{max_anchors=}"
            )
        self.num_classes = num_classes
        self.scale_weights = dict(scale_weights)
        self.cross_scale_pairs = tuple(tuple(pair) for pair in cross_scale_pairs)
        self.cross_scale_weight = cross_scale_weight
        self.temperature = temperature
        self.max_anchors = max_anchors
        self.min_count = min_count
        self.cross_replica = cross_replica
        self.projection = projection
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def stages(self):
        """Unique names of the stages whose embeddings are read."""
        paired = [s for pair in self.cross_scale_pairs for s in pair if self.cross_scale_weight]
        return [s for s, weight in self.scale_weights.items() if weight or s in paired]

    @property
    def sampled_stages(self):
        """All of `stages`."""
        return self.stages

    @property
    def drawn_stages(self):
        """All of `stages`, or none."""
        return self.stages if self.projection == "drawn" else []

    def contrast(self, outputs, labels):
        """Computes the terms; see the class docstring."""
        sets = {s: self._anchor_set(embeddings_of(outputs, s, self), labels) for s in self.stages}
        terms = {"same_scale": 0.0}
        for stage, weight in self.scale_weights.items():
            if weight:
                terms["same_scale"] += weight * self._contrast(sets[stage], sets[stage], same=True)
        if self.cross_scale_pairs and self.cross_scale_weight:
            across = sum(self._contrast(sets[s], sets[t]) for s, t in self.cross_scale_pairs)
            terms["cross_scale"] = self.cross_scale_weight * across
        return terms, None

    def _anchor_set(self, embeddings, labels):
        """Draws `(anchors (rows, dim), labels (rows,))`, equal on all replicas that share."""
        batch, height, width, _ = embeddings.shape
        labels = ops.reshape(resize_labels(labels, height, width), (batch, height * width))
        if self.cross_replica:
            labels = replicas.all_gather(labels)
        positions, anchor_labels = balanced_anchors(
            labels,
            self.num_classes,
            max_anchors=self.max_anchors,
            min_count=self.min_count,
            seed=self.seed_generator,
        )
        return embeddings.take(positions, cross_replica=self.cross_replica), anchor_labels

    def _contrast(self, anchor_set, key_set, same=False):
        """Computes this replica's share of the mean of `info_nce` over the valid anchors."""
        return mean_info_nce(
            *anchor_set,
            *key_set,
            temperature=self.temperature,
            exclude_self=same,
            cross_replica=self.cross_replica,
            # A rare class leaves most of `max_anchors` unused; smaller tiles waste less on them.
            block_size=tile_sizes(*anchor_set[0].shape[:1], *key_set[0].shape, on_cpu=512),
        )

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "scale_weights": self.scale_weights,
            "cross_scale_pairs": self.cross_scale_pairs,
            "cross_scale_weight": self.cross_scale_weight,
            "temperature": self.temperature,
            "max_anchors": self.max_anchors,
            "min_count": self.min_count,
            "cross_replica": self.cross_replica,
            "projection": self.projection,
            "seed": self.seed,
        }
