import itertools

import numpy as np
import pytest
import tensorflow as tf

from kseg.losses.lovasz import lovasz_softmax


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def loop(labels, logits, class_weights=None):
    """Eq. 9 of the paper: the Jaccard loss of growing sets of errors."""
    num_classes = logits.shape[-1]
    valid = (labels >= 0) & (labels < num_classes)
    p, y = softmax(logits.astype("float64"))[valid], labels[valid]
    losses, weights = [], []
    for n in range(num_classes):
        own = y == n
        if not own.any():
            continue
        error = np.where(own, 1 - p[:, n], p[:, n])
        order = np.argsort(-error)

        def jaccard_loss(wrong, own=own):
            result = own.copy()
            result[wrong] = ~result[wrong]
            return 1 - (own & result).sum() / (own | result).sum()

        before, total = 0.0, 0.0
        for k in range(len(order)):
            after = jaccard_loss(order[: k + 1])
            total += error[order[k]] * (after - before)
            before = after
        losses.append(total)
        weights.append(1.0 if class_weights is None else class_weights[n])
    return np.average(losses, weights=weights) if any(weights) else 0.0


def example(seed=0, size=(2, 5, 6), num_classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes - 1, size)  # The last class is absent.
    labels[rng.random(size) < 0.2] = 255
    return labels, rng.normal(size=(*size, num_classes)).astype("float32")


def test_equals_the_definition():
    for seed in range(4):
        labels, logits = example(seed)
        np.testing.assert_allclose(lovasz_softmax(labels, logits), loop(labels, logits), rtol=1e-5)


def test_class_weights():
    labels, logits = example()
    for weights in ([0.5, 0.0, 2.0, 9.0], [0.0, 0.0, 0.0, 1.0]):  # The last class is absent.
        loss = lovasz_softmax(labels, logits, class_weights=weights)
        np.testing.assert_allclose(loss, loop(labels, logits, weights), rtol=1e-5)


def test_hard_predictions_yield_the_jaccard_loss():
    labels = np.array([[[0, 0, 0, 1, 1, 255]]])
    for guess in itertools.product((0, 1), repeat=6):
        logits = 200.0 * np.eye(2, dtype="float32")[np.array(guess)][None, None]
        guess, y = np.array(guess)[:5], labels[0, 0, :5]
        iou = [((guess == n) & (y == n)).sum() / ((guess == n) | (y == n)).sum() for n in (0, 1)]
        np.testing.assert_allclose(lovasz_softmax(labels, logits), 1 - np.mean(iou), atol=1e-6)


def test_gradient_is_that_of_the_definition():
    labels, logits = example()
    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = lovasz_softmax(labels, x)
    gradient = tape.gradient(loss, x).numpy()
    rng = np.random.default_rng(0)
    for _ in range(20):
        index = tuple(rng.integers(0, n) for n in logits.shape)
        moved = []
        for step in (-1e-6, 1e-6):
            y = logits.astype("float64")
            y[index] += step
            moved.append(loop(labels, y))
        expected = (moved[1] - moved[0]) / 2e-6
        np.testing.assert_allclose(gradient[index], expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_valid_and_half_precision(dtype):
    labels, logits = example()
    nothing = lovasz_softmax(np.full_like(labels, 255), tf.cast(logits, dtype))
    assert float(nothing) == 0
    loss = lovasz_softmax(labels, tf.cast(logits, dtype))
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, loop(labels, logits), rtol=1e-2)


def test_logits_are_resized_and_graphs_agree():
    labels = np.random.default_rng(0).integers(0, 150, (1, 16, 24))
    logits = np.random.default_rng(1).normal(size=(1, 4, 6, 150)).astype("float32")
    expected = lovasz_softmax(labels, logits)
    assert np.isfinite(expected)
    for jit_compile in (False, True):
        compiled = tf.function(lovasz_softmax, jit_compile=jit_compile)
        np.testing.assert_allclose(compiled(labels, logits), expected, rtol=1e-5)


def test_equal_errors_and_a_single_class():
    # Errors of 0.5 at all four pixels: in any order, the loss is that of all pixels being wrong.
    labels, logits = np.array([[[0, 0, 1, 255, 0]]]), np.zeros((1, 1, 5, 2), "float32")
    np.testing.assert_allclose(lovasz_softmax(labels, logits), 0.5, rtol=1e-6)
    # With a single class, the union is the whole image: the loss is the mean error.
    labels, logits = np.zeros((1, 2, 3), int), example(size=(1, 2, 3), num_classes=2)[1]
    expected = np.mean(1 - softmax(logits)[..., 0])
    np.testing.assert_allclose(lovasz_softmax(labels, logits), expected, rtol=1e-6)


def test_the_size_of_a_batch_may_be_known_only_at_run_time():
    labels, logits = example(size=(3, 4, 5), num_classes=3)
    signature = [
        tf.TensorSpec([None, 4, 5], "int32"),
        tf.TensorSpec([None, 4, 5, 3], "float32"),
    ]
    compute = tf.function(lovasz_softmax, input_signature=signature)
    found = compute(tf.constant(labels, "int32"), tf.constant(logits))
    np.testing.assert_allclose(found, lovasz_softmax(labels, logits), rtol=1e-6)


def test_several_replicas_need_a_static_size(mirrored):
    signature = [tf.TensorSpec([None, 4, 4], "int32"), tf.TensorSpec([None, 4, 4, 3], "float32")]
    compute = tf.function(
        lambda *x: mirrored.run(lovasz_softmax, args=x), input_signature=signature
    )
    with pytest.raises(ValueError, match=r"static shape. Received: \(None, 4, 4\)"):
        compute.get_concrete_function()


@pytest.mark.parametrize("num_classes", [4, 20])  # 20 need two gathers.
def test_two_replicas_are_one_with_the_whole_batch(mirrored, num_classes):
    labels, logits = example(size=(4, 5, 6), num_classes=num_classes)
    logits[:, 0] = 0.0  # Equal errors, on both replicas.
    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        expected = lovasz_softmax(labels, x)
    expected_gradient = tape.gradient(expected, x)
    halves = mirrored.experimental_distribute_values_from_function(
        lambda c: (
            tf.constant(labels)[2 * c.replica_id_in_sync_group :][:2],
            x[2 * c.replica_id_in_sync_group :][:2],
        )
    )

    @tf.function(autograph=False)
    def run(halves):
        def share(half):
            with tf.GradientTape() as tape:
                tape.watch(half[1])
                loss = lovasz_softmax(*half)
            return loss, tape.gradient(loss, half[1])

        result = mirrored.run(share, (halves,))
        return [mirrored.experimental_local_results(x) for x in result]

    losses, gradients = run(halves)
    np.testing.assert_allclose(sum(losses), expected, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate(gradients), expected_gradient, atol=1e-7)
