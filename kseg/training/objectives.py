"""From a config's `contrast` entries to objectives."""

import inspect

from keras import ops

from kseg.config import schema
from kseg.contrast.contextrast import Contextrast
from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.objective import Objective
from kseg.contrast.pixel_contrast import PixelContrast
from kseg.contrast.region_contrast import RegionContrast
from kseg.dotted import load_object
from kseg.errors import UserError

_OBJECTIVES = {
    "contextrast": Contextrast,
    "multi_scale": MultiScaleContrast,
    "pixel_contrast": PixelContrast,
    "region_contrast": RegionContrast,
}
_DRAW = {"contextrast", "multi_scale", "pixel_contrast"}  # Those that sample, and take a seed.


def build_objectives(contrast, *, num_classes, seed, training_images=None):
    """Builds the objectives of a config.

    Args:
        contrast: the list `Experiment.contrast`.
        num_classes: int.
        seed: int, of their sampling.
        training_images: list of int or None, training images in which each class occurs: the sizes
            of a compact memory bank's rings.

    Returns:
        list of `(objective, weight)`; a weight that changes is a function of the step.

    Raises:
        UserError: if a bank is to be compact and `training_images` is None, or a number does not
            fit the number of classes.
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
            weight = ramped(weight, start=entry.start_step, steps=entry.warmup_steps)
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


def ramped(weight, *, start, steps):
    """Makes a weight that rises.

    Args:
        weight: float, at the end.
        start: int, the step up to which it is 0.
        steps: int, over which it rises linearly from then on; 0: it is there at `start`.

    Returns:
        function from a step, an int tensor, to a float32 scalar.
    """

    def now(step):
        since = ops.cast(step, "float32") - start
        return weight * ops.clip(since / steps if steps else since + 1.0, 0.0, 1.0)

    return now


def _ring_sizes(capacity, training_images):
    if training_images is None:
        raise UserError(
            "A compact memory bank needs the number of training images of each class, which the "
            'prepared data tell. Received: none. Use "layout": "dense"'
        )
    return [min(capacity, max(images, 1)) for images in training_images]
