"""Functions with few passes of Grappler: which passes, forms of batches, results."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from kseg.training.graph_passes import FewPasses


def test_a_form_is_traced_once():
    step = few_passes(lambda batch: tf.reduce_sum(batch[0]) if batch[1] is None else batch[1])
    assert float(step((tf.ones(2), None))) == float(step((tf.ones(2) / 2, None))) * 2 == 2.0
    assert step.experimental_get_tracing_count() == 1
    assert float(step((tf.ones(3), None))) == 3.0
    assert float(step((tf.ones(3), tf.constant(5.0)))) == 5.0
    assert step.experimental_get_tracing_count() == 3


def few_passes(function):
    return FewPasses(tf.function(function, autograph=False))


def test_the_passes_are_those_of_the_calls_alone():
    before = context.context().function_call_options
    step = few_passes(lambda batch: tf.ensure_shape(tf.boolean_mask(batch, batch > 0), [2]))
    assert step(tf.constant([1, 0, 3])).numpy().tolist() == [1, 3]
    with pytest.raises(tf.errors.InvalidArgumentError, match="shape"):
        step(tf.constant([1, 2, 3]))
    assert context.context().function_call_options is before


def test_few_passes_are_made():
    def function(x):
        constants = tf.constant(2.0) * tf.range(3.0)
        return tf.nn.relu(tf.nn.bias_add(tf.matmul(x, x), constants))

    def operations(step):
        context.context().enable_run_metadata()
        try:
            step(tf.ones((3, 3)))
            graphs = context.context().export_run_metadata().partition_graphs
        finally:
            context.context().disable_run_metadata()
        return {node.op for graph in graphs for node in graph.node}

    few, default = operations(few_passes(function)), operations(tf.function(function))
    assert "Range" in few and "Range" not in default  # Constants are folded by default.
    fused = [name for name in few & default if "FusedMatMul" in name]
    assert fused and "Relu" not in few | default


def test_variables_change_and_losses_are_those_of_a_plain_function():
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
        return losses, layer.get_weights()

    few, plain = run(few_passes), run(lambda step: tf.function(step, autograph=False))
    np.testing.assert_allclose(few[0], plain[0], rtol=1e-6)
    for found, expected in zip(few[1], plain[1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert few[0][2] < few[0][0]


def test_it_is_part_of_other_graphs_and_runs_eagerly():
    step = few_passes(lambda batch: batch + 1)
    assert int(tf.function(step)(tf.constant(1))) == 2
    tf.config.run_functions_eagerly(True)
    try:
        assert int(step(tf.constant(1))) == 2
    finally:
        tf.config.run_functions_eagerly(False)
