"""The training step on TensorFlow: a Keras model around segmenter, losses and objectives."""

import keras
import tensorflow as tf

from kseg.backend import replicas
from kseg.training import ema
from kseg.training.accumulation import accumulated_gradients
from kseg.training.build import default_losses
from kseg.training.distribution import make_reproducible
from kseg.training.gradients import with_gradients
from kseg.training.optimizers import FusedUpdates


@keras.saving.register_keras_serializable(package="kseg")
class SegmentationTrainer(keras.Model):
    """A segmenter with its losses and contrastive objectives.

    Call `compile(optimizer)` with an optimizer of `kseg.training.optimizers` or of Keras; then
    `train_step` can run in a custom loop (`kseg.training.loop`) or in `fit`.

    Args:
        segmenter: model from `kseg.segmenters.build_segmenter`, or any Keras model from images to
            a dict with `logits` and the outputs that the objectives need.
        losses: dict from a name to `(loss, weight)`: a function of (labels, outputs) to this
            replica's share, a float32 scalar, and a float; losses of weight 0 are skipped. None:
            cross-entropy, and that of `aux_logits` with weight 0.4 if the segmenter has them.
        objectives: list of `(objective, weight)`, of `kseg.contrast.objective.Objective`. A weight
            may be a function of the optimizer's step.
        clip_norm: float or None, the limit of the gradients' global norm.
        distortion: `kseg.layers.photometric.PhotometricDistortion` or None, applied first to
            training images; batches must then have `draws`.
        averaged: model of the segmenter's architecture or None: after each step it holds the
            average of the segmenter's weights over time, see `kseg.training.ema`. Moving
            statistics of batch norms are averaged like all weights, so that they match them. Its
            initial values have no effect.
        ema_decay: float in [0, 1), decay of the average.
        accumulate: int > 0, number of equal parts of a batch that go through the network one after
            the other, see `kseg.training.accumulation`; 1: all at once.

    Raises:
        ValueError: if `averaged` does not have the segmenter's weights, two objectives share a
            name, a loss has the name of an objective, there is no term at all, or an objective
            does not fit the segmenter.
    """

    def __init__(
        self,
        segmenter,
        *,
        losses=None,
        objectives=(),
        clip_norm=None,
        distortion=None,
        averaged=None,
        ema_decay=0.999,
        accumulate=1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.segmenter = segmenter
        self.averaged = averaged
        self.ema_decay = ema_decay
        self.accumulate = accumulate
        self.objectives = [objective for objective, _ in objectives]
        self.objective_weights = [weight for _, weight in objectives]
        self.losses_on_logits = default_losses(segmenter) if losses is None else losses
        self.clip_norm = clip_norm
        self.distortion = distortion
        _check_names(self.losses_on_logits, self.objectives)
        for objective in self.objectives:
            _check_classes(objective, segmenter)
            objective.prepare(segmenter.output)
        if averaged is not None:
            _check_weights(averaged, segmenter)
        self.built = True

    def compile(self, optimizer="rmsprop", **arguments):
        """As in Keras, but refuses arguments that would have no effect.

        Args:
            optimizer: as in Keras.
            **arguments: as in Keras.

        Raises:
            ValueError: if a loss or a metric is given: the trainer has its own.
        """
        unused = ("loss", "loss_weights", "metrics", "weighted_metrics")
        given = [name for name in unused if arguments.get(name)]
        if given:
            raise ValueError(
                "The losses of a SegmentationTrainer are arguments of its constructor, `losses` "
                f"and `objectives`, and it has no metrics. Received: {given} in compile. "
                "Evaluate with kseg.evaluation.evaluator.Evaluator"
            )
        super().compile(optimizer=optimizer, **arguments)

    def test_step(self, data):
        """Raises ValueError: Keras' evaluation would not say which weights it evaluates."""
        raise ValueError(
            "A SegmentationTrainer is not evaluated by Keras. Received: a call of evaluate, or "
            "validation data in fit. Use kseg.evaluation.evaluator.Evaluator(inference_model(...))"
        )

    @property
    def evaluated(self):
        """The model to evaluate and export, with averaged weights if there are any."""
        return self.segmenter if self.averaged is None else self.averaged

    def call(self, images, training=None):
        """The segmenter's outputs."""
        return self.segmenter(images, training=training)

    def loss_terms(self, outputs, labels):
        """Computes every term and its weight.

        Args:
            outputs: dict of the segmenter's outputs.
            labels: int tensor `(batch, height, width)`, 255 = ignored.

        Returns:
            `(terms, bank_entries)`: dict from the term's name to `(value, weight)`: float32 scalar,
            this replica's share of the term, and its current weight; and for each objective the
            argument of its `remember`.
        """
        terms = {
            name: (loss(labels, outputs), weight)
            for name, (loss, weight) in self.losses_on_logits.items()
            if weight
        }
        bank_entries = []
        for objective, weight in zip(self.objectives, self.objective_weights, strict=True):
            values, entries = objective.contrast(outputs, labels)
            bank_entries.append(entries)
            weight = weight(self.optimizer.iterations) if callable(weight) else weight
            for name, value in values.items():
                terms[f"{objective.name}/{name}"] = (value, weight)
        return terms, bank_entries

    def term_weights(self, step):
        """The weights of the terms.

        Args:
            step: int, number of steps done before.

        Returns:
            dict from the name of a loss or objective to float; all terms of an objective share its
            weight.
        """
        weights = {name: weight for name, (_, weight) in self.losses_on_logits.items()}
        for objective, weight in zip(self.objectives, self.objective_weights, strict=True):
            weights[objective.name] = float(weight(step)) if callable(weight) else weight
        return weights

    def train_step(self, data):
        """One optimizer step, in replica context.

        Args:
            data: dict with `image`, uint8 `(batch, height, width, 3)`, `label`, int `(batch,
                height, width)`, and for a distortion `draws`, float32 `(batch, draws)`, uniform
                in [0, 1): this replica's part of the batch.

        Returns:
            dict of float32 scalars, the same on every replica: `loss` (the weighted sum) and each
            term before its weight.

        Raises:
            ValueError: if the batch is not such a dict, there are objectives and its size is not
                static, or there is a distortion and it has no `draws`.
        """
        if not isinstance(data, dict) or not {"image", "label"} <= set(data):
            received = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                'Batches must be dicts {"image", "label"}, without sample weights. Received: '
                f"{received}. Use dataset.map(lambda x, y: {{'image': x, 'label': y}})"
            )
        if self.objectives and data["image"].shape[0] is None:
            raise ValueError(
                "Contrastive objectives need batches of a static size. Received: images of shape "
                f"{data['image'].shape}. Use dataset.batch(size, drop_remainder=True)"
            )
        images = data["image"]
        if self.distortion is not None:
            if "draws" not in data:
                raise ValueError(
                    "A distortion needs batches with `draws`, random numbers of its `NUM_DRAWS`. "
                    f"Received: {sorted(data)}. Give `training_dataset` num_draws"
                )
            images = self.distortion(images, data["draws"])

        def scaled_loss(outputs):
            terms, bank_entries = self.loss_terms(outputs, data["label"])
            loss = sum(value * weight for value, weight in terms.values())
            # Scaled up under mixed_float16, else unchanged.
            return self.optimizer.scale_loss(loss), loss, terms, bank_entries

        variables = self.segmenter.trainable_variables
        values = [variable.value for variable in variables]
        if self.accumulate > 1:
            found, gradients = accumulated_gradients(
                self.segmenter, images, scaled_loss, values, self.accumulate
            )
        else:
            found, gradients = with_gradients(
                lambda: scaled_loss(self.segmenter(images, training=True)), values
            )
        _, loss, terms, bank_entries = found
        reached = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        gradients, variables = ([pair[i] for pair in reached] for i in (0, 1))
        if (count := replicas.num_replicas()) > 1:
            # Each replica's terms are its share of the global batch: gradients are summed.
            gradients = replicas.all_reduce_sum(gradients)
            inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
            if not isinstance(inner, FusedUpdates):  # Keras' own add them up once more.
                gradients = [gradient / count for gradient in gradients]
        if self.clip_norm:
            # The optimizer divides the scale out again: the limit applies to true gradients.
            limit = self.optimizer.scale_loss(self.clip_norm)
            gradients, _ = tf.clip_by_global_norm(gradients, limit)
        self.optimizer.apply(gradients, variables)
        if self.averaged is not None:
            self._average()
        for objective, entries in zip(self.objectives, bank_entries, strict=True):
            objective.remember(entries)
        values = replicas.all_reduce_sum(tf.stack([loss, *(value for value, _ in terms.values())]))
        return dict(zip(["loss", *terms], tf.unstack(values), strict=True))

    def _average(self):
        """Updates the averaged weights, in replica context."""
        pairs = [
            (average.value, weight.value)
            for average, weight in zip(self.averaged.weights, self.segmenter.weights, strict=True)
        ]
        # Per-replica statistics are averaged on each replica, all other weights jointly.
        own = [
            average.synchronization == tf.VariableSynchronization.ON_READ for average, _ in pairs
        ]

        def update(average, weight, decay):
            value = ema.averaged(average, weight, decay) if weight.dtype.is_floating else weight
            average.assign(value)

        def update_shared(strategy):
            decay = ema.decay_at(self.optimizer.iterations.value, self.ema_decay)
            for (average, weight), alone in zip(pairs, own, strict=True):
                if not alone:
                    strategy.extended.update(average, update, args=(weight, decay), group=False)

        tf.distribute.get_replica_context().merge_call(update_shared)
        decay = ema.decay_at(self.optimizer.iterations.value, self.ema_decay)
        for (average, weight), alone in zip(pairs, own, strict=True):
            if alone:
                update(average, weight, decay)


def build_step(trainer, strategy, *, jit_compile=False):
    """Compiles the training step.

    Args:
        trainer: `SegmentationTrainer`.
        strategy: `tf.distribute.Strategy`.
        jit_compile: bool, use XLA; for a single replica only.

    Returns:
        function from a batch (of the strategy's distributed dataset) to a dict of float32 scalars.
    """
    make_reproducible()
    train_step = trainer.train_step
    if jit_compile:
        train_step = tf.function(train_step, jit_compile=True, autograph=False)

    @tf.function(autograph=False)  # Not needed, and tracing is twice as fast without it.
    def step(batch):
        if strategy.num_replicas_in_sync == 1:
            return train_step(batch)
        logs = strategy.run(train_step, args=(batch,))
        return {name: strategy.experimental_local_results(v)[0] for name, v in logs.items()}

    return step


def _check_names(losses, objectives):
    """Refuses terms that would overwrite one another in the sum, and an empty sum."""
    names = [objective.name for objective in objectives]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"Each objective needs a unique name, the prefix of its terms. Received: {names}. "
                f'Give them names: {type(objectives[names.index(name)]).__name__}(..., name="...")'
            )
    for name in losses:
        if name == "loss" or name.split("/")[0] in names:
            raise ValueError(
                "A loss must not be called 'loss', which is the sum of all terms, nor as an "
                f"objective. Received: {name!r} beside the objectives {names}"
            )
    if not objectives and not any(weight for _, weight in losses.values()):
        raise ValueError(
            "There is nothing to minimize: no objective, and no loss with a weight above 0. "
            f"Received: {losses=}"
        )


def _check_weights(averaged, segmenter):
    """Refuses a model for the averages whose weights are not those of the segmenter."""
    ours, theirs = ([(w.path, tuple(w.shape)) for w in m.weights] for m in (averaged, segmenter))
    if ours != theirs:
        odd = next((a for a, b in zip(ours, theirs, strict=False) if a != b), "fewer or more")
        raise ValueError(
            f"`averaged` must have the weights of the segmenter, in its order. Received: {odd}"
        )


def _check_classes(objective, segmenter):
    """Refuses an objective whose number of classes is not the segmenter's."""
    received = getattr(objective, "num_classes", None)
    num_classes = segmenter.output["logits"].shape[-1]
    if received not in (None, num_classes):
        raise ValueError(
            f"{objective.name!r} must have as many classes as the segmenter, {num_classes}. "
            f"Received: num_classes={received}"
        )
