"""Gradients of a batch that is too large for one pass, computed in parts.

The loss and its objectives see the outputs of the whole batch at once, so that means over pixels,
hard-pixel mining, contrast and memory bank entries are the same as in a single pass. Each part runs
twice: first only forward; then, once the gradient with respect to the outputs is known, forward and
backward.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
RepL4NLP 2021 ("GradCache"), here for dense outputs, batch norms and dropout.
"""

import tensorflow as tf

from kseg.backend import replicas
from kseg.training.gradients import with_gradients


def accumulated_gradients(segmenter, images, loss_of, variables, count):
    """Differentiates a loss of a batch's outputs, using the memory of only a part of the batch.

    Batch norms normalize by the statistics of each part and update their moving statistics once per
    part; dropout and stochastic depth draw separately for each part. Both passes of a part use the
    same statistics and draws, so the gradient is exact.

    Args:
        segmenter: keras model from images to a dict.
        images: tensor `(batch, height, width, channels)`, of a static batch.
        loss_of: function of the outputs of the whole batch to a tuple, whose first item is a
            float scalar; it may also depend on the variables, as weight regularizers do.
        variables: list of `tf.Variable`.
        count: int > 1, number of parts; must divide the batch.

    Returns:
        `(found, gradients)`: the result of `loss_of`, and a list with a tensor for each variable,
        or None where the scalar does not depend on it.

    Raises:
        ValueError: if the batch is not static or not a multiple of `count`, or a layer adds a loss
            in a call.
    """
    size = images.shape[0]
    if size is None or size % count:
        raise ValueError(
            f"A batch must be divisible into {count} parts of one size. Received: images of shape "
            f"{tuple(images.shape)}. Use a multiple of {count}, or drop_remainder=True"
        )
    parts = tf.reshape(images, [count, size // count, *images.shape[1:]])
    # Replicas cannot communicate inside a loop.
    unrolled = tf.executing_eagerly() or replicas.num_replicas() > 1
    forward = _unrolled_forward if unrolled else _looped_forward
    backward = _unrolled_backward if unrolled else _looped_backward

    state = _state(segmenter)
    before = [tf.identity(variable.value) for variable in state]
    outputs = forward(segmenter, parts)
    for variable, value in zip(state, before, strict=True):
        variable.assign(value)
    if any(layer._losses for layer in segmenter._flatten_layers()):
        raise ValueError(
            "A batch in parts takes no activity regularizers and no losses that layers add in a "
            f"call. Received: {count} parts. Use 1, or regularize weights"
        )
    # Cut off from the variables, so that these are reached by weight regularizers alone.
    outputs = {key: tf.stop_gradient(output) for key, output in outputs.items()}
    keys = list(outputs)
    found, upstream = with_gradients(lambda: loss_of(outputs), [*outputs.values(), *variables])
    upstream, direct = upstream[: len(keys)], upstream[len(keys) :]
    # Constants of the second pass: in one graph they depend on the variables, too.
    upstream = {
        key: tf.stop_gradient(tf.reshape(gradient, [count, size // count, *gradient.shape[1:]]))
        for key, gradient in zip(keys, upstream, strict=True)
        if gradient is not None
    }
    gradients = backward(segmenter, parts, upstream, variables)
    return found, list(map(_sum, gradients, direct))


def _state(segmenter):
    """Returns the variables that a forward pass may change: moving statistics, generator states."""
    layers = segmenter._flatten_layers()
    trained = {id(variable) for layer in layers for variable in layer._trainable_variables}
    return [variable for variable in segmenter.variables if id(variable) not in trained]


def _part_gradients(segmenter, images, upstream, variables):
    """Computes the gradients of one part from those with respect to its outputs."""

    def surrogate():
        outputs = segmenter(images, training=True)
        total = 0.0
        for key, gradient in upstream.items():
            # Exact: the gradient of the product is cast back to the dtype that it came from.
            total += tf.reduce_sum(tf.cast(outputs[key], "float32") * tf.cast(gradient, "float32"))
        return (total,)

    return with_gradients(surrogate, variables)[1]


def _unrolled_forward(segmenter, parts):
    found = []
    for part in tf.unstack(parts):
        # Forces sequential execution; otherwise a graph may compute all parts at once.
        with tf.control_dependencies(list(found[-1].values()) if found else []):
            part = tf.identity(part)
        found.append(segmenter(part, training=True))
    return {key: tf.concat([outputs[key] for outputs in found], 0) for key in found[0]}


def _unrolled_backward(segmenter, parts, upstream, variables):
    total = None
    for index, part in enumerate(tf.unstack(parts)):
        with tf.control_dependencies([g for g in total or () if g is not None]):
            part = tf.identity(part)
        mine = {key: gradient[index] for key, gradient in upstream.items()}
        gradients = _part_gradients(segmenter, part, mine, variables)
        total = gradients if total is None else list(map(_sum, total, gradients))
    return total


def _sum(a, b):
    return a if b is None else b if a is None else a + b


def _looped_forward(segmenter, parts):
    shapes = {}

    def body(index, arrays):
        outputs = segmenter(parts[index], training=True)
        shapes.update({key: output.shape for key, output in outputs.items()})
        return index + 1, {key: array.write(index, outputs[key]) for key, array in arrays.items()}

    count = parts.shape[0]
    arrays = {
        key: tf.TensorArray(tf.as_dtype(output.dtype), size=count)
        for key, output in segmenter.output.items()
    }
    _, arrays = tf.while_loop(
        lambda index, arrays: index < count, body, (0, arrays), parallel_iterations=1
    )
    outputs = {}
    for key, array in arrays.items():
        stacked = tf.ensure_shape(array.stack(), [count, *shapes[key]])
        outputs[key] = tf.reshape(stacked, [count * shapes[key][0], *shapes[key][1:]])
    return outputs


def _looped_backward(segmenter, parts, upstream, variables):
    reached = []

    def body(index, total):
        mine = {key: gradient[index] for key, gradient in upstream.items()}
        gradients = _part_gradients(segmenter, parts[index], mine, variables)
        reached[:] = [gradient is not None for gradient in gradients]
        pairs = zip(total, gradients, strict=True)
        return index + 1, [a if b is None else a + b for a, b in pairs]

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    count = parts.shape[0]
    _, total = tf.while_loop(
        lambda index, total: index < count, body, (0, zeros), parallel_iterations=1
    )
    return [gradient if here else None for gradient, here in zip(total, reached, strict=True)]
