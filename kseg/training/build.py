"""Builders of losses, objectives, distortion, optimizer and trainer from config sections.

They share one file, so that the effect of a config key is easy to find from the schema. TensorFlow
is imported only inside the builders that need it: losses, objectives and updates also work on JAX.
"""

import dataclasses
import inspect

import keras
import numpy as np

from kseg.backend.precision import dtype_policy_scope
from kseg.config import schema
from kseg.contrast.contextrast import Contextrast
from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.objective import Objective
from kseg.contrast.pixel_contrast import PixelContrast
from kseg.contrast.region_contrast import RegionContrast
from kseg.dotted import load_object
from kseg.errors import UserError, as_user_error
from kseg.layers.photometric import PhotometricDistortion
from kseg.losses import OHEM, RMI, Affinity, CrossEntropy, Dice, Focal, Lovasz, OutputLoss
from kseg.losses.class_weights import class_weights
from kseg.training import updates
from kseg.training.freezing import freeze
from kseg.training.learning_rate_factors import learning_rate_factors, parts_of
from kseg.training.schedules import CosineSchedule, PolynomialSchedule, Ramp, WarmRestarts

_OBJECTIVES = {
    "contextrast": Contextrast,
    "multi_scale": MultiScaleContrast,
    "pixel_contrast": PixelContrast,
    "region_contrast": RegionContrast,
}
_LOSSES = {
    "cross_entropy": CrossEntropy,
    "ohem": OHEM,
    "lovasz": Lovasz,
    "dice": Dice,
    "focal": Focal,
    "rmi": RMI,
    "affinity": Affinity,
}
_DRAW = {"contextrast", "multi_scale", "pixel_contrast"}  # Objectives that sample and take a seed.


@as_user_error("The experiment")
def build_trainer(run, strategy):
    """Builds the model, losses, objectives and optimizer of a run under a strategy.

    Args:
        run: `kseg.runs.Run`.
        strategy: `tf.distribute.Strategy`.

    Returns:
        `SegmentationTrainer`, compiled, with a built optimizer.
    """
    from kseg.training.trainer import SegmentationTrainer

    config = run.config
    parts = strategy.num_replicas_in_sync * config.train.accumulate
    if config.data.batch_size % parts:
        raise UserError(
            f"`data.batch_size` must be divisible by `train.accumulate` times the number of "
            f"devices, {parts}. Received: {config.data.batch_size}. Change one of them, or set "
            "train.devices"
        )
    keras.utils.set_random_seed(config.seed)
    with dtype_policy_scope(config.train.precision), strategy.scope():
        objectives = build_objectives(
            config.contrast,
            num_classes=len(run.classes),
            seed=config.seed,
            training_images=run.classes.training_images,
        )

        def build_segmenter():
            segmenter = run.build_segmenter(
                projections=sorted({stage for o, _ in objectives for stage in o.stages}),
                synchronized_batch_norm=(
                    config.train.synchronized_batch_norm and strategy.num_replicas_in_sync > 1
                ),
            )
            freeze(segmenter, config.model.freeze)
            _check_float16(segmenter, config.train.precision)
            return segmenter

        segmenter = build_segmenter()
        averages = {}
        if config.train.ema:
            averages = {"averaged": build_segmenter(), "ema_decay": config.train.ema.decay}
        trainer = SegmentationTrainer(
            segmenter,
            losses=build_losses(
                config.losses,
                segmenter,
                num_classes=len(run.classes),
                training_pixels=run.classes.training_pixels,
            ),
            objectives=objectives,
            clip_norm=config.train.clip_norm,
            distortion=build_distortion(config.data, run.pixel_format),
            accumulate=config.train.accumulate,
            **averages,
        )
        optimizer = build_optimizer(
            config.optimizer,
            config.schedule,
            steps=config.train.steps,
            restarts=config.train.restarts,
            segmenter=segmenter,
        )
        trainer.compile(optimizer=optimizer)
    return trainer


def _check_float16(segmenter, precision):
    """Rejects layers that TensorFlow cannot differentiate in float16 on a CPU."""
    import tensorflow as tf

    if precision != "mixed_float16" or tf.config.list_logical_devices("GPU"):
        return
    for layer in segmenter._flatten_layers():
        if np.max(getattr(layer, "dilation_rate", 1)) > 1:
            raise UserError(
                "On a CPU TensorFlow has no float16 gradients of dilated convolutions. Received: "
                f"`train.precision` 'mixed_float16', and {layer.weights[0].path!r}. Use a GPU, "
                "'mixed_bfloat16' or 'float32'"
            )


def default_losses(segmenter):
    """Cross-entropy, plus auxiliary cross-entropy with weight 0.4 if there are auxiliary logits.

    Args:
        segmenter: keras model to a dict with `logits`.

    Returns:
        dict as `kseg.training.trainer.SegmentationTrainer` takes it.
    """
    losses = {"cross_entropy": (OutputLoss(CrossEntropy()), 1.0)}
    if "aux_logits" in segmenter.output:
        losses["auxiliary"] = (OutputLoss(CrossEntropy(), "aux_logits"), 0.4)
    return losses


def build_losses(losses, segmenter, *, num_classes, training_pixels=None):
    """Builds a config's losses on logits.

    Args:
        losses: `kseg.config.schema.Losses`.
        segmenter: keras model to a dict with `logits`, and `aux_logits` if its head has them.
        num_classes: int.
        training_pixels: ints or None, labeled training pixels of each class, for class weights
            that the config names.

    Returns:
        dict as `kseg.training.trainer.SegmentationTrainer` takes it. The class weights and label
        smoothing of the cross-entropy also apply to the auxiliary one.

    Raises:
        UserError: if a list of class weights has another length, or as in `resolve_class_weights`.
    """
    losses.check_classes(num_classes)

    def settings(name):
        section = getattr(losses, name)
        arguments = section.model_dump(exclude={"weight"})
        if "class_weights" in arguments:
            arguments["class_weights"] = resolve_class_weights(
                section.class_weights,
                num_classes,
                training_pixels,
                key=f"losses.{name}.class_weights",
            )
        return arguments

    built = {}
    for name, build in _LOSSES.items():
        if section := getattr(losses, name):
            built[name] = (OutputLoss(build(**settings(name))), section.weight)
    if losses.auxiliary and "aux_logits" in segmenter.output:
        loss = OutputLoss(CrossEntropy(**settings("cross_entropy")), "aux_logits")
        built["auxiliary"] = (loss, losses.auxiliary.weight)
    return built


def resolve_class_weights(
    weights, num_classes, training_pixels=None, *, key="losses.cross_entropy.class_weights"
):
    """Resolves a config's class weights to numbers.

    Args:
        weights: a name that `kseg.losses.class_weights.class_weights` knows, a list, or None.
        num_classes: int.
        training_pixels: as in `build_losses`.
        key: str, the key of the config, for messages.

    Returns:
        list of `num_classes` floats, or None: all 1.

    Raises:
        UserError: if a name is given and the pixel counts are unknown or all 0.
    """
    if isinstance(weights, str):
        if training_pixels is None or not any(training_pixels):
            raise UserError(
                f"`{key}` by name needs the labeled training pixels of each class, which the "
                f"prepared data record. Received: {weights!r} and no such counts. Give a list of "
                f"{num_classes} numbers, or null"
            )
        return class_weights(weights, training_pixels)
    return weights


def build_objectives(contrast, *, num_classes, seed, training_images=None):
    """Builds the objectives of a config.

    Args:
        contrast: the list `Experiment.contrast`.
        num_classes: int.
        seed: int, the seed of their sampling.
        training_images: list of int or None, the number of training images in which each class
            occurs: the ring sizes of a compact memory bank.

    Returns:
        list of `(objective, weight)`; a weight that changes over time is a function of the step.

    Raises:
        UserError: if a compact bank is requested and `training_images` is None, or a number does
            not fit the number of classes.
    """
    objectives = []
    for entry in contrast:
        arguments = entry.model_dump(exclude={*schema.Objective.model_fields, "name", "layout"})
        build = _OBJECTIVES.get(entry.name)
        if build is None:
            build, arguments = load_object(entry.name), dict(entry.arguments)
            if "seed" in inspect.signature(build).parameters:
                arguments.setdefault("seed", seed)
        if getattr(entry, "layout", "dense") == "compact":
            arguments["capacity"] = _ring_sizes(entry.capacity, training_images)
        if entry.name in _DRAW:
            arguments["seed"] = seed
        weight = entry.weight
        if entry.start_step or entry.warmup_steps:
            weight = Ramp(weight, start=entry.start_step, steps=entry.warmup_steps)
        try:
            objective = build(num_classes, **arguments)
            if not isinstance(objective, Objective):
                raise ValueError(
                    "it must be a `kseg.contrast.objective.Objective`. Received: "
                    f"{type(objective).__name__}"
                )
        except (TypeError, ValueError) as error:
            raise UserError(f"The entry {entry.name!r} of `contrast`: {error}") from None
        objectives.append((objective, weight))
    return objectives


def build_distortion(data, pixel_format=None):
    """Builds the distortion of a config, as far as it applies to the images.

    Args:
        data: `kseg.config.schema.Data`.
        pixel_format: `kseg.pixel_format.PixelFormat` of the images; None: 8-bit RGB.

    Returns:
        `PhotometricDistortion`, or None if nothing applies.
    """
    arguments = data.color_jitter.model_dump() if data.color_jitter else {}
    for name in left_out_of_jitter(data, pixel_format):
        del arguments[name]
    if data.blur:
        arguments |= {f"blur_{key}": value for key, value in data.blur.model_dump().items()}
    if not arguments:
        return None
    if pixel_format is not None:
        arguments["value_range"] = pixel_format.value_range
    return PhotometricDistortion(**arguments)


def left_out_of_jitter(data, pixel_format):
    """Lists the parts of a config's color jitter that do not apply to images that are not RGB.

    Saturation and hue are defined for red, green and blue. Floating-point values are mostly
    physical quantities, such as elevation, whose brightness and contrast must not change either.

    Args:
        data, pixel_format: as for `build_distortion`.

    Returns:
        list of str, keys of `kseg.config.schema.ColorJitter`.
    """
    if data.color_jitter is None or pixel_format is None or pixel_format.has_colors:
        return []
    names = ["saturation", "hue"]
    if pixel_format.dtype == "float32":
        names += ["brightness", "contrast"]
    return [name for name in data.color_jitter.model_dump() if name in names]


def build_optimizer(optimizer, schedule, *, steps, restarts=(), segmenter=None):
    """Builds the optimizer of a config.

    Args:
        optimizer: `kseg.config.schema.SGD` or `kseg.config.schema.AdamW`.
        schedule, steps, restarts: as in `build_schedule`.
        segmenter: model from `kseg.segmenters.build_segmenter` whose weights have the learning
            rates of the config's factors; None: no factors.

    Returns:
        `SGD` or `AdamW`.

    Raises:
        UserError: if a factor in the config matches no weight of the segmenter.
    """
    from kseg.training.optimizers import SGD, AdamW

    arguments = optimizer.model_dump(
        exclude={"name", "learning_rate", "weight_decay", "learning_rate_factors", "layer_decay"}
    )
    factors = {}
    if segmenter is not None:
        factors = learning_rate_factors(
            parts_of(segmenter), optimizer.learning_rate_factors, optimizer.layer_decay
        )
    return {"sgd": SGD, "adamw": AdamW}[optimizer.name](
        build_schedule(
            schedule, learning_rate=optimizer.learning_rate, steps=steps, restarts=restarts
        ),
        decay_rate=optimizer.weight_decay,
        learning_rate_factors=factors,
        name=optimizer.name,  # Part of the variables' names in a checkpoint.
        **arguments,
    )


def build_schedule(schedule, *, learning_rate, steps, restarts=()):
    """Builds the schedule of a config.

    Args:
        schedule: `kseg.config.schema.Poly`, `Linear` or `Cosine`.
        learning_rate: float, the peak.
        steps: int, optimizer steps of the first cycle.
        restarts: ints, steps of each further cycle, which decays from the peak without warm-up.

    Returns:
        function from an int step to the learning rate: `PolynomialSchedule`, `CosineSchedule`, or
        `WarmRestarts` of several.
    """
    kind, arguments = PolynomialSchedule, {"power": getattr(schedule, "power", 1.0)}
    if schedule.name == "cosine":
        kind, arguments = CosineSchedule, {}
    arguments["end_learning_rate"] = schedule.end_learning_rate
    first = kind(learning_rate, steps, warmup_steps=schedule.warmup_steps, **arguments)
    if not restarts:
        return first
    return WarmRestarts([first, *(kind(learning_rate, more, **arguments) for more in restarts)])


def build_updates(optimizer):
    """Builds the pure optimizer of a config.

    Args:
        optimizer: `kseg.config.schema.SGD` or `kseg.config.schema.AdamW`.

    Returns:
        `kseg.training.updates.SGD` or `kseg.training.updates.AdamW`.
    """
    kind = {"sgd": updates.SGD, "adamw": updates.AdamW}[optimizer.name]
    names = {field.name for field in dataclasses.fields(kind)}
    arguments = {key: value for key, value in optimizer.model_dump().items() if key in names}
    return kind(decay_rate=optimizer.weight_decay, **arguments)


def _ring_sizes(capacity, training_images):
    if training_images is None:
        raise UserError(
            "A compact memory bank needs the number of training images of each class, which the "
            'prepared data record. Received: none. Use "layout": "dense"'
        )
    return [min(capacity, max(images, 1)) for images in training_images]
