"""Update of a trainer's averaged weights, in replica context."""

import tensorflow as tf

from kseg.training import ema


def update_averages(averaged, segmenter, step, decay):
    """Moves the weights of a model towards those of another.

    Args:
        averaged, segmenter: models of the same architecture.
        step: function to an int scalar, the number of optimizer steps so far, this one included.
        decay: float in [0, 1), see `kseg.training.ema`.
    """
    pairs = [
        (average.value, weight.value)
        for average, weight in zip(averaged.weights, segmenter.weights, strict=True)
    ]
    # Per-replica statistics are averaged on each replica, all other weights jointly.
    own = [average.synchronization == tf.VariableSynchronization.ON_READ for average, _ in pairs]

    def update(average, weight, decay):
        value = ema.averaged(average, weight, decay) if weight.dtype.is_floating else weight
        average.assign(value)

    def update_shared(strategy):
        now = ema.decay_at(step(), decay)
        for (average, weight), alone in zip(pairs, own, strict=True):
            if not alone:
                strategy.extended.update(average, update, args=(weight, now), group=False)

    tf.distribute.get_replica_context().merge_call(update_shared)
    now = ema.decay_at(step(), decay)
    for (average, weight), alone in zip(pairs, own, strict=True):
        if alone:
            update(average, weight, now)
