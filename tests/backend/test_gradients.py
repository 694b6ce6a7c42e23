import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kseg.backend.gradients import upstream_of


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_gradient_of_the_first_output_reaches_the_inputs(outputs):
    @ops.custom_gradient
    def triple(x):
        def gradient(*arguments, upstream=None):
            return 3.0 * upstream_of(arguments, upstream)

        return ((3.0 * x, ops.sum(x)) if outputs == 2 else 3.0 * x), gradient

    x = tf.constant([1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = triple(x)
        loss = tf.reduce_sum(tf.constant([5.0, 7.0]) * (y[0] if outputs == 2 else y))
    np.testing.assert_array_equal(tape.gradient(loss, x), [15.0, 21.0])


@pytest.mark.parametrize(
    "arguments, upstream",
    [
        ((1.0,), None),  # TensorFlow and JAX, one output.
        ((1.0, 2.0), None),  # TensorFlow, two outputs.
        (((1.0, 2.0),), None),  # JAX, two outputs.
        ((), 1.0),  # PyTorch, one output.
        ((), (1.0, 2.0)),  # PyTorch, two outputs.
    ],
)
def test_all_ways_to_pass_it(arguments, upstream):
    assert upstream_of(arguments, upstream) == 1.0
