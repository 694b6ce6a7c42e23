"""The cost of a network: parameters and floating-point operations."""

import math

import tensorflow as tf


def count_parameters(model):
    """Counts the trainable parameters of a model.

    Args:
        model: built keras model or layer.

    Returns:
        int.
    """
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def count_flops(function, *arguments):
    """Counts the floating-point operations of a TensorFlow computation, from its graph.

    A multiplication and an addition are two operations, as everywhere in TensorFlow; many papers
    count them as one. TensorFlow's profiler counts convolutions, matrix products, their gradients
    and most element-wise operations; it omits fused batch norms and resizing.

    Args:
        function: callable of tensors, such as `lambda image: model(image, training=False)`.
        *arguments: `tf.TensorSpec`s of static shapes.

    Returns:
        int.
    """
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    options = options.with_empty_output().build()
    return profiler.profile(graph, options=options).total_float_ops
