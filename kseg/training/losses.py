"""From a config's `losses` to functions of labels and outputs."""

from kseg.errors import UserError
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


def build_losses(losses, segmenter, *, num_classes):
    """Builds the losses on logits of a config.

    Args:
        losses: `kseg.config.Losses`.
        segmenter: keras model to a dict with `logits`, and `aux_logits` if its head has them.
        num_classes: int.

    Returns:
        dict as `kseg.training.trainer.SegmentationTrainer` takes it. The class weights and
        the label smoothing of the cross-entropy hold for the auxiliary one too, not for OHEM.

    Raises:
        UserError: if there are more or fewer class weights than classes.
    """
    settings = losses.cross_entropy.model_dump(exclude={"weight"})
    weights = losses.cross_entropy.class_weights
    if weights is not None and len(weights) != num_classes:
        raise UserError(
            "`losses.cross_entropy.class_weights` must have a number for each of the "
            f"{num_classes} classes. Received: {len(weights)}"
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


def _mean_cross_entropy(key, **settings):
    return lambda labels, outputs: global_ratio(*cross_entropy(labels, outputs[key], **settings))


def _mean_ohem(settings):
    arguments = settings.model_dump(exclude={"weight"})
    return lambda labels, outputs: global_mean(
        *ohem_cross_entropy(labels, outputs["logits"], **arguments)
    )


def _lovasz(labels, outputs):
    return lovasz_softmax(labels, outputs["logits"])
