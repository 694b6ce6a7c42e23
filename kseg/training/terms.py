"""The terms of a trainer's loss, on any backend."""

from keras import ops

from kseg.backend import replicas
from kseg.losses.labels import without_weightless


def compute_terms(losses, objectives, outputs, labels, sample_weight=None, regularization=()):
    """Computes every term and its weight.

    Args:
        losses: dict from a name to `(function of (labels, outputs), weight)`; those of weight 0 are
            skipped.
        objectives: list of `(kseg.contrast.objective.Objective, weight)`.
        outputs: dict of the segmenter's outputs.
        labels: int tensor `(batch, height, width)`, 255 = ignored.
        sample_weight: float tensor >= 0 of the shape of the labels, or None. Means over pixels
            (cross-entropy, OHEM, focal) are weighted by it; for every other term a pixel of weight
            0 is ignored, and all others count equally.
        regularization: list of float tensors, losses of the network's weights.

    Returns:
        `(terms, bank_entries)`: dict from the term's name to `(value, weight)`: float32 scalar,
        this replica's share of the term, and its weight; and for each objective the argument of its
        `remember`.

    Raises:
        ValueError: if there are sample weights and no term uses them.
    """
    losses = {name: pair for name, pair in losses.items() if pair[1]}
    weighted = set()
    if sample_weight is not None:
        labels = without_weightless(labels, sample_weight)
        weighted = {n for n, (f, _) in losses.items() if getattr(f, "takes_sample_weight", 0)}
        if not weighted:
            raise ValueError(
                "Sample weights are for means over pixels, such as kseg.losses.CrossEntropy. "
                f"Received: sample weights, and the losses {sorted(losses)}. Set the labels of "
                "pixels to ignore to 255"
            )
    terms = {
        name: (loss(labels, outputs, *([sample_weight] if name in weighted else [])), weight)
        for name, (loss, weight) in losses.items()
    }
    if regularization:
        share = sum(ops.cast(ops.sum(x), "float32") for x in regularization)
        terms["regularization"] = (share / replicas.num_replicas(), 1.0)
    bank_entries = []
    for objective, weight in objectives:
        values, entries = objective.contrast(outputs, labels)
        bank_entries.append(entries)
        for name, value in values.items():
            terms[f"{objective.name}/{name}"] = (value, weight)
    return terms, bank_entries
