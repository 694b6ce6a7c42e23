import numpy as np
import pytest

from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.reduction import global_mean, global_ratio


def test_pixels_by_hand():
    logits = np.zeros((1, 1, 4, 2), "float32")
    logits[0, 0, :, 0] = np.log([1, 3, 3, 3])  # Class 0 has probability 1/2, then 3/4.
    labels = np.array([[[0, 0, 1, 255]]], "uint8")
    loss, valid = cross_entropy(labels, logits)
    np.testing.assert_allclose(loss, [[[np.log(2), np.log(4 / 3), np.log(4), 0]]], rtol=1e-6)
    assert np.array_equal(valid, [[[1, 1, 1, 0]]])
    np.testing.assert_allclose(
        global_mean(loss, valid), (np.log(2) + np.log(4 / 3) + np.log(4)) / 3, rtol=1e-6
    )


def test_logits_are_resized_bilinearly_to_the_labels():
    logits = np.zeros((1, 1, 2, 2), "float32")
    logits[0, 0, :, 0] = [0.0, 4.0]
    labels = np.zeros((1, 1, 4), "int32")
    # Half-pixel centers: sources -0.25, 0.25, 0.75, 1.25 of 0 and 4, clamped at the ends.
    expected = np.log1p(np.exp(-np.array([0.0, 1.0, 3.0, 4.0])))
    np.testing.assert_allclose(cross_entropy(labels, logits)[0][0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("label", [255, -1, 2])
def test_ignored_everywhere_is_zero(label):
    loss, valid = cross_entropy(np.full((2, 3, 3), label), np.ones((2, 3, 3, 2), "float32"))
    assert not np.any(loss) and not np.any(valid)
    assert float(global_mean(loss, valid)) == 0


def test_half_precision_logits_are_computed_in_float32():
    loss, _ = cross_entropy(np.zeros((1, 1, 1)), np.full((1, 1, 1, 2), 1.0, "float16"))
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.0]])
def test_class_weights_and_label_smoothing(weights, smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 3)).astype("float32")
    labels = rng.integers(0, 3, (2, 3, 4))
    labels[0, 0] = 255
    w = np.ones(3) if weights is None else np.array(weights)
    total = weight = 0.0
    for row, label in zip(logits.reshape(-1, 3).astype("float64"), labels.reshape(-1), strict=True):
        if label == 255:
            continue
        log_p = row - np.log(np.exp(row).sum())
        # PyTorch's definition: a fraction of the target is spread over all classes.
        target = (1 - smoothing) * np.eye(3)[label] + smoothing / 3
        total -= (w * target * log_p).sum()
        weight += w[label]
    result = cross_entropy(labels, logits, class_weights=weights, label_smoothing=smoothing)
    np.testing.assert_allclose(global_ratio(*result), total / weight, rtol=1e-5)


def test_a_weight_below_one_is_divided_by_too():
    labels = np.zeros((1, 1, 1), int)
    loss, weight = cross_entropy(labels, np.zeros((1, 1, 1, 2), "float32"), class_weights=[0.1, 1])
    np.testing.assert_allclose(global_ratio(loss, weight), np.log(2), rtol=1e-6)
    loss, weight = cross_entropy(labels, np.zeros((1, 1, 1, 2), "float32"), class_weights=[0, 1])
    assert float(global_ratio(loss, weight)) == 0
