"""Application of gradients: loss scaling, accumulation, clipping, and skipped updates."""

import tensorflow as tf

from kseg.backend import replicas
from kseg.training.optimizers import FusedUpdates


def apply_gradients(optimizer, gradients, variables, *, clip_norm=None):
    """Applies the gradients of a step, in replica context.

    Under a `keras.optimizers.LossScaleOptimizer`, gradients are first divided by the scale; if any
    of them is then not finite, nothing is updated and the scale is halved. With
    `gradient_accumulation_steps` = k in the optimizer, gradients are summed, and every k-th step
    applies their mean. The norm is clipped on the gradients that are applied.

    Keras' own gradient accumulation fails in a graph under a strategy with several replicas,
    because TensorFlow allows no communication in a conditional in replica context.

    Args:
        optimizer: `keras.optimizers.Optimizer`, built.
        gradients: list of float tensors, those of the scaled loss, already summed over replicas.
        variables: list of `keras.Variable`.
        clip_norm: float or None, the limit of their global norm.

    Returns:
        `(accepted, updated)`: whether the gradients were used, and whether the variables changed;
        each is True or a bool scalar, the same on all replicas.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    scaled, every = inner is not optimizer, inner.gradient_accumulation_steps
    if not scaled and not every:
        _update(inner, gradients, variables, clip_norm)
        return True, True
    accepted = True
    if scaled:
        gradients = [gradient / optimizer.dynamic_scale.value for gradient in gradients]
        finite = [tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients]
        accepted = tf.reduce_all(tf.stack(finite))

    def merge(strategy, accepted, gradients):
        def update():
            arguments = (inner, gradients, variables, clip_norm)
            strategy.extended.call_for_each_replica(_update, args=arguments)
            return True

        def accumulate():
            strategy.extended.call_for_each_replica(_accumulate, args=(inner, gradients, variables))
            return False

        def accept():
            if scaled:
                strategy.extended.call_for_each_replica(_after_finite, args=(optimizer,))
            if not every:
                return update()
            return tf.cond((inner._iterations.value + 1) % every == 0, update, accumulate)

        def reject():
            strategy.extended.call_for_each_replica(optimizer._stateful_handle_non_finite_grads)
            return False

        return tf.cond(_first(strategy, accepted), accept, reject) if scaled else accept()

    context = tf.distribute.get_replica_context()
    return accepted, context.merge_call(merge, args=(accepted, gradients))


def run_if(condition, function, *arguments):
    """Calls a function in replica context if a condition holds.

    Args:
        condition: True, or a bool scalar that is the same on all replicas.
        function: function without a result; it may communicate with other replicas.
        *arguments: its arguments, nests of tensors.
    """
    if condition is True:
        function(*arguments)
        return

    def merge(strategy, condition, *arguments):
        def run():
            strategy.extended.call_for_each_replica(function, args=arguments)
            return True

        tf.cond(_first(strategy, condition), run, lambda: False)

    tf.distribute.get_replica_context().merge_call(merge, args=(condition, *arguments))


def _first(strategy, value):
    return strategy.experimental_local_results(value)[0]


def _slots(optimizer, variables):
    """Returns the gradient accumulators of variables."""
    optimizer._check_variables_are_known(variables)
    indices = [optimizer._get_variable_index(variable) for variable in variables]
    return [optimizer._accumulated_gradients[index].value for index in indices]


def _accumulate(optimizer, gradients, variables):
    for slot, gradient in zip(_slots(optimizer, variables), gradients, strict=True):
        slot.assign_add(gradient)
    optimizer._iterations.assign_add(1)


def _update(optimizer, gradients, variables, clip_norm):
    """Takes an optimizer step with gradients that are summed over replicas, in replica context."""
    every = optimizer.gradient_accumulation_steps
    slots = _slots(optimizer, variables) if every else []
    if every:
        gradients = [(g + slot) / every for g, slot in zip(gradients, slots, strict=True)]
    if clip_norm:
        # A `loss_scale_factor` is divided out by the optimizer, later.
        gradients, _ = tf.clip_by_global_norm(gradients, optimizer.scale_loss(clip_norm))
    count = replicas.num_replicas()
    sums_again = count > 1 and not isinstance(optimizer, FusedUpdates)
    if not (every or optimizer.ema_overwrite_frequency or sums_again):
        optimizer.apply(gradients, variables)
        return
    # The steps of `apply`, without its conditionals, and with clipping of the sum over replicas.
    if optimizer.loss_scale_factor is not None:
        gradients = [gradient / optimizer.loss_scale_factor for gradient in gradients]
    gradients = optimizer._clip_gradients(gradients)
    if sums_again:  # Keras' update sums over replicas.
        gradients = [gradient / count for gradient in gradients]
    optimizer._apply_weight_decay(variables)
    optimizer._backend_update_step(gradients, variables, optimizer.learning_rate)
    for slot in slots:
        slot.assign(tf.zeros_like(slot))
    if optimizer.use_ema:
        _average(optimizer)
    for variable in variables:
        if variable.constraint is not None:
            variable.assign(variable.constraint(variable))
    optimizer._iterations.assign_add(1)


def _average(optimizer):
    """Updates the averages of the optimizer, and with a frequency writes them over the weights."""
    variables = optimizer._trainable_variables
    optimizer._update_model_variables_moving_average(variables)
    if frequency := optimizer.ema_overwrite_frequency:
        now = (tf.convert_to_tensor(optimizer.iterations) + 1) % frequency == 0
        averages = optimizer._model_variables_moving_average
        for variable, average in zip(variables, averages, strict=True):
            variable.assign(tf.where(now, average.value, variable.value))


def _after_finite(optimizer):
    """Doubles the loss scale after enough steps with finite gradients, as Keras does."""
    grows = optimizer.step_counter.value == optimizer.dynamic_growth_steps - 1
    scale, count = optimizer.dynamic_scale.value, optimizer.step_counter.value
    optimizer.dynamic_scale.assign(tf.where(grows, 2.0 * scale, scale))
    optimizer.step_counter.assign(tf.where(grows, tf.zeros_like(count), count + 1))
