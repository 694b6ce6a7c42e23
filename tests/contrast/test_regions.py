import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.regions import region_centers


def centers_of(features, logits, labels, mode):
    """The definition, class by class in float64; None if an image lacks the class."""
    result = []
    for x, z, y in zip(features.astype("float64"), logits.astype("float64"), labels, strict=True):
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        predicted, confidence = p.argmax(-1), p.max(-1)
        for n in range(logits.shape[-1]):
            members = (predicted if mode == "average" else y) == n
            members &= y != 255
            weight = np.ones(y.shape)
            if mode == "weighted":
                weight = np.where(predicted == y, 1 - confidence, 1.0)
            center = (x * (weight * members)[..., None]).sum((0, 1))
            result.append(center / np.linalg.norm(center) if members.any() else None)
    return result


@pytest.mark.parametrize("mode", ["weighted", "hard", "average"])
def test_equals_the_definition(mode):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 4, 6, 5)).astype("float32")
    logits = rng.normal(size=(3, 4, 6, 4)).astype("float32") * 3
    labels = rng.integers(0, 3, (3, 4, 6))  # Class 3 is in no image, but is predicted.
    labels[0, 0] = 255
    labels[1][labels[1] == 2] = 0
    centers, center_labels = region_centers(
        tf.constant(features), tf.constant(logits), labels, mode=mode
    )
    expected = centers_of(features, logits, labels, mode)
    for row, (center, goal) in enumerate(zip(centers.numpy(), expected, strict=True)):
        assert center_labels[row] == (-1 if goal is None else row % 4)
        if goal is not None:
            np.testing.assert_allclose(center, goal, rtol=1e-4, atol=1e-5)


def test_weights_by_hand():
    # Two pixels of class 0: one correct with confidence 0.75, one wrong; weights 1 : 4.
    features = np.array([[1.0, 0.0], [0.0, 1.0]], "float32").reshape((1, 1, 2, 2))
    logits = np.array([[np.log(3.0), 0.0], [0.0, 1.0]], "float32").reshape((1, 1, 2, 2))
    centers, labels = region_centers(features, logits, np.zeros((1, 1, 2), int))
    np.testing.assert_allclose(centers[0], np.array([0.25, 1.0]) / np.hypot(0.25, 1), rtol=1e-6)
    np.testing.assert_array_equal(labels, [0, -1])


def test_a_confident_network_still_has_centers():
    # Softmax rounds to exactly 1, its complement does not.
    features = np.array([[3.0, 4.0]], "float32").reshape((1, 1, 1, 2))
    logits = np.array([[40.0, 0.0]], "float32").reshape((1, 1, 1, 2))
    centers, labels = region_centers(features, logits, np.zeros((1, 1, 1), int))
    np.testing.assert_allclose(centers[0], [0.6, 0.8], rtol=1e-6)
    assert labels[0] == 0


def test_gradient_to_features_only():
    rng = np.random.default_rng(1)
    features = tf.constant(rng.normal(size=(1, 2, 3, 4)), "float32")
    logits = tf.constant(rng.normal(size=(1, 2, 3, 2)), "float32")
    with tf.GradientTape() as tape:
        tape.watch([features, logits])
        centers, _ = region_centers(features, logits, np.array([[[0, 1, 1], [0, 0, 255]]]))
        loss = tf.reduce_sum(centers * tf.constant(rng.normal(size=(2, 4)), "float32"))
    to_features, to_logits = tape.gradient(loss, [features, logits])
    assert to_logits is None
    assert np.all(np.abs(to_features[0, :, :2]).sum(-1) > 0)
    assert not np.any(to_features[0, 1, 2])  # The ignored pixel.


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode='median'"):
        region_centers(
            np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1)), mode="median"
        )
