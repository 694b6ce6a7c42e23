"""From a config's `losses` to functions of labels and outputs."""

from kseg.errors import UserError
from kseg.losses.class_weights import class_weights
from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.lovasz import lovasz_softmax
from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.reduction import global_mean, global_ratio


def default_losses(segmenter):
    """Cross-entropy, and that of the auxiliary logits with weight 0.4, if there are any.

    Args:
        segmenter: keras model to a dict with `logits`.

    Returns:
        dict as `kseg.training.trainer.SegmentationTrainer` takes it.
    """
    losses = {"cross_entropy": (_mean_cross_entropy("logits"), 1.0)}
    if "aux_logits" in segmenter.output:
        losses["auxiliary"] = (_mean_cross_entropy("aux_logits"), 0.4)
    return losses


def build_losses(losses, segmenter, *, num_classes, training_pixels=None):
    """Builds the losses on logits of a config.

    Args:
        losses: `kseg.config.schema.Losses`.
        segmenter: keras model to a dict with `logits`, and `aux_logits` if its head has them.
        num_classes: int.
        training_pixels: ints or None, labelled training pixels of each class, for class weights
            that the config names.

    Returns:
        dict as `kseg.training.trainer.SegmentationTrainer` takes it. The class weights and
        the label smoothing of the cross-entropy hold for the auxiliary one too, not for OHEM.

    Raises:
        UserError: as in `resolve_class_weights`.
    """
    settings = losses.cross_entropy.model_dump(exclude={"weight"})
    settings["class_weights"] = resolve_class_weights(
        losses.cross_entropy.class_weights, num_classes, training_pixels
    )
    built = {
        "cross_entropy": (_mean_cross_entropy("logits", **settings), losses.cross_entropy.weight)
    }
    if losses.ohem:
        built["ohem"] = (_mean_ohem(losses.ohem), losses.ohem.weight)
    if losses.lovasz:
        built["lovasz"] = (_lovasz, losses.lovasz.weight)
    if losses.auxiliary and "aux_logits" in segmenter.output:
        loss = _mean_cross_entropy("aux_logits", **settings)
        built["auxiliary"] = (loss, losses.auxiliary.weight)
    return built


def resolve_class_weights(weights, num_classes, training_pixels=None):
    """Makes numbers of the class weights of a config.

    Args:
        weights: a name that `kseg.losses.class_weights.class_weights` knows, a list, or None.
        num_classes: int.
        training_pixels: as in `build_losses`.

    Returns:
        list of `num_classes` floats, or None: all 1.

    Raises:
        UserError: if a list has more or fewer weights than there are classes, or for a name the
            pixels are not known or none is labelled.
    """
    key = "`losses.cross_entropy.class_weights`"
    if isinstance(weights, str):
        if training_pixels is None or not any(training_pixels):
            raise UserError(
                f"{key} by name needs the labelled training pixels of each class, which the "
                f"prepared data tell. Received: {weights!r} and no such pixels. Give a list of "
                f"{num_classes} numbers, or null"
            )
        return class_weights(weights, training_pixels)
    if weights is not None and len(weights) != num_classes:
        raise UserError(
            f"{key} must have a number for each of the {num_classes} classes. "
            f"Received: {len(weights)}"
        )
    return weights


def _mean_cross_entropy(key, **settings):
    return lambda labels, outputs: global_ratio(*cross_entropy(labels, outputs[key], **settings))


def _mean_ohem(settings):
    arguments = settings.model_dump(exclude={"weight"})
    return lambda labels, outputs: global_mean(
        *ohem_cross_entropy(labels, outputs["logits"], **arguments)
    )


def _lovasz(labels, outputs):
    return lovasz_softmax(labels, outputs["logits"])
