import functools

import numpy as np
import pytest
import tensorflow as tf

from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.reduction import global_mean, global_ratio


def loop(labels, logits, threshold, min_kept):
    """The definition, by sorting."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    valid = labels < logits.shape[-1]
    truth = np.take_along_axis(p, np.where(valid, labels, 0)[..., None], -1)[..., 0][valid]
    if len(truth) > min_kept:
        limit = max(threshold, np.sort(truth)[min_kept - 1]) if min_kept else threshold
        truth = truth[truth <= limit]
    return -np.log(truth).mean() if len(truth) else 0.0, len(truth)


def example(seed=0, size=(2, 12, 20), num_classes=4, scale=3.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, size)
    labels[rng.random(size) < 0.2] = 255
    logits = rng.normal(size=(*size, num_classes)) + scale * np.eye(num_classes)[labels % 4]
    return labels, logits.astype("float32")


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("min_kept", [0, 1, 50, 300, 10_000])
def test_equals_the_definition(threshold, min_kept):
    for seed in range(3):
        labels, logits = example(seed)
        loss, kept = ohem_cross_entropy(labels, logits, threshold=threshold, min_kept=min_kept)
        expected, count = loop(labels, logits.astype("float64"), threshold, min_kept)
        assert int(np.sum(kept)) == count
        np.testing.assert_allclose(global_mean(loss, kept), expected, rtol=1e-5)


def test_class_weights_weigh_the_pixels_that_are_kept():
    labels, logits = example()
    weights = np.array([0.5, 1.0, 0.0, 3.0])
    plain, kept = ohem_cross_entropy(labels, logits, threshold=0.2, min_kept=99)
    loss = ohem_cross_entropy(labels, logits, threshold=0.2, min_kept=99, class_weights=weights)
    own = np.where(labels < 4, weights[labels % 4], 0) * np.asarray(kept)
    assert own.any() and not own.all()
    expected = (own * np.asarray(plain)).sum() / own.sum()
    np.testing.assert_allclose(global_ratio(*loss), expected, rtol=1e-5)


def test_by_hand():
    p = np.array([0.2, 0.9, 0.8, 0.95, 0.5])  # Of class 0, which all are but the last.
    logits = np.stack([np.log(p), np.log(1 - p)], -1)[None, None].astype("float32")
    labels = np.array([[[0, 0, 0, 0, 255]]])
    for min_kept, expected in ((1, [1, 0, 0, 0, 0]), (2, [1, 0, 1, 0, 0]), (3, [1, 1, 1, 0, 0])):
        _, kept = ohem_cross_entropy(labels, logits, min_kept=min_kept)
        np.testing.assert_array_equal(kept[0, 0], expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_improbable_pixels_are_told_apart(jit_compile):
    p = np.array([1e-12, 1e-30, 1e-14, 1e-4, 0.9])
    logits = np.stack([np.log(p), np.log1p(-p)], -1)[None, None].astype("float32")
    labels = np.zeros((1, 1, 5), "int32")
    for min_kept, expected in ((1, [0, 1, 0, 0, 0]), (2, [0, 1, 1, 0, 0]), (4, [1, 1, 1, 1, 0])):
        keep = functools.partial(ohem_cross_entropy, threshold=0.0, min_kept=min_kept)
        _, kept = tf.function(keep, jit_compile=jit_compile)(labels, logits)
        np.testing.assert_array_equal(kept[0, 0], expected)


def test_a_nan_is_not_hidden():
    labels, logits = example()
    labels[0, 0, 0], logits[0, 0, 0] = 0, np.nan
    assert np.isnan(global_mean(*ohem_cross_entropy(labels, logits, min_kept=60)))


def test_ties_are_all_kept():
    labels = np.zeros((1, 4, 4), int)
    logits = np.zeros((1, 4, 4, 2), "float32")
    logits[..., 0] = 3.0
    assert np.sum(ohem_cross_entropy(labels, logits, min_kept=3)[1]) == 16


@pytest.mark.parametrize("label", [255, -1])
def test_nothing_valid_is_no_loss(label):
    logits = np.ones((1, 3, 3, 2), "float32")
    loss, kept = ohem_cross_entropy(np.full((1, 3, 3), label), logits)
    assert float(global_mean(loss, kept)) == 0


def test_gradient_is_that_of_the_mean_over_kept_pixels():
    labels, logits = example()
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss, kept = ohem_cross_entropy(labels, logits, min_kept=60)
        mean = global_mean(loss, kept)
    gradient = tape.gradient(mean, logits).numpy()
    p = tf.nn.softmax(logits).numpy()
    expected = p - np.eye(4)[labels % 4]
    expected *= np.asarray(kept)[..., None] / np.sum(kept)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits(dtype):
    labels, logits = example()
    loss, kept = ohem_cross_entropy(labels, tf.cast(logits, dtype), min_kept=60)
    assert loss.dtype == "float32"
    assert np.sum(kept) >= 60


def test_two_replicas_keep_what_one_keeps(mirrored):
    labels, logits = example(size=(4, 12, 20))
    expected = loop(labels, logits.astype("float64"), 0.5, 300)[0]
    halves = mirrored.experimental_distribute_values_from_function(
        lambda c: (
            tf.constant(labels)[2 * c.replica_id_in_sync_group :][:2],
            tf.constant(logits)[2 * c.replica_id_in_sync_group :][:2],
        )
    )

    @tf.function(autograph=False)
    def run(halves):
        def share(half):
            return global_mean(*ohem_cross_entropy(*half, threshold=0.5, min_kept=300))

        return mirrored.experimental_local_results(mirrored.run(share, (halves,)))

    np.testing.assert_allclose(sum(run(halves)), expected, rtol=1e-5)
