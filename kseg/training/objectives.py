"""From a config's `contrast` entries to objectives."""

from kseg.contrast.contextrast import Contextrast
from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.region_contrast import RegionContrast

_OBJECTIVES = {
    "contextrast": Contextrast,
    "multi_scale": MultiScaleContrast,
    "region_contrast": RegionContrast,
}
_DRAW = {"contextrast", "multi_scale"}  # Those that sample, and take a seed.


def build_objectives(contrast, *, num_classes, seed):
    """Builds the objectives of a config.

    Args:
        contrast: the list `Experiment.contrast`.
        num_classes: int.
        seed: int, of their sampling.

    Returns:
        list of `(objective, weight)`.
    """
    objectives = []
    for entry in contrast:
        arguments = entry.model_dump(exclude={"name", "weight"})
        if entry.name in _DRAW:
            arguments["seed"] = seed
        objectives.append((_OBJECTIVES[entry.name](num_classes, **arguments), entry.weight))
    return objectives
