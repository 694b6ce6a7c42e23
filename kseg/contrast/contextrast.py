"""The objective of Contextrast (Sung et al., CVPR 2024)."""

import keras
from keras import ops

from kseg.backend import replicas
from kseg.contrast.boundary_negatives import (
    MAX_SAMPLES,
    boundary_aware_samples,
    error_regions,
    squared_edge_distance,
)
from kseg.contrast.embeddings import embeddings_of
from kseg.contrast.log_sum_exp import NO_NEGATIVE, log_of_total
from kseg.contrast.objective import Objective, output
from kseg.layers import resize, resize_labels

LAYER_WEIGHTS = {"c2": 0.1, "c3": 0.4, "c4": 0.7, "c5": 1.0}


@keras.saving.register_keras_serializable(package="kseg")
class Contextrast(Objective):
    """Contrasts the representative anchor of each class with pixels of the same layer.

    The representative anchor `a_i` of a class in layer i is the mean of its embeddings over the
    batch. Each layer shares the context of the reference layer, the coarsest one: its anchors are
    `own_weight * a_i + shared_weight * a_reference`, scaled to unit L2 norm (a class without pixels
    in the reference layer keeps its own anchor). The loss of a layer is the mean over the present
    classes of InfoNCE between the anchor and sampled embeddings of the layer (supplement,
    Eq. 4-5): the positives are pixels of the class, the negatives pixels that were predicted as it
    by mistake, nearest to the edge of the error. The term is `sum_i layer_weights[i] * L_i`.
    Gradients flow into pixels and anchors.

    Source: Sung et al., "Contextrast: Contextual Contrastive Learning for Semantic Segmentation",
    CVPR 2024, and its supplement. Arguments whose values it does not specify are marked.

    Args:
        num_classes: int.
        layer_weights: dict from stage to lambda_i (Table 8a); its stages are the layers.
        reference: str, the stage whose anchors are shared: the coarsest (Table 5: or the finest).
        shared_layers: stages whose anchors are combined with the reference anchors (Table 6);
            none if empty, all if None.
        own_weight: float, w_l. Not specified by the source.
        shared_weight: float, w_h. Not specified by the source.
        negatives: `"boundary"`, or `"random"`: random pixels of other classes, regardless of their
            predictions.
        hard_fraction: float in (0, 1], K: the fraction of a class's error pixels, nearest to an
            edge, from which negatives are drawn; 1: all of them. Not specified by the source.
        min_negatives: int, the least number of negatives of each class, within its share of
            `max_samples`; random pixels of other classes make up the difference. Not specified by
            the source.
        max_samples: int, positives per layer and global batch, and as many negatives, divided
            equally among the present classes; if there are more classes than samples, a random
            selection of them takes part. Not specified by the source.
        temperature: float > 0. Not specified by the source.
        cross_replica: bool. If True, anchors, samples and mean are those of the global batch under
            a strategy; if False, those of each replica's own batch, averaged over replicas.
        seed: int, for the sampling.

    Call arguments:
        outputs: dict with `logits`, float `(batch, any, any, num_classes)`, and for each layer
            `embedding_<stage>`, float `(batch, h, w, dim)`, unit L2 norm; static shapes.
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored.

    Returns:
        dict with the float32 scalar `pixel_anchor`.

    Raises:
        ValueError: if `negatives` is unknown, `reference` or one of `shared_layers` is not a layer,
            all `layer_weights` are 0, or a number is outside its range; in a call, if an output is
            missing.

    Example:
        >>> import keras
        >>> from kseg import Contextrast
        >>> labels = keras.ops.convert_to_tensor([[[0, 0, 1, 1], [0, 0, 1, 255]]] * 2)
        >>> logits = keras.random.normal((2, 2, 4, 3), seed=0)
        >>> outputs = {"logits": logits}
        >>> for i, stage in enumerate(("c2", "c5")):
        ...     x = keras.random.normal((2, 2, 4, 8), seed=i)
        ...     outputs[f"embedding_{stage}"] = keras.utils.normalize(x, axis=-1)
        >>> objective = Contextrast(
        ...     num_classes=3, layer_weights={"c2": 0.1, "c5": 1.0}, reference="c5"
        ... )
        >>> terms = objective(outputs, labels)
        >>> float(terms["pixel_anchor"]) > 0
        True
    """

    def __init__(
        self,
        num_classes,
        *,
        layer_weights=LAYER_WEIGHTS,
        reference="c5",
        shared_layers=None,
        own_weight=0.5,
        shared_weight=0.5,
        negatives="boundary",
        hard_fraction=0.5,
        min_negatives=64,
        max_samples=4096,
        temperature=0.1,
        cross_replica=True,
        seed=0,
        name="contextrast",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if negatives not in ("boundary", "random"):
            raise ValueError(f"`negatives` must be 'boundary' or 'random'. Received: {negatives=}")
        for stage in (reference, *(shared_layers or ())):
            if stage not in layer_weights:
                raise ValueError(
                    f"`reference` and `shared_layers` must be keys of `layer_weights`. Received: "
                    f"{stage!r} and the keys {sorted(layer_weights)}"
                )
        if not any(layer_weights.values()):
            raise ValueError(
                f"At least one of `layer_weights` must be above 0. Received: {layer_weights=}, "
                "which contrasts nothing"
            )
        if not 1 <= max_samples <= MAX_SAMPLES:
            raise ValueError(
                f"`max_samples` must be in [1, {MAX_SAMPLES}]. Received: {max_samples=}"
            )
        if temperature <= 0 or not 0 < hard_fraction <= 1 or min_negatives < 0:
            raise ValueError(
                "`temperature` must be positive, `hard_fraction` in (0, 1] and `min_negatives` at "
                f"least 0. Received: {temperature=}, {hard_fraction=}, {min_negatives=}"
            )
        self.num_classes = num_classes
        self.layer_weights = dict(layer_weights)
        self.reference = reference
        self.shared_layers = None if shared_layers is None else tuple(shared_layers)
        self.own_weight = own_weight
        self.shared_weight = shared_weight
        self.negatives = negatives
        self.hard_fraction = hard_fraction
        self.min_negatives = min_negatives
        self.max_samples = max_samples
        self.temperature = temperature
        self.cross_replica = cross_replica
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def stages(self):
        """Names of the layers."""
        return [s for s, weight in self.layer_weights.items() if weight or s == self.reference]

    @property
    def sampled_stages(self):
        """All of `stages`."""
        return self.stages

    def contrast(self, outputs, labels):
        """Computes the term; see the class docstring."""
        embeddings, layer_labels, anchors = {}, {}, {}
        for stage in self.stages:
            embeddings[stage] = embeddings_of(outputs, stage, self)
            _, height, width, _ = embeddings[stage].shape
            layer_labels[stage] = resize_labels(labels, height, width)
            anchors[stage] = self._class_means(embeddings[stage], layer_labels[stage])

        term = 0.0
        for stage, weight in self.layer_weights.items():
            if weight:
                samples = self._samples(layer_labels[stage], output(outputs, "logits", self))
                shared = self._shared_anchors(stage, anchors)
                term += weight * self._layer_loss(shared, embeddings[stage], samples)
        return {"pixel_anchor": term}, None

    def _shared_anchors(self, stage, anchors):
        """Combines the anchors of a layer with those of the reference; `(num_classes, dim)`."""
        own = anchors[stage]
        sharing = self.layer_weights if self.shared_layers is None else self.shared_layers
        if stage == self.reference or stage not in sharing:
            return _unit_norm(own)
        return _unit_norm(self.own_weight * own + self.shared_weight * anchors[self.reference])

    def _class_means(self, embeddings, labels):
        """Averages the embeddings of each class, `(num_classes, dim)`; zeros if it is absent."""
        members = ops.one_hot(ops.reshape(labels, (-1,)), self.num_classes, axis=0, dtype="float32")
        sums = embeddings.weighted_sums(members)
        counts = ops.sum(members, axis=1)
        if self.cross_replica:
            sums, counts = replicas.all_reduce_sum([sums, counts])
        return sums / ops.maximum(counts, 1.0)[:, None]

    def _samples(self, labels, logits):
        """Draws positives and negatives from the global batch, or from the replica's own."""
        _, height, width = labels.shape
        logits = resize(ops.stop_gradient(logits), (height, width))
        regions = error_regions(
            labels, ops.cast(ops.argmax(logits, axis=-1), "int32"), self.num_classes
        )
        columns = ops.stack([labels, regions, squared_edge_distance(regions)], axis=-1)
        columns = ops.reshape(columns, (-1, 3))
        if self.cross_replica:
            columns = replicas.all_gather(columns)
        return boundary_aware_samples(
            *(columns[:, i] for i in range(3)),
            self.num_classes,
            max_samples=self.max_samples,
            min_negatives=self.min_negatives,
            hard_fraction=self.hard_fraction,
            negatives=self.negatives,
            seed=self.seed_generator,
        )

    def _layer_loss(self, anchors, embeddings, samples):
        """Computes this replica's share of the mean of Eq. 5 over the present classes."""
        positions, owners = (ops.concatenate(pair) for pair in zip(*samples, strict=True))
        # Looked up at once: each look-up has a gradient of the size of the map.
        s, local = self._similarities(anchors, embeddings, positions, owners)
        number = samples[0][0].shape[0]  # The negatives come after the positives.
        neg = self._log_sum_exp(s[number:], local[number:], owners[number:])
        s, local, owners = s[:number], local[:number], owners[:number]
        loss = ops.where(local, ops.softplus(ops.take(neg, ops.maximum(owners, 0)) - s), 0.0)
        count = self._per_class(ops.cast(local, "float32"), owners)
        if self.cross_replica:
            count = replicas.all_reduce_sum(count)
        mean = self._per_class(loss, owners) / ops.maximum(count, 1.0)
        mean = ops.sum(mean) / ops.maximum(ops.sum(ops.cast(count > 0, "float32")), 1.0)
        return mean if self.cross_replica else mean / replicas.num_replicas()

    def _similarities(self, anchors, embeddings, positions, owners):
        """Computes the similarity of each sampled pixel to the anchor of its class.

        Returns:
            `(s, local)`, float32 and bool `(rows,)`: similarities divided by the temperature, and
            whether the row is used and its pixel is on this replica.
        """
        batch, height, width, _ = embeddings.shape
        pixels = batch * height * width
        if self.cross_replica:  # All replicas drew the same rows; each handles its own pixels.
            positions = ops.where(positions >= 0, positions - replicas.replica_id() * pixels, -1)
        local = ops.logical_and(positions >= 0, positions < pixels)
        rows = embeddings.take(ops.where(local, positions, 0), cross_replica=False)
        # TensorFlow's gradient of a look-up is sparse; the reshape's is dense, and sums of dense
        # gradients have one order (as the trainer adds them up).
        anchors = ops.take(ops.reshape(anchors, anchors.shape), ops.maximum(owners, 0), axis=0)
        return ops.sum(ops.cast(rows, "float32") * anchors, axis=-1) / self.temperature, local

    def _log_sum_exp(self, s, local, owners):
        """Computes the log-sum-exp of each class's rows, `(num_classes,)`; -1e30 for no rows."""
        s = ops.where(local, s, NO_NEGATIVE)
        owners = ops.maximum(owners, 0)
        peak = ops.segment_max(ops.stop_gradient(s), owners, num_segments=self.num_classes)
        peak = ops.maximum(peak, NO_NEGATIVE)
        if self.cross_replica:
            peak = ops.max(replicas.all_gather(peak[None]), axis=0)
        terms = ops.where(local, ops.exp(s - ops.take(peak, owners)), 0.0)
        total = self._per_class(terms, owners)
        if self.cross_replica:
            total = replicas.all_reduce_sum(total)
        return log_of_total(peak, total)[0]

    def _per_class(self, values, owners):
        """Sums the rows of each class on this replica; unused rows must be 0."""
        return ops.segment_sum(values, ops.maximum(owners, 0), num_segments=self.num_classes)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "layer_weights": self.layer_weights,
            "reference": self.reference,
            "shared_layers": self.shared_layers,
            "own_weight": self.own_weight,
            "shared_weight": self.shared_weight,
            "negatives": self.negatives,
            "hard_fraction": self.hard_fraction,
            "min_negatives": self.min_negatives,
            "max_samples": self.max_samples,
            "temperature": self.temperature,
            "cross_replica": self.cross_replica,
            "seed": self.seed,
        }


def _unit_norm(x):
    """Scales rows to unit L2 norm; zero rows stay zero and receive no gradient."""
    squared = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return ops.where(squared > 0, x * ops.rsqrt(ops.where(squared > 0, squared, 1.0)), 0.0)
