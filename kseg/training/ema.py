"""Exponential moving averages of weights, as pure functions for any Keras backend."""

from keras import ops


def decay_at(step, decay):
    """Returns the decay at a step: low at first, so that the average forgets the initial weights.

    `min(decay, (1 + n) / (10 + n))` with n = step - 2, as in TensorFlow's
    `tf.train.ExponentialMovingAverage` after n updates. It is 0 at the first step, whose weights
    become the initial average, and reaches 0.99 after 900 steps and 0.999 after 9,000.

    Args:
        step: int >= 1 or int tensor, the number of optimizer steps so far, this one included.
        decay: float in [0, 1).

    Returns:
        float32 scalar.
    """
    step = ops.cast(step, "float32")
    return ops.minimum(decay, (step - 1.0) / (step + 8.0))


def averaged(average, value, decay):
    """Returns the average after a step: `average - (1 - decay) * (average - value)`.

    Args:
        average, value: float tensors of one shape: the average before the step, and the weight
            after it.
        decay: float scalar.

    Returns:
        float tensor of that shape.
    """
    return average - (1.0 - decay) * (average - value)
