"""Gradients whose sums have one order."""

import tensorflow as tf


def with_gradients(function, variables):
    """Calls a function and differentiates its first output.

    In a graph every sum of gradients is a chain of sums of two. `tf.GradientTape` would make one
    `AddN` of all gradients that meet at a tensor. If the step's memory exceeds 80 % of what
    TensorFlow takes for the device's (on a CPU 256 MiB, whatever the machine has), Grappler's
    memory optimizer turns an `AddN` of more than two into a variable to which each term is added
    when it arrives: the rounding then depends on the timing of the threads. The pass has no
    public switch. Sums of two are left alone, and commute.

    Args:
        function: function without arguments to a tuple, whose first item is a float scalar.
        variables: list of `tf.Variable` or of tensors.

    Returns:
        `(outputs, gradients)`: what the function gave, and a list with a tensor for each variable,
        or None where the scalar does not depend on it.
    """
    if tf.executing_eagerly():
        with tf.GradientTape() as tape:
            tape.watch(variables)
            outputs = function()
        return outputs, tape.gradient(outputs[0], variables)
    outputs = function()
    in_pairs = tf.AggregationMethod.EXPERIMENTAL_TREE
    return outputs, tf.gradients(outputs[0], variables, aggregation_method=in_pairs)
