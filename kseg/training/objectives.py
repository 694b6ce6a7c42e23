"""From a config's `contrast` entries to objectives."""

from kseg.contrast.contextrast import Contextrast
from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.region_contrast import RegionContrast
from kseg.errors import UserError

_OBJECTIVES = {
    "contextrast": Contextrast,
    "multi_scale": MultiScaleContrast,
    "region_contrast": RegionContrast,
}
_DRAW = {"contextrast", "multi_scale"}  # Those that sample, and take a seed.


def build_objectives(contrast, *, num_classes, seed, training_images=None):
    """Builds the objectives of a config.

    Args:
        contrast: the list `Experiment.contrast`.
        num_classes: int.
        seed: int, of their sampling.
        training_images: list of int or None, training images in which each class occurs: the sizes
            of a compact memory bank's rings.

    Returns:
        list of `(objective, weight)`.

    Raises:
        UserError: if a bank is to be compact and `training_images` is None.
    """
    objectives = []
    for entry in contrast:
        arguments = entry.model_dump(exclude={"name", "weight", "layout"})
        if getattr(entry, "layout", "dense") == "compact":
            arguments["capacity"] = _ring_sizes(entry.capacity, training_images)
        if entry.name in _DRAW:
            arguments["seed"] = seed
        objectives.append((_OBJECTIVES[entry.name](num_classes, **arguments), entry.weight))
    return objectives


def _ring_sizes(capacity, training_images):
    if training_images is None:
        raise UserError(
            "A compact memory bank needs the number of training images of each class, which the "
            'prepared data tell. Received: none. Use "layout": "dense"'
        )
    return [min(capacity, max(images, 1)) for images in training_images]
