"""SGD and AdamW with one graph node per update, for gradients already summed over replicas.

Keras builds half a dozen nodes for each of a network's thousand variables; TensorFlow has fused
kernels for the whole update. The results are those of Keras. Differences from `keras.optimizers`:
SGD adds weight decay to the gradient (L2), as PyTorch does and the papers' settings assume; weight
decay skips biases and norms (variables of rank 0 or 1) and Swin's tables of position biases, as its
authors do; under a strategy gradients are not summed over replicas here, because the trainer does
that before it clips them.
"""

import keras
import tensorflow as tf

from kseg.backend.variables import shared_variable_kernels
from kseg.training.learning_rate_factors import LearningRateFactors


class FusedUpdates(LearningRateFactors):
    """Behavior shared by both optimizers."""

    @shared_variable_kernels()
    def build(self, variables):  # noqa: D102 - as in Keras.
        super().build(variables)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars

    _shared = None

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # One node for all variables where Keras has one for each of a thousand.
        learning_rate = tf.convert_to_tensor(learning_rate, "float32")
        self._shared = self._shared_tensors()
        try:
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        finally:
            self._shared = None

    def _constants(self, *names):
        return {name: tf.constant(getattr(self, name), "float32") for name in names}

    def _decays(self, variable):
        table = "relative_position_bias_table" in variable.name
        return self.decay_rate and variable.shape.rank > 1 and not table


@keras.saving.register_keras_serializable(package="kseg")
class SGD(FusedUpdates, keras.optimizers.SGD):
    """Momentum SGD with L2 weight decay.

    `g = gradient + decay_rate * w; m = momentum * m - rate * g; w = w + m`, or with Nesterov
    momentum `w = w + momentum * m - rate * g`.

    Args:
        learning_rate: float or schedule.
        momentum: float in [0, 1).
        nesterov: bool.
        decay_rate: float >= 0, for variables of rank 2 or more.
        learning_rate_factors: as in `LearningRateFactors`.
    """

    def __init__(self, learning_rate=0.01, momentum=0.9, nesterov=False, decay_rate=0.0, **kwargs):
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, **kwargs)
        self.decay_rate = decay_rate

    def update_step(self, gradient, variable, learning_rate):
        """Updates one `tf.Variable`."""
        shared = self._shared or self._shared_tensors()
        learning_rate = self._scaled(learning_rate, variable)
        if self._decays(variable):
            gradient = gradient + shared["decay_rate"] * variable
        if not self.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=learning_rate, delta=gradient
            )
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=learning_rate,
            grad=gradient,
            momentum=shared["momentum"],
            use_nesterov=self.nesterov,
        )

    def _shared_tensors(self):
        return self._constants("momentum", "decay_rate")

    def get_config(self):
        """Returns the constructor's arguments."""
        return {**super().get_config(), "decay_rate": self.decay_rate}


@keras.saving.register_keras_serializable(package="kseg")
class AdamW(FusedUpdates, keras.optimizers.Adam):
    """Adam with decoupled weight decay: `w = w - rate * decay_rate * w` before the step.

    Source: Loshchilov and Hutter, ICLR 2019.

    Args:
        learning_rate: float or schedule.
        beta_1, beta_2, epsilon: floats, as in `keras.optimizers.Adam`.
        decay_rate: float >= 0, for variables of rank 2 or more.
        learning_rate_factors: as in `LearningRateFactors`.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        decay_rate=0.0,
        **kwargs,
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **kwargs)
        self.decay_rate = decay_rate

    def update_step(self, gradient, variable, learning_rate):
        """Updates one `tf.Variable`."""
        shared = self._shared or self._shared_tensors()
        learning_rate = self._scaled(learning_rate, variable)
        if self._decays(variable):
            variable.assign_sub(learning_rate * shared["decay_rate"] * variable)
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=shared["beta_1_power"],
            beta2_power=shared["beta_2_power"],
            lr=learning_rate,
            beta1=shared["beta_1"],
            beta2=shared["beta_2"],
            epsilon=shared["epsilon"],
            grad=gradient,
        )

    def _shared_tensors(self):
        step = tf.cast(self.iterations.value + 1, "float32")
        return {
            "beta_1_power": self.beta_1**step,
            "beta_2_power": self.beta_2**step,
            **self._constants("beta_1", "beta_2", "epsilon", "decay_rate"),
        }

    def get_config(self):
        """Returns the constructor's arguments."""
        return {**super().get_config(), "decay_rate": self.decay_rate}
