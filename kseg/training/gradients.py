"""Gradients that are summed in a fixed order."""

import tensorflow as tf


def with_gradients(function, variables):
    """Calls a function and differentiates its first output.

    In a graph, every sum of gradients is a chain of sums of two terms. `tf.GradientTape` would
    create a single `AddN` of all gradients that meet at a tensor. If the step's memory exceeds 80 %
    of what TensorFlow assumes for the device (256 MiB on any CPU), Grappler's memory optimizer
    replaces an `AddN` of more than two terms by a variable to which each term is added as it
    arrives, so that rounding depends on the timing of threads. The pass has no public switch. Sums
    of two terms are not replaced, and addition of two terms is commutative.

    Args:
        function: function without arguments to a tuple, whose first item is a float scalar.
        variables: list of `tf.Variable` or of tensors.

    Returns:
        `(outputs, gradients)`: the outputs of the function, and a list with a tensor for each
        variable, or None where the scalar does not depend on it.
    """
    if tf.executing_eagerly():
        with tf.GradientTape() as tape:
            tape.watch(variables)
            outputs = function()
        return outputs, tape.gradient(outputs[0], variables)
    outputs = function()
    in_pairs = tf.AggregationMethod.EXPERIMENTAL_TREE
    return outputs, tf.gradients(outputs[0], variables, aggregation_method=in_pairs)
