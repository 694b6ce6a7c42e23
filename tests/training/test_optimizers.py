import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.config import schema
from kseg.training.build import build_optimizer, build_schedule
from kseg.training.optimizers import SGD, AdamW
from kseg.training.schedules import CosineSchedule, PolynomialSchedule, WarmRestarts


def variables():
    return [
        keras.Variable(np.array([[1.0, -2.0]], "float32"), name="kernel"),
        keras.Variable(np.array([3.0, 4.0], "float32"), name="bias"),
    ]


GRADIENTS = [[[[0.5, 1.0]], [1.0, -1.0]], [[[-1.0, 0.25]], [0.5, 2.0]], [[[0.1, 0.2]], [0.3, 0.4]]]


def apply(optimizer):
    weights = variables()

    @tf.function(autograph=False)
    def step(kernel, bias):
        optimizer.apply([kernel, bias], weights)

    optimizer.build(weights)
    for gradients in GRADIENTS:
        step(*(tf.constant(g) for g in gradients))
    return [w.numpy() for w in weights]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_by_hand(momentum, nesterov):
    optimizer = SGD(0.1, momentum=momentum, nesterov=nesterov and momentum > 0, decay_rate=0.01)
    weights = [v.numpy().astype("float64") for v in variables()]
    velocity = [np.zeros_like(w) for w in weights]
    for gradients in GRADIENTS:
        for i, decay in enumerate((0.01, 0.0)):  # None on the bias.
            g = gradients[i] + decay * weights[i]
            velocity[i] = momentum * velocity[i] - 0.1 * g
            look_ahead = optimizer.nesterov
            weights[i] += momentum * velocity[i] - 0.1 * g if look_ahead else velocity[i]
    for got, expected in zip(apply(optimizer), weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_adamw_by_hand():
    optimizer = AdamW(0.1, beta_1=0.8, beta_2=0.9, epsilon=1e-6, decay_rate=0.05)
    weights = [v.numpy().astype("float64") for v in variables()]
    m, v = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for t, gradients in enumerate(GRADIENTS, start=1):
        for i, decay in enumerate((0.05, 0.0)):
            g = np.array(gradients[i])
            weights[i] -= 0.1 * decay * weights[i]
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = 0.9 * v[i] + 0.1 * g**2
            rate = 0.1 * np.sqrt(1 - 0.9**t) / (1 - 0.8**t)
            weights[i] -= rate * m[i] / (np.sqrt(v[i]) + 1e-6)
    for got, expected in zip(apply(optimizer), weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_without_decay_sgd_is_keras_own():
    for got, expected in zip(
        apply(SGD(0.1, momentum=0.9)), apply(keras.optimizers.SGD(0.1, momentum=0.9)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_polynomial_schedule_by_hand():
    schedule = PolynomialSchedule(0.1, 100, power=0.9, warmup_steps=10, end_learning_rate=0.01)
    for step, warmup in ((0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0), (99, 1.0)):
        expected = (0.01 + 0.09 * (1 - step / 100) ** 0.9) * warmup
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)
    np.testing.assert_allclose(schedule(150), 0.01, rtol=1e-6)
    copy = PolynomialSchedule.from_config(schedule.get_config())
    np.testing.assert_allclose(copy(50), schedule(50))


def test_a_config_builds_what_it_says():
    optimizer = build_optimizer(
        schema.SGD(name="sgd", learning_rate=0.2, momentum=0.8, weight_decay=1e-3),
        schema.Poly(name="poly", power=2.0),
        steps=10,
    )
    assert isinstance(optimizer, SGD)
    assert (optimizer.momentum, optimizer.decay_rate) == (0.8, 1e-3)
    np.testing.assert_allclose(optimizer.learning_rate, 0.2)
    optimizer = build_optimizer(
        schema.AdamW(name="adamw", beta_2=0.95), schema.Linear(name="linear"), steps=10
    )
    assert isinstance(optimizer, AdamW)
    assert optimizer.beta_2 == 0.95
    optimizer.iterations.assign(5)
    np.testing.assert_allclose(optimizer.learning_rate, 3e-5, rtol=1e-5)


def test_tables_of_position_biases_do_not_decay():
    table, kernel = (
        keras.Variable(np.ones((3, 2), "float32"), name=name)
        for name in ("attn_relative_position_bias_table", "kernel")
    )
    optimizer = SGD(0.1, momentum=0.0, decay_rate=0.5)
    optimizer.build([table, kernel])
    optimizer.apply([tf.zeros((3, 2))] * 2, [table, kernel])
    np.testing.assert_allclose(table.numpy(), 1.0)
    np.testing.assert_allclose(kernel.numpy(), 0.95, rtol=1e-6)


@pytest.mark.parametrize("end", [0.0, 0.05, 0.1])
def test_a_warm_up_begins_near_zero_whatever_the_end(end):
    """`(end + (peak - end) (1 - t / T)^p) min(1, (t + 1) / warmup)`, as the docstring says."""
    schedule = PolynomialSchedule(0.1, 20, power=2.0, warmup_steps=5, end_learning_rate=end)
    for t in range(25):
        decayed = end + (0.1 - end) * max(1 - t / 20, 0) ** 2
        assert float(schedule(t)) == pytest.approx(decayed * min(1, (t + 1) / 5), rel=1e-5)


def test_the_cosine_schedule_by_hand():
    schedule = build_schedule(
        schema.Cosine(name="cosine", warmup_steps=4, end_learning_rate=0.02),
        learning_rate=0.1,
        steps=20,
    )
    for t, share in ((0, 1.0), (5, (1 + math.sqrt(0.5)) / 2), (10, 0.5), (20, 0.0), (25, 0.0)):
        expected = (0.02 + 0.08 * share) * min(1, (t + 1) / 4)
        assert float(schedule(t)) == pytest.approx(expected, rel=1e-5), t
    copy = CosineSchedule.from_config(schedule.get_config())
    assert float(copy(7)) == float(schedule(7))


@pytest.mark.parametrize("name", ["poly", "linear", "cosine"])
def test_restarts_begin_at_the_peak_and_leave_the_steps_before_as_they_were(name):
    kind = {"poly": schema.Poly, "linear": schema.Linear, "cosine": schema.Cosine}[name]
    section = kind(name=name, warmup_steps=3)
    build = {"learning_rate": 0.1, "steps": 10}
    plain = build_schedule(section, **build)
    schedule = build_schedule(section, **build, restarts=[5, 20])
    assert isinstance(schedule, WarmRestarts)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    without_warmup = kind(name=name)
    for start, steps in ((10, 5), (15, 20)):
        cycle = build_schedule(without_warmup, learning_rate=0.1, steps=steps)
        assert float(schedule(start)) == pytest.approx(0.1)
        for t in range(steps):
            assert float(schedule(start + t)) == float(cycle(t)) == float(copy(start + t))
    assert [float(schedule(t)) for t in range(10)] == [float(plain(t)) for t in range(10)]
    assert float(schedule(40)) == 0.0
