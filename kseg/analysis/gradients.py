"""Gradients of the loss terms, compared over the weights that they share."""

import collections
import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class TermGradients:
    """Gradients of a term over some training batches, relative to those of a reference term.

    Both are taken over the weights that both terms depend on: for a term of contrast, the network
    without its classifier and the projectors. A ratio far below 1 means that the term changes
    little, far above 1 that it displaces the reference; a cosine below 0, that the two disagree.

    Attributes:
        weight: float, weight of the term at this step.
        values: float64 `(batches,)`, values of the term before its weight.
        ratios: float64 `(batches,)`, norm of weight times gradient, divided by that of the
            reference; NaN where the latter is 0.
        cosines: float64 `(batches,)`, of the angle between the two gradients; NaN where one is 0.
    """

    weight: float
    values: np.ndarray
    ratios: np.ndarray
    cosines: np.ndarray

    def to_dict(self):
        """Returns mean and standard deviation over the batches, JSON-able; None for NaN."""
        found = {"weight": self.weight}
        for name in ("values", "ratios", "cosines"):
            numbers = getattr(self, name)
            numbers = numbers[np.isfinite(numbers)]
            spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
            mean = float(numbers.mean()) if len(numbers) else None
            found[name.removesuffix("s")] = {"mean": mean, "std": spread}
        return found


def compare_gradients(trainer, batches, *, reference="cross_entropy", progress=None):
    """Compares the gradient of each term with that of a reference term on training batches.

    The weights stay as they are. Memory banks take each batch in, as in training, so they are not
    left as they were; nor are moving statistics of batch norms.

    Args:
        trainer: compiled `kseg.training.trainer.SegmentationTrainer`, outside of a strategy.
        batches: iterable of training batches, see `SegmentationTrainer.take_step`.
        reference: str, name of a term.
        progress: function without arguments, called after each batch, or None.

    Returns:
        dict from the name of each term, the reference first, to `TermGradients`.

    Raises:
        ValueError: if there is no such term, or a batch does not fit the trainer.
    """
    variables = [variable.value for variable in trainer.segmenter.trainable_variables]

    @tf.function(autograph=False)
    def measure(data):
        terms, entries = trainer.training_terms(data)
        if reference not in terms:
            raise ValueError(
                f"`reference` must be one of the terms {sorted(terms)}. Received: {reference!r}"
            )
        # Under mixed_float16, gradients are representable only when scaled up. One tape would
        # follow the loops of all terms, whose tracing then takes several times as long.
        gradients = {
            name: tf.gradients(trainer.optimizer.scale_loss(value * weight), variables)
            for name, (value, weight) in terms.items()
        }
        for objective, entry in zip(trainer.objectives, entries, strict=True):
            objective.remember(entry)
        found = {}
        for name, (value, weight) in terms.items():
            products = _products(gradients[name], gradients[reference])
            found[name] = tf.stack([tf.cast(weight, "float32"), value, *products])
        return found

    rows = collections.defaultdict(list)
    for data in batches:
        for name, row in measure(data).items():
            rows[name].append(row.numpy())
        if progress is not None:
            progress()
    names = [reference, *(name for name in rows if name != reference)]
    return {name: _statistics(np.array(rows[name], "float64")) for name in names if name in rows}


def _products(gradients, others):
    """Returns the squared norms and the product of two gradients over their shared weights."""
    pairs = [
        (
            tf.cast(tf.convert_to_tensor(one), "float32"),
            tf.cast(tf.convert_to_tensor(two), "float32"),
        )
        for one, two in zip(gradients, others, strict=True)
        if one is not None and two is not None
    ]
    if not pairs:
        return [tf.constant(0.0)] * 3
    return [
        tf.add_n([tf.reduce_sum(pair[i] * pair[j]) for pair in pairs])
        for i, j in ((0, 0), (1, 1), (0, 1))
    ]


def _statistics(rows):
    weights, values, own, other, product = rows.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(other > 0, np.sqrt(own / other), np.nan)
        cosines = np.where(own * other > 0, product / np.sqrt(own * other), np.nan)
    return TermGradients(float(weights[-1]), values, ratios, cosines)
