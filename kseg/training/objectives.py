"""From a config's `contrast` entries to objectives."""

from kseg.contrast.multi_scale import MultiScaleContrast

_OBJECTIVES = {"multi_scale": MultiScaleContrast}


def build_objectives(contrast, *, num_classes, seed):
    """Builds the objectives of a config.

    Args:
        contrast: the list `Experiment.contrast`.
        num_classes: int.
        seed: int, of their sampling.

    Returns:
        list of `(objective, weight)`.
    """
    return [
        (
            _OBJECTIVES[entry.name](
                num_classes, seed=seed, **entry.model_dump(exclude={"name", "weight"})
            ),
            entry.weight,
        )
        for entry in contrast
    ]
