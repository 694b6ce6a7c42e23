import functools

import numpy as np
import pytest
import tensorflow as tf

from kseg.losses.dice import dice_loss
from tests.losses import checks

SETTINGS = [
    {},
    {"smooth": 3.0},
    {"squared": True},
    {"class_weights": [0.5, 1.0, 2.0, 9.0]},
    {"class_weights": [0.0, 1.0, 2.0, 0.0], "squared": True, "smooth": 1.0},
]


def loop(labels, logits, smooth=0.0, squared=False, class_weights=None):
    """The definition, pixel by pixel."""
    num_classes = logits.shape[-1]
    both, mass, pixels = np.zeros((3, num_classes))
    for index in np.ndindex(labels.shape):
        if not 0 <= labels[index] < num_classes:
            continue
        p = np.exp(logits[index].astype("float64"))
        p /= p.sum()
        for n in range(num_classes):
            both[n] += p[n] * (labels[index] == n)
            mass[n] += p[n] ** 2 if squared else p[n]
            pixels[n] += labels[index] == n
    total = weight = 0.0
    for n in range(num_classes):
        if pixels[n]:
            w = 1.0 if class_weights is None else class_weights[n]
            total += w * (1 - (2 * both[n] + smooth) / (mass[n] + pixels[n] + smooth))
            weight += w
    return total / weight if weight else 0.0


def example(seed=0, size=(2, 5, 6), num_classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes - 1, size)  # The last class is absent.
    labels[rng.random(size) < 0.2] = 255
    labels[0, 0, 0] = -1
    return labels, rng.normal(size=(*size, num_classes)).astype("float32")


@pytest.mark.parametrize("settings", SETTINGS)
def test_value_and_gradient_are_those_of_the_definition(settings):
    labels, logits = example()
    loss = functools.partial(dice_loss, **settings)
    checks.assert_is(functools.partial(loop, **settings), loss, labels, logits)


def test_hard_predictions_by_hand():
    labels = np.array([[[0, 0, 0, 1, 1, 255]]])
    guess = np.array([0, 0, 1, 1, 0, 0])
    logits = 200.0 * np.eye(2, dtype="float32")[guess][None, None]
    # Class 0: 2 of 3 found, 3 predicted: 4/6. Class 1: 1 of 2 found, 2 predicted: 2/4.
    np.testing.assert_allclose(dice_loss(labels, logits), 1 - (4 / 6 + 2 / 4) / 2, rtol=1e-6)
    np.testing.assert_allclose(
        dice_loss(labels, logits, smooth=2.0), 1 - (6 / 8 + 4 / 6) / 2, rtol=1e-6
    )
    perfect = 200.0 * np.eye(2, dtype="float32")[labels % 5 % 2]
    np.testing.assert_allclose(dice_loss(labels, perfect), 0.0, atol=1e-6)


@pytest.mark.parametrize("weights", [None, [1.0, 0.0]])
@pytest.mark.parametrize("label", [255, -1, 2, 1])
def test_nothing_that_counts_is_no_loss(label, weights):
    labels = np.full((1, 3, 3), label)
    loss = functools.partial(dice_loss, class_weights=weights)
    value, gradient = checks.value_and_gradient(loss, labels, np.ones((1, 3, 3, 2), "float32"))
    counts = label == 1 and weights is None
    assert (value > 0) == counts and gradient.any() == counts and np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_computed_in_float32(dtype):
    labels, logits = example()
    rounded = tf.cast(logits, dtype)
    loss = dice_loss(labels, rounded)
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, loop(labels, tf.cast(rounded, "float32").numpy()), rtol=1e-5)


def test_coarse_logits_are_resized_and_graphs_agree():
    labels = example(size=(2, 10, 12))[0]
    logits = example(size=(2, 5, 6))[1]
    fine = tf.image.resize(logits, (10, 12)).numpy()
    for jit_compile in (False, True):
        compiled = tf.function(dice_loss, jit_compile=jit_compile)
        np.testing.assert_allclose(compiled(labels, logits), loop(labels, fine), rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_two_replicas_are_one_with_the_whole_batch(mirrored, settings):
    labels, logits = example(size=(4, 5, 6))
    labels[:2][labels[:2] == 1] = 0  # Class 1 is on one replica only.
    labels[2:, :3] = 255
    loss = functools.partial(dice_loss, **settings)
    checks.assert_two_replicas_are_one(mirrored, loss, labels, logits)


def test_a_nan_is_not_hidden():
    labels, logits = example()
    labels[0, 0, 1], logits[0, 0, 1] = 0, np.nan
    assert np.isnan(dice_loss(labels, logits))


def test_a_negative_constant_is_refused():
    with pytest.raises(ValueError, match=r"must not be negative\. Received: smooth=-1"):
        dice_loss(*example(), smooth=-1)
