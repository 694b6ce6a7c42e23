"""The training step with few passes of Grappler: order of tensors, forms of batches, bits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.training.distribution import make_reproducible
from kseg.training.graph_passes import CompiledStep


def test_tensors_keep_their_names_in_any_order():
    step = CompiledStep(lambda batch: {"z": batch["z"] + 0.0, "b": batch["b"] * 2.0, "a": 7.0})
    found = step({"z": tf.constant(1.0), "b": np.float32(3.0), "a": None})
    assert {name: float(value) for name, value in found.items()} == {"z": 1.0, "b": 6.0, "a": 7.0}


def test_a_form_is_traced_once():
    step = CompiledStep(lambda batch: tf.reduce_sum(batch[0]) if batch[1] is None else batch[1])
    assert float(step((tf.ones(2), None))) == float(step((tf.ones(2) / 2, None))) * 2 == 2.0
    assert step.experimental_get_tracing_count() == 1
    assert float(step((tf.ones(3), None))) == 3.0
    assert float(step((tf.ones(3), tf.constant(5.0)))) == 5.0
    assert step.experimental_get_tracing_count() == 3


def test_variables_change_and_losses_have_the_bits_of_a_plain_function():
    def run(compiled):
        keras.utils.set_random_seed(0)
        layer = keras.layers.Dense(4)
        layer.build((None, 3))
        x = tf.constant(np.random.default_rng(0).standard_normal((8, 3)), "float32")

        def step(batch):
            values = [variable.value for variable in layer.trainable_variables]
            loss = tf.reduce_mean(layer(batch / 3.0) ** 2) / 7.0
            for value, gradient in zip(values, tf.gradients(loss, values), strict=True):
                value.assign_sub(0.1 * gradient)
            return loss

        step = compiled(step)
        losses = [float(step(x)) for _ in range(3)]
        return losses, [weight.tobytes() for weight in layer.get_weights()]

    make_reproducible()  # As training steps, of which TensorFlow would reorder sums.
    few = run(CompiledStep)
    assert few == run(lambda step: tf.function(step, autograph=False))
    assert few[0][2] < few[0][0]


def test_it_is_part_of_other_graphs_and_runs_eagerly():
    step = CompiledStep(lambda batch: batch + 1)
    assert int(tf.function(step)(tf.constant(1))) == 2
    tf.config.run_functions_eagerly(True)
    try:
        assert int(step(tf.constant(1))) == 2
    finally:
        tf.config.run_functions_eagerly(False)
    assert step.experimental_get_tracing_count() == 0


def test_an_error_of_an_operation_reaches_the_caller():
    step = CompiledStep(lambda batch: tf.ensure_shape(tf.boolean_mask(batch, batch > 0), [2]))
    assert step(tf.constant([1, 0, 3])).numpy().tolist() == [1, 3]
    with pytest.raises(tf.errors.InvalidArgumentError, match="shape"):
        step(tf.constant([1, 2, 3]))
