"""Checks of a trainer's segmenter, losses and objectives, which must fit together."""

import numbers

import keras

from kseg.classes import MAX_CLASSES
from kseg.contrast.objective import Objective


def check_segmenter(segmenter):
    """Rejects a model whose outputs are not a dict with `logits`."""
    outputs = getattr(segmenter, "output", None) if isinstance(segmenter, keras.Model) else None
    if not isinstance(outputs, dict) or "logits" not in outputs:
        received = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(
            "A SegmentationTrainer needs a functional model whose outputs are a dict with `logits` "
            f"and what its objectives read. Received: {getattr(segmenter, 'name', segmenter)} with "
            f'outputs {received}. Use keras.Model(inputs, {{"logits": logits, ...}})'
        )
    shape = tuple(outputs["logits"].shape)
    if len(shape) != 4 or shape[-1] is None:
        raise ValueError(
            "The `logits` of a segmenter must be (batch, height, width, num_classes), at any "
            f"stride. Received shape: {shape}"
        )
    if not 2 <= shape[-1] <= MAX_CLASSES:
        raise ValueError(
            f"A segmenter must have 2 to {MAX_CLASSES} classes: the background is one of them, and "
            f"the label 255 marks ignored pixels. Received: `logits` of {shape[-1]}"
        )


def check_pairs_of(losses, objectives):
    """Rejects entries of a trainer's `losses` (a dict or None) or `objectives` without a weight."""
    check_pairs("objectives", objectives, "objectives=[(RegionContrast(num_classes), 0.1)]")
    if losses is not None:
        check_pairs("losses", losses.values(), 'losses={"dice": (kseg.losses.Dice(), 1.0)}')


def check_pairs(argument, items, example):
    """Rejects losses or objectives without a weight.

    Args:
        argument: str, the name of the argument; `"objectives"` may have functions as weights.
        items: list of objects that must be pairs of an object and a weight.
        example: str, a correct argument, for the message.
    """
    for item in items:
        pair = isinstance(item, tuple | list) and len(item) == 2
        weight = item[1] if pair else None
        ramp = argument == "objectives" and callable(weight)
        if isinstance(weight, bool) or not (ramp or isinstance(weight, numbers.Real)):
            name = getattr(item, "name", None) or type(item).__name__
            raise ValueError(
                f"Each entry of `{argument}` needs a weight, as in {example}. Received: "
                f"{name if not pair else item}"
            )


def check_names(losses, objectives):
    """Rejects terms with clashing names, which would overwrite one another, and an empty sum."""
    names = [objective.name for objective in objectives]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"Each objective needs a unique name, the prefix of its terms. Received: {names}. "
                f'Give them names: {type(objectives[names.index(name)]).__name__}(..., name="...")'
            )
    for name in losses:
        if name in ("loss", "regularization") or name.split("/")[0] in names:
            raise ValueError(
                "A loss must not be called 'loss', which is the sum of all terms, "
                f"'regularization', or by the name of an objective. Received: {name!r} beside the "
                f"objectives {names}"
            )
    if not objectives and not any(weight for _, weight in losses.values()):
        raise ValueError(
            "There is nothing to minimize: no objective, and no loss with a weight above 0. "
            f"Received: {losses=}"
        )


def check_averaged(averaged, segmenter):
    """Rejects an `averaged` model whose weights differ from those of the segmenter."""
    ours, theirs = ([(w.path, tuple(w.shape)) for w in m.weights] for m in (averaged, segmenter))
    if ours != theirs:
        odd = next((a for a, b in zip(ours, theirs, strict=False) if a != b), "fewer or more")
        raise ValueError(
            f"`averaged` must have the weights of the segmenter, in its order. Received: {odd}"
        )


def check_objective(objective, segmenter):
    """Rejects objects that are not objectives, or that have another number of classes."""
    if not isinstance(objective, Objective):
        raise ValueError(
            "Objectives must be of kseg.contrast.objective.Objective. Received: "
            f"{type(objective).__name__}. Losses on logits go into `losses`"
        )
    received = getattr(objective, "num_classes", None)
    num_classes = segmenter.output["logits"].shape[-1]
    if received not in (None, num_classes):
        raise ValueError(
            f"{objective.name!r} must have as many classes as the segmenter, {num_classes}. "
            f"Received: num_classes={received}"
        )
