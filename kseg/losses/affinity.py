"""Adaptive affinity fields: neighboring pixels agree where their labels agree."""

import keras
from keras import ops

from kseg.backend import replicas
from kseg.layers import resize_labels

_FLOOR = 1e-4  # Lower limit of probabilities, as in the public code.
_DIRECTIONS = (
    (0, 1),
    (1, 0),
    (1, 1),
    (1, -1),
)  # The other four are these, seen from the other end.


def affinity_loss(labels, logits, *, distances=(1, 2, 3), margin=3.0, temperature=0.1):
    """Computes the adaptive affinity field loss at the size of the logits.

    With the softmax probability p_ic of class c at pixel i, as a distribution over "c" and "not c",
    and the neighbors j at a distance k in the eight directions, a pair of equal labels, or of two
    labels other than c, costs `D_ijc = KL(p_jc || p_ic)`, and one with exactly one label c costs
    `max(0, margin - D_ijc)`. With the sums N_kc and E_kc of these costs, and the numbers n_k and
    e_k of both kinds over all classes, the loss is
    `sum_k sum_c (v_kc N_kc / n_k + w_kc E_kc / e_k)`.

    The weights of the distances, `sum_k w_kc = sum_k v_kc = 1` for each class, are an adversary's:
    they maximize `sum_k w_kc m_kc + temperature * entropy(w_c)`, m the mean cost of each class and
    distance: `w_c = softmax(m_c / temperature)`. They carry no gradient.

    Source: Ke et al., "Adaptive Affinity Fields for Semantic Segmentation", ECCV 2018: its
    affinity losses and their adaptive kernel sizes; costs and counts as in the public code. There
    the adversary's weights are trained by gradient ascent beside the network; here its problem is
    solved in each step (with `temperature` near 0: the worst distance of each class; very large:
    all the same), so that the loss has no state.

    Args:
        labels: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored,
            with all pairs that they are in. Brought to the logits' size by the nearest neighbor.
        logits: float tensor `(batch, h, w, num_classes)`.
        distances: ints > 0, pixels of the logits: 1 is a 3x3 neighborhood, 2 the corners and
            middles of the sides of 5x5, and so on.
        margin: float > 0, in nats: pairs across an edge that differ more cost nothing.
        temperature: float > 0, of the adversary.

    Returns:
        float32 scalar: this replica's share of the loss; 0 if there is no pair.

    Raises:
        ValueError: if an argument is out of range, or the size of the logits is not static.
    """
    if not distances or min(distances) < 1 or margin <= 0 or temperature <= 0:
        raise ValueError(
            "`distances` must be 1 or more each, and `margin` and `temperature` positive. "
            f"Received: {distances=}, {margin=}, {temperature=}"
        )
    size, num_classes = tuple(logits.shape[1:3]), logits.shape[-1]
    if None in size:
        raise ValueError(
            f"`logits` must have a static height and width. Received: {tuple(logits.shape)}"
        )
    labels = ops.cast(resize_labels(labels, *size), "int32")
    labels = ops.where(ops.logical_and(labels >= 0, labels < num_classes), labels, -1)
    probability = ops.softmax(ops.cast(logits, "float32"), axis=-1)
    yes, no = (ops.clip(x, _FLOOR, 1.0) for x in (probability, 1.0 - probability))
    maps = (yes, no, ops.log(yes), ops.log(no))
    sums = []
    for distance in distances:
        total = ops.zeros((4, num_classes), "float32")
        for down, across in _DIRECTIONS:
            if distance * down >= size[0] or distance * abs(across) >= size[1]:
                continue
            # Kept for the gradient, the costs of all pairs would be many times the logits.
            costs = keras.remat(_costs_of(labels, distance * down, distance * across, margin))
            total = total + costs(*maps)
        sums.append(total)
    # (distances, [N, E, pairs without edge, pairs with edge], num_classes).
    sums = replicas.all_reduce_sum(ops.stack(sums))
    costs, pairs = sums[:, :2], sums[:, 2:]
    each = ops.stop_gradient(costs / ops.maximum(pairs, 1.0)) / temperature
    # A distance without such pairs of a class has no weight.
    each = ops.where(pairs > 0, ops.exp(each - ops.max(each, axis=0, keepdims=True)), 0.0)
    weights = each / ops.maximum(ops.sum(each, axis=0, keepdims=True), 1e-30)
    mean = costs / ops.maximum(ops.sum(pairs, axis=-1, keepdims=True), 1.0)
    return ops.sum(weights * mean) / replicas.num_replicas()


def _costs_of(labels, down, across, margin):
    """Makes a function that adds up the costs of the pairs of one direction, seen from both ends.

    Args:
        labels: int32 tensor `(batch, h, w)`, -1 where ignored.
        down, across: ints, from the one pixel to the other.
        margin: float.

    Returns:
        function of four float32 tensors `(batch, h, w, num_classes)`, the probabilities of each
        class and of not that class, and the logarithms of both, to float32 `(4, num_classes)`:
        costs of pairs without and with an edge, and the numbers of these.
    """

    def ends(x):
        one, other = [slice(None)], [slice(None)]
        for step, length in zip((down, across), x.shape[1:3], strict=True):
            low, high = max(step, 0), max(-step, 0)
            one.append(slice(high, length - low))
            other.append(slice(low, length - high))
        return x[tuple(one)], x[tuple(other)]

    def compute(yes, no, log_yes, log_no):
        label, label_there = ends(labels)
        valid = ops.logical_and(label >= 0, label_there >= 0)[..., None]
        classes = ops.arange(yes.shape[-1], dtype="int32")
        edge = (label[..., None] == classes) != (label_there[..., None] == classes)
        edge, flat = (ops.cast(ops.logical_and(x, valid), "float32") for x in (edge, ~edge))
        (yes, yes_there), (no, no_there) = ends(yes), ends(no)
        (log_yes, log_yes_there), (log_no, log_no_there) = ends(log_yes), ends(log_no)
        change_yes, change_no = log_yes_there - log_yes, log_no_there - log_no
        # Here is a center and there its neighbor, then the other way around.
        divergences = (
            yes_there * change_yes + no_there * change_no,
            -yes * change_yes - no * change_no,
        )
        pixels = (0, 1, 2)
        alike = sum(ops.sum(flat * d, axis=pixels) for d in divergences)
        apart = sum(ops.sum(edge * ops.relu(margin - d), axis=pixels) for d in divergences)
        counts = [2.0 * ops.sum(x, axis=pixels) for x in (flat, edge)]
        return ops.stack([alike, apart, *counts])

    return compute
