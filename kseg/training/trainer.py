"""The training step on TensorFlow: a Keras model around segmenter, losses and objectives."""

import keras
import tensorflow as tf
from keras import ops

from kseg.backend import replicas
from kseg.layers.resizing import resize
from kseg.losses.labels import without_weightless
from kseg.metrics import MeanIoU
from kseg.runs.checkpoints import random_states
from kseg.training import batches, trainer_checks
from kseg.training.accumulation import accumulated_gradients
from kseg.training.applying import apply_gradients, run_if
from kseg.training.averaging import update_averages
from kseg.training.build import default_losses
from kseg.training.compiled_terms import as_functions, terms_of_compile
from kseg.training.distribution import make_reproducible
from kseg.training.gradients import with_gradients
from kseg.training.graph_passes import FewPasses
from kseg.training.projecting import ObjectiveOutputs
from kseg.training.term_means import TermMeans
from kseg.training.terms import compute_terms
from kseg.training.trainer_data import TrainerData
from kseg.training.trainer_files import TrainerFiles


@keras.saving.register_keras_serializable(package="kseg")
class SegmentationTrainer(TrainerData, TrainerFiles, keras.Model):
    """A segmenter with its losses and contrastive objectives, as a Keras model.

    After `compile(optimizer)`, with an optimizer of `kseg.training.optimizers` or of Keras, it is
    used like any Keras model: `fit`, `evaluate` and `predict` take batches in the forms of
    `kseg.training.batches.unpack`, arrays, and data sets of them. `fit` and `evaluate` report
    `loss`, each term before its weight, and `mean_iou` of the evaluation at the size of the labels;
    `predict` returns logits at the size of the images. `take_step` is the training step for custom
    loops (`kseg.training.loop`).

    Args:
        segmenter: model from `kseg.segmenters.build_segmenter`, or any functional Keras model from
            images to a dict with `logits` and the outputs that the objectives need.
        losses: dict from a name to `(loss, weight)`. A loss is a `keras.losses.Loss` of (labels,
            logits), or a function of (labels, outputs) to this replica's share, a float32 scalar.
            Losses of weight 0 are skipped. None: cross-entropy, and that of `aux_logits` with
            weight 0.4 if the segmenter has them.
        objectives: list of `(objective, weight)`, of `kseg.contrast.objective.Objective`. A weight
            may be a function of the optimizer's step.
        clip_norm: float or None, the limit of the gradients' global norm.
        distortion: `kseg.layers.photometric.PhotometricDistortion` or None, applied first to
            training images; batches must then have `draws`.
        averaged: model of the segmenter's architecture or None: after each step it holds the
            average of the segmenter's weights over time, see `kseg.training.ema`. Moving
            statistics of batch norms are averaged like all weights, so that they match them. Its
            initial values have no effect. `evaluate` and `predict` use it.
        ema_decay: float in [0, 1), decay of the average.
        accumulate: int > 0, number of equal parts of a batch that the network processes one after
            another, see `kseg.training.accumulation`; 1: all at once.

    Raises:
        ValueError: if the segmenter lacks these outputs, `averaged` has other weights, two
            objectives share a name, a loss has the name of an objective, there are no terms, an
            objective or a loss has no weight, or an objective does not fit the segmenter.

    Example:
        >>> import keras, numpy as np
        >>> import kseg
        >>> inputs = keras.Input((32, 32, 3))
        >>> features = keras.layers.Conv2D(8, 3, strides=4, padding="same")(inputs)
        >>> logits = keras.layers.Conv2D(2, 1)(features)
        >>> model = keras.Model(inputs, {"logits": logits, "features": features})
        >>> objectives = [(kseg.RegionContrast(num_classes=2, capacity=10), 0.1)]
        >>> trainer = kseg.SegmentationTrainer(model, objectives=objectives)
        >>> trainer.compile(optimizer=keras.optimizers.SGD(0.01), metrics=[kseg.MeanIoU(2)])
        >>> images = np.zeros((8, 32, 32, 3), "float32")
        >>> labels = np.zeros((8, 32, 32), "int32")
        >>> history = trainer.fit(images, labels, batch_size=4, verbose=0).history
        >>> sorted(history)
        ['cross_entropy', 'loss', 'mean_iou', 'region_contrast/centers']
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
        if type(self).compute_loss is not SegmentationTrainer.compute_loss:
            raise ValueError(
                "A trainer computes its loss, banks and history from `loss_terms`. Received: "
                f"{type(self).__name__} with a `compute_loss` of its own. Override `loss_terms`, "
                "and add a term to its dict"
            )
        # Images must not be rounded to float16 before they are normalized.
        super().__init__(**{"autocast": False, **kwargs})
        trainer_checks.check_segmenter(segmenter)
        trainer_checks.check_pairs_of(losses, objectives)
        self.segmenter = segmenter
        self.averaged = averaged
        self.ema_decay = ema_decay
        self.accumulate = accumulate
        self.objectives = [objective for objective, _ in objectives]
        self.objective_weights = [w if callable(w) else float(w) for _, w in objectives]
        self._given_losses = losses and {k: (loss, float(w)) for k, (loss, w) in losses.items()}
        self.losses_on_logits = self._losses_with({})
        self.clip_norm = clip_norm
        self.distortion = distortion
        trainer_checks.check_names(self.losses_on_logits, self.objectives)
        for objective in self.objectives:
            trainer_checks.check_objective(objective, segmenter)
            objective.prepare(segmenter.output)
            objective.built = True
        self._outputs = ObjectiveOutputs(segmenter, self.objectives)
        self._evaluated_outputs = self._outputs
        if averaged is not None:
            trainer_checks.check_averaged(averaged, segmenter)
            averaged.trainable = False  # Otherwise Keras would pass its weights to the optimizer.
            self._evaluated_outputs = ObjectiveOutputs(averaged, self.objectives)
        self._term_means = TermMeans()
        self._mean_iou = MeanIoU(segmenter.output["logits"].shape[-1])
        self.built = True

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        auto_scale_loss=True,
        **arguments,
    ):
        """Compiles as in Keras, with losses in addition to those of the constructor.

        Args:
            optimizer: as in Keras. If a layer of the segmenter computes in float16, it is wrapped
                in a `LossScaleOptimizer`, unless `auto_scale_loss` is False.
            loss: None, a loss of (labels, logits), or a dict from outputs to losses, see
                `kseg.training.compiled_terms`: further terms, by name. If the constructor got no
                `losses`, it replaces the default cross-entropy, and a dict also replaces the
                auxiliary one.
            loss_weights: weights of `loss`.
            metrics, weighted_metrics: as in Keras, on labels and logits at the size of the labels.
            auto_scale_loss: as in Keras.
            **arguments: as in Keras.

        Raises:
            ValueError: if `loss` has the name of a term of the constructor, or cannot be a term.
        """
        terms = terms_of_compile(loss, loss_weights, self.segmenter.output)
        losses = self._losses_with(terms, replace_all=isinstance(loss, dict))
        trainer_checks.check_names(losses, self.objectives)
        self.losses_on_logits = losses
        optimizer = keras.optimizers.get(optimizer)
        wrapped = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if auto_scale_loss and not wrapped and _computes_in_float16(self.segmenter):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
        super().compile(
            optimizer=optimizer,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            auto_scale_loss=False,
            **arguments,
        )
        self._compiled_loss = loss, loss_weights
        given = keras.tree.flatten([metrics, weighted_metrics])
        self._has_own_mean_iou = any(getattr(m, "name", "") == self._mean_iou.name for m in given)
        if optimizer is not None and not optimizer.built:
            # Built now, so that a checkpoint has all its variables, used or not.
            with self.distribute_strategy.scope():
                optimizer.build(self.segmenter.trainable_variables)

    def _losses_with(self, terms, replace_all=False):
        """Returns the losses of the constructor together with those of `compile`."""
        given = self._given_losses
        if given is None:
            given = default_losses(self.segmenter)
            if terms:
                auxiliary = {k: v for k, v in given.items() if k != "cross_entropy"}
                given = {} if replace_all else auxiliary
        if twice := given.keys() & terms.keys():
            raise ValueError(
                f"The trainer has a loss of that name already. Received: {sorted(twice)} in "
                "compile. Give it another `name`, or leave it out of `losses`"
            )
        return {**as_functions(given), **terms}

    @property
    def evaluated(self):
        """The model to evaluate and export, with averaged weights if there are any."""
        return self.segmenter if self.averaged is None else self.averaged

    def call(self, images, training=None):
        """Returns the segmenter's outputs."""
        if isinstance(images, dict):  # Keras passes a dict for a data set of dicts.
            images = images["image"]
        return self.segmenter(images, training=training)

    def loss_terms(self, outputs, labels, sample_weight=None, *, model=None):
        """Computes every term and its weight.

        Args:
            outputs: dict of the segmenter's outputs.
            labels: int tensor `(batch, height, width)`, 255 = ignored.
            sample_weight: float tensor >= 0 of the shape of the labels, or None. Means over pixels
                (cross-entropy, OHEM, focal) are weighted by it; for every other term a pixel of
                weight 0 is ignored, and all others count equally.
            model: keras model that computed `outputs`, whose regularizers count; None: the
                segmenter.

        Returns:
            `(terms, bank_entries)`: dict from the term's name to `(value, weight)`: float32 scalar,
            this replica's share of the term, and its current weight; and for each objective the
            argument of its `remember`.

        Raises:
            ValueError: if there are sample weights and no term uses them.
        """
        weights = [
            w(self.optimizer.iterations) if callable(w) else w for w in self.objective_weights
        ]
        return compute_terms(
            self.losses_on_logits,
            list(zip(self.objectives, weights, strict=True)),
            outputs,
            labels,
            sample_weight,
            (model or self.segmenter).losses,
        )

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Computes this replica's share of the weighted sum of all terms, float32 scalar."""
        batch = batches.unpack((x, y, sample_weight))
        terms, _ = self.loss_terms(y_pred, batch.labels, batch.weights)
        return sum(value * weight for value, weight in terms.values())

    def term_weights(self, step):
        """Returns the weights of the terms at a step.

        Args:
            step: int, number of completed steps.

        Returns:
            dict from the name of a loss or objective to float; all terms of an objective share its
            weight.
        """
        weights = {name: weight for name, (_, weight) in self.losses_on_logits.items()}
        weights["regularization"] = 1.0
        for objective, weight in zip(self.objectives, self.objective_weights, strict=True):
            weights[objective.name] = float(weight(step)) if callable(weight) else weight
        return weights

    def take_step(self, data):
        """Takes one optimizer step, in replica context.

        Args:
            data: as for `kseg.training.batches.unpack`, this replica's part of a batch: images
                uint8 or float `(batch, height, width, 3)`, and for a distortion `draws`, float32
                `(batch, draws)`, uniform in [0, 1).

        Returns:
            dict of float32 scalars, the same on every replica: `loss` (the weighted sum) and each
            term before its weight.

        Raises:
            ValueError: if the batch has another form, there are objectives and its size is not
                static, there is a distortion and it has no `draws`, the trainer is not compiled, or
                every layer is frozen.
        """
        self._assert_compile_called("take_step")
        return self._take_step(batches.unpack(data))[0]

    def _take_step(self, batch):
        """Takes the step of `take_step`; returns its values and the segmenter's outputs."""
        self._check_static(batch)
        images = self._distorted(batch)

        def scaled_loss(outputs):
            terms, bank_entries = self.loss_terms(outputs, batch.labels, batch.weights)
            loss = sum(value * weight for value, weight in terms.values())
            # Scaled up under mixed_float16, else unchanged.
            return self.optimizer.scale_loss(loss), loss, terms, bank_entries, outputs

        variables = self.segmenter.trainable_variables
        if not variables:
            raise ValueError(
                "There is nothing to train. Received: a segmenter whose layers are all frozen. Set "
                "`trainable` of some of them to True and compile again"
            )
        values = [variable.value for variable in variables]
        if self.accumulate > 1:
            found, gradients = accumulated_gradients(
                self._outputs.trunk,
                images,
                lambda outputs: scaled_loss(self._outputs.of(outputs, training=True)),
                values,
                self.accumulate,
            )
        else:
            found, gradients = with_gradients(
                lambda: scaled_loss(self._outputs(images, training=True)), values
            )
        _, loss, terms, bank_entries, outputs = found
        reached = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        gradients, variables = ([pair[i] for pair in reached] for i in (0, 1))
        # Each replica's terms are its share of the global batch: gradients are summed.
        gradients = replicas.all_reduce_sum(gradients)
        accepted, updated = apply_gradients(
            self.optimizer, gradients, variables, clip_norm=self.clip_norm
        )
        if self.averaged is not None:
            run_if(updated, self._average)
        if self.objectives:
            run_if(accepted, self._remember, bank_entries)
        return _global_values(loss, terms), outputs

    def training_terms(self, data):
        """Computes every term of a training batch without taking a step, in one part.

        Args:
            data: as for `take_step`.

        Returns:
            `(terms, bank_entries)`, as `loss_terms`.

        Raises:
            ValueError: as `take_step`.
        """
        batch = batches.unpack(data)
        self._check_static(batch)
        outputs = self._outputs(self._distorted(batch), training=True)
        return self.loss_terms(outputs, batch.labels, batch.weights)

    def _distorted(self, batch):
        if self.distortion is None:
            return batch.images
        if batch.draws is None:
            raise ValueError(
                "A distortion needs batches with `draws`, random numbers of its `NUM_DRAWS`. "
                "Received: none. Give `training_dataset` num_draws"
            )
        return self.distortion(batch.images, batch.draws)

    def _check_static(self, batch):
        if self.objectives and None in batch.images.shape:
            raise ValueError(
                "Contrastive objectives need batches of a static size. Received: images of shape "
                f"{tuple(batch.images.shape)}. Use a tf.data.Dataset with images of one size and "
                "dataset.batch(size, drop_remainder=True)"
            )

    def _average(self):
        def step():
            return tf.convert_to_tensor(self.optimizer.iterations)

        update_averages(self.averaged, self.segmenter, step, self.ema_decay)

    def _remember(self, bank_entries):
        for objective, entries in zip(self.objectives, bank_entries, strict=True):
            objective.remember(entries)

    def train_step(self, data):
        """Takes one step of `fit`.

        Args:
            data: as for `take_step`.

        Returns:
            dict of float32 scalars: the means of `loss` and of all terms over the epoch so far, and
            the compiled metrics.
        """
        batch = batches.with_size(batches.unpack(data), self._replica_sizes["fit"])
        values, outputs = self._take_step(batch)
        return self._logs(batch, values, outputs)

    def test_step(self, data):
        """Takes one step of `evaluate` with the evaluated weights; memory banks do not change.

        Args:
            data: as for `kseg.training.batches.unpack`.

        Returns:
            dict of float32 scalars, as `train_step`, and `mean_iou`.
        """
        batch, size = batches.unpack(data), self._replica_sizes["evaluate"]
        if size and batch.images.shape[0] is None:
            batch = batches.padded_to(batch, size)
        self._check_static(batch)
        outputs = self._evaluated_outputs(batch.images, training=False)
        generators = [v for objective in self.objectives for v in random_states(objective)]
        before = [ops.copy(generator) for generator in generators]
        terms, _ = self.loss_terms(outputs, batch.labels, batch.weights, model=self.evaluated)
        for generator, state in zip(generators, before, strict=True):
            generator.assign(state)  # An evaluation does not change what is sampled in training.
        loss = sum(value * weight for value, weight in terms.values())
        if not self._has_own_mean_iou:
            labels = without_weightless(batch.labels, batch.weights)
            self._mean_iou.update_state(labels, outputs["logits"])
        logs = self._logs(batch, _global_values(loss, terms), outputs)
        return {**logs, **self._mean_iou_result()}

    def predict_step(self, data):
        """Computes the logits of a batch at the size of its images, float32."""
        images = batches.unpack(data, need_labels=False).images
        return _resized(self.evaluated(images, training=False)["logits"], images)

    def _logs(self, batch, values, outputs):
        """Updates the means and compiled metrics with a step, and returns all of them."""
        # Weighted by labeled pixels, in units of images: exact means over unequal batches.
        valid = (batch.labels >= 0) & (batch.labels < self._mean_iou.num_classes)
        pixels = tf.cast(valid, "float32") * (1.0 if batch.weights is None else batch.weights)
        count = replicas.all_reduce_sum(tf.reduce_sum(pixels))
        weight = count / tf.cast(tf.maximum(tf.size(batch.labels[0]), 1), "float32")
        terms = dict(values)
        self._loss_tracker.update_state(terms.pop("loss"), sample_weight=weight)
        self._term_means.update_state(terms, weight)
        return self.compute_metrics(batch.images, batch.labels, outputs, batch.weights)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the compiled metrics with logits at the size of the labels, and returns all."""
        if isinstance(y_pred, dict):
            batch = batches.unpack((x, y, sample_weight))
            y, sample_weight = batch.labels, batch.weights
            if self._compile_metrics is not None:
                y_pred = _resized(y_pred["logits"], y)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self):
        """Returns the means and metrics so far; `mean_iou` only during an evaluation."""
        results = super().get_metrics_result()
        if not self._has_own_mean_iou:
            del results[self._mean_iou.name]
        return {**results, **(self._mean_iou_result() if self._shows_mean_iou else {})}

    def _mean_iou_result(self):
        if self._has_own_mean_iou:
            return {}
        return {self._mean_iou.name: self._mean_iou.result()}

    @property
    def metrics(self):
        """Metrics that are reset with every epoch and evaluation."""
        found = super().metrics
        own = getattr(self, "_has_own_mean_iou", False)
        return [metric for metric in found if not (own and metric is self._mean_iou)]


def _computes_in_float16(segmenter):
    layers = segmenter._flatten_layers(include_self=False)
    return any(layer.compute_dtype == "float16" for layer in layers)


def _global_values(loss, terms):
    """Sums `loss` and the values of all terms over the replicas' shares."""
    values = replicas.all_reduce_sum(tf.stack([loss, *(value for value, _ in terms.values())]))
    return dict(zip(["loss", *terms], tf.unstack(values), strict=True))


def _resized(logits, like):
    """Resizes logits to the height and width of a tensor, as float32."""
    size = [like.shape[axis] or ops.shape(like)[axis] for axis in (1, 2)]
    return resize(ops.cast(logits, "float32"), size)


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
    train_step = trainer.take_step
    several = strategy.num_replicas_in_sync > 1
    if jit_compile:
        train_step = tf.function(train_step, jit_compile=True, autograph=False)

    @tf.function(autograph=False)  # Tracing is twice as fast without AutoGraph.
    def step(batch):
        if not several:
            return train_step(batch)
        logs = strategy.run(train_step, args=(batch,))
        return {name: strategy.experimental_local_results(v)[0] for name, v in logs.items()}

    return step if tf.config.list_logical_devices("GPU") else FewPasses(step)
