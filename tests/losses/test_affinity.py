import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.losses.affinity import affinity_loss
from tests.losses import checks

SETTINGS = [
    {},
    {"distances": (2,), "margin": 0.5},
    {"distances": (1, 3), "temperature": 0.01},
    {"temperature": 1e6},
]


def loop(labels, logits, distances=(1, 2, 3), margin=3.0, temperature=0.1, weights=None):
    """The definition, pair by pair; returns `(loss, weights of the adversary)`."""
    num_classes = logits.shape[-1]
    p = np.exp(logits.astype("float64"))
    p /= p.sum(-1, keepdims=True)
    yes, no = np.clip(p, 1e-4, 1), np.clip(1 - p, 1e-4, 1)
    costs, pairs = np.zeros((2, len(distances), 2, num_classes))
    for k, distance in enumerate(distances):
        for b, i, j in np.ndindex(labels.shape):
            for down, across in [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]:
                y, x = i + down * distance, j + across * distance
                if not (0 <= y < labels.shape[1] and 0 <= x < labels.shape[2]):
                    continue
                here, there = labels[b, i, j], labels[b, y, x]
                if min(here, there) < 0 or max(here, there) >= num_classes:
                    continue
                for n in range(num_classes):
                    q, r = (yes[b, y, x, n], no[b, y, x, n]), (yes[b, i, j, n], no[b, i, j, n])
                    kl = sum(u * np.log(u / v) for u, v in zip(q, r, strict=True))
                    edge = int((here == n) != (there == n))
                    costs[k, edge, n] += max(0, margin - kl) if edge else kl
                    pairs[k, edge, n] += 1
    if weights is None:
        weights = np.where(pairs > 0, np.exp(costs / np.maximum(pairs, 1) / temperature), 0)
        weights /= np.maximum(weights.sum(0), 1e-300)
    mean = costs / np.maximum(pairs.sum(-1, keepdims=True), 1)
    return (weights * mean).sum(), weights


def example(seed=0, size=(2, 6, 7), num_classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, (size[0], size[1] // 3 + 1, size[2] // 3 + 1))
    labels = np.kron(labels, np.ones((3, 3), int))[:, : size[1], : size[2]]
    labels[rng.random(size) < 0.1] = 255
    labels[0, 0, 0] = -1
    return labels, rng.normal(size=(*size, num_classes)).astype("float32")


@pytest.mark.parametrize("settings", SETTINGS)
def test_value_and_gradient_are_those_of_the_definition(settings):
    labels, logits = example()
    loss = functools.partial(affinity_loss, **settings)
    value, gradient = checks.value_and_gradient(loss, labels, logits)
    expected, weights = loop(labels, logits, **settings)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    definition = functools.partial(loop, **settings, weights=weights)
    indices, slopes = checks.slopes(lambda *x: definition(*x)[0], labels, logits, count=8)
    np.testing.assert_allclose(gradient[indices], slopes, rtol=1e-3, atol=1e-7)


def test_a_pair_by_hand():
    p, q = 0.8, 0.4  # Of class 0, at two pixels.
    logits = np.log([[[[p, 1 - p], [q, 1 - q]]]]).astype("float32")
    divergence = [
        a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b)) for a, b in ((q, p), (p, q))
    ]
    # Two classes of one pair have the same divergences; the mean is over both ends and classes.
    settings = {"distances": (1,), "margin": 0.35}
    same = affinity_loss(np.array([[[1, 1]]]), logits, **settings)
    np.testing.assert_allclose(same, np.mean(divergence), rtol=1e-5)
    edge = affinity_loss(np.array([[[1, 0]]]), logits, **settings)
    np.testing.assert_allclose(edge, np.mean(np.maximum(0, 0.35 - np.array(divergence))), rtol=1e-4)
    for labels in ([[[1, 255]]], [[[-1, 0]]], [[[255, 255]]]):
        assert float(affinity_loss(np.array(labels), logits, **settings)) == 0


def test_a_cold_adversary_takes_the_worst_distance_of_a_class():
    labels, logits = example()
    alone = [float(affinity_loss(labels, logits, distances=(k,), temperature=1e-4)) for k in (1, 2)]
    both = float(affinity_loss(labels, logits, distances=(1, 2), temperature=1e-4))
    even = float(affinity_loss(labels, logits, distances=(1, 2), temperature=1e6))
    np.testing.assert_allclose(even, np.mean(alone), rtol=1e-4)
    assert both > even


def test_labels_are_brought_to_the_size_of_the_logits():
    labels, logits = example()
    fine = np.kron(labels, np.ones((4, 4), int))
    loss = functools.partial(affinity_loss, distances=(2,))
    expected = loss(labels, logits)
    for jit_compile in (False, True):
        compiled = tf.function(loss, jit_compile=jit_compile)
        np.testing.assert_allclose(compiled(fine, logits), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_computed_in_float32(dtype):
    labels, logits = example()
    rounded = tf.cast(logits, dtype)
    loss = affinity_loss(labels, rounded)
    assert loss.dtype == "float32"
    expected = loop(labels, tf.cast(rounded, "float32").numpy())[0]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_certain_predictions_have_a_finite_gradient():
    labels, logits = example()
    value, gradient = checks.value_and_gradient(affinity_loss, labels, 1000 * logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_two_replicas_are_one_with_the_whole_batch(mirrored):
    labels, logits = example(size=(4, 6, 7))
    labels[2:, :4] = 255
    loss = functools.partial(affinity_loss, distances=(2,))
    checks.assert_two_replicas_are_one(mirrored, loss, labels, logits)


@pytest.mark.parametrize("settings", [{"distances": ()}, {"distances": (0,)}, {"margin": 0}])
def test_mistakes(settings):
    with pytest.raises(ValueError, match=r"`distances` must be 1 or more each.*Received: dist"):
        affinity_loss(*example(), **settings)


def test_logits_of_unknown_size_are_refused():
    logits = keras.KerasTensor((2, None, 6, 3))
    with pytest.raises(ValueError, match=r"static height and width. Received: \(2, None, 6, 3\)"):
        affinity_loss(np.zeros((2, 5, 6), int), logits)
