import functools

import numpy as np
import pytest
import tensorflow as tf

from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.focal import focal_loss
from kseg.losses.reduction import global_ratio
from tests.losses import checks

SETTINGS = [
    {},
    {"gamma": 0.5},
    {"gamma": 1.0},
    {"gamma": 0.0, "class_weights": [0.5, 1.0, 2.0]},
    {"gamma": 3.0, "class_weights": [0.5, 0.0, 2.0]},
]


def mean(labels, logits, **settings):
    return global_ratio(*focal_loss(labels, logits, **settings))


def loop(labels, logits, gamma=2.0, class_weights=None):
    """The definition, pixel by pixel."""
    total = weight = 0.0
    for index in np.ndindex(labels.shape):
        if not 0 <= labels[index] < logits.shape[-1]:
            continue
        p = np.exp(logits[index].astype("float64"))
        p = (p / p.sum())[labels[index]]
        w = 1.0 if class_weights is None else class_weights[labels[index]]
        total -= w * (1 - p) ** gamma * np.log(p)
        weight += w
    return total / weight if weight else 0.0


def example(seed=0, size=(2, 5, 6), num_classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, size)
    labels[rng.random(size) < 0.2] = 255
    labels[0, 0, 0] = -1
    return labels, rng.normal(size=(*size, num_classes)).astype("float32")


@pytest.mark.parametrize("settings", SETTINGS)
def test_value_and_gradient_are_those_of_the_definition(settings):
    labels, logits = example()
    loss = functools.partial(mean, **settings)
    checks.assert_is(functools.partial(loop, **settings), loss, labels, logits)


def test_without_focus_it_is_cross_entropy():
    labels, logits = example()
    for ours, theirs in zip(
        focal_loss(labels, logits, gamma=0), cross_entropy(labels, logits), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_certain_pixel_has_neither_loss_nor_gradient(gamma):
    logits = np.array([[[[100.0, 0.0]]]], "float32")  # 1 - p is 0 in float32.
    loss = functools.partial(mean, gamma=gamma)
    value, gradient = checks.value_and_gradient(loss, np.zeros((1, 1, 1), int), logits)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("label", [255, -1, 3])
def test_nothing_valid_is_no_loss(label):
    logits = np.ones((1, 3, 3, 3), "float32")
    value, gradient = checks.value_and_gradient(mean, np.full((1, 3, 3), label), logits)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_computed_in_float32(dtype):
    labels, logits = example()
    rounded = tf.cast(logits, dtype)
    loss = mean(labels, rounded)
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, loop(labels, tf.cast(rounded, "float32").numpy()), rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_two_replicas_are_one_with_the_whole_batch(mirrored, settings):
    labels, logits = example(size=(4, 5, 6))
    labels[2:, :3] = 255
    loss = functools.partial(mean, **settings)
    checks.assert_two_replicas_are_one(mirrored, loss, labels, logits)


def test_a_nan_is_not_hidden():
    labels, logits = example()
    labels[0, 0, 1], logits[0, 0, 1] = 0, np.nan
    assert np.isnan(mean(labels, logits))


def test_a_negative_exponent_is_refused():
    with pytest.raises(ValueError, match=r"must not be negative\. Received: gamma=-1"):
        focal_loss(*example(), gamma=-1)
