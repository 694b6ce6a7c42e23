"""Checks of every loss on logits: its definition, finite differences, two replicas."""

import numpy as np
import tensorflow as tf


def value_and_gradient(loss, labels, logits):
    """`(value, gradient)` of a function of (labels, logits), as arrays."""
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits)
    return value.numpy(), tape.gradient(value, logits).numpy()


def assert_is(definition, loss, labels, logits):
    """Checks the value and gradient of a loss against a float64 function of (labels, logits)."""
    value, gradient = value_and_gradient(loss, labels, logits)
    np.testing.assert_allclose(value, definition(labels, logits), rtol=1e-5)
    indices, expected = slopes(definition, labels, logits)
    np.testing.assert_allclose(gradient[indices], expected, rtol=1e-3, atol=1e-7)
    assert not gradient[(labels < 0) | (labels >= logits.shape[-1])].any()


def assert_two_replicas_are_one(strategy, loss, labels, logits):
    """Checks the value and gradient of a loss on two replicas against the whole batch on one."""
    value, gradient = of_two_replicas(strategy, loss, labels, logits)
    expected, expected_gradient = value_and_gradient(loss, labels, logits)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-8)


def of_two_replicas(strategy, loss, labels, logits):
    """`(value, gradient)` of the whole batch, each half of it on a replica."""
    half = len(labels) // 2

    def own(context):
        rows = slice(half * context.replica_id_in_sync_group, None)
        return tf.constant(labels[rows][:half]), tf.constant(logits[rows][:half])

    @tf.function(autograph=False)
    def run(halves):
        def share(half):
            with tf.GradientTape() as tape:
                tape.watch(half[1])
                value = loss(*half)
            return value, tape.gradient(value, half[1])

        result = strategy.run(share, (halves,))
        return [strategy.experimental_local_results(x) for x in result]

    values, gradients = run(strategy.experimental_distribute_values_from_function(own))
    return sum(float(value) for value in values), np.concatenate(gradients)


def slopes(definition, labels, logits, count=20, step=1e-6):
    """`(indices, derivatives)` of a float64 function by central differences, at random logits."""
    rng = np.random.default_rng(0)
    indices = [tuple(rng.integers(0, n) for n in logits.shape) for _ in range(count)]
    derivatives = []
    for index in indices:
        moved = []
        for sign in (-1, 1):
            x = logits.astype("float64")
            x[index] += sign * step
            moved.append(definition(labels, x))
        derivatives.append((moved[1] - moved[0]) / (2 * step))
    return tuple(np.array(indices).T), np.array(derivatives)
