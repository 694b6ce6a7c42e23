"""SGD and AdamW as pure functions of lists of tensors, for training steps without variables.

The results are those of `kseg.training.optimizers`, which compute the same formulas with
TensorFlow's fused kernels.
"""

import dataclasses

from keras import ops


@dataclasses.dataclass(frozen=True)
class SGD:
    """Momentum SGD with L2 weight decay, see `kseg.training.optimizers.SGD`.

    Attributes:
        momentum: float in [0, 1).
        nesterov: bool.
        decay_rate: float >= 0.
    """

    momentum: float = 0.9
    nesterov: bool = False
    decay_rate: float = 0.0

    def slots(self, values):
        """Creates the initial optimizer state: a list of lists shaped like `values`."""
        return [[ops.zeros_like(value) for value in values]] if self.momentum else []

    def update(self, values, gradients, slots, *, step, rates, decays):
        """Takes one optimizer step.

        Args:
            values, gradients: lists of float32 tensors.
            slots: as returned by `slots` or the previous step.
            step: int32 scalar, number of completed steps; SGD does not depend on it.
            rates: list of float32 scalars, the learning rate of each value.
            decays: list of bool, whether weight decay applies to the value.

        Returns:
            `(values, slots)`, updated.
        """
        if self.decay_rate:
            gradients = [
                g + self.decay_rate * v if decayed else g
                for v, g, decayed in zip(values, gradients, decays, strict=True)
            ]
        steps = [rate * g for rate, g in zip(rates, gradients, strict=True)]
        if not self.momentum:
            return [v - s for v, s in zip(values, steps, strict=True)], []
        momenta = [self.momentum * m - s for m, s in zip(slots[0], steps, strict=True)]
        moves = momenta
        if self.nesterov:
            moves = [self.momentum * m - s for m, s in zip(momenta, steps, strict=True)]
        return [v + m for v, m in zip(values, moves, strict=True)], [momenta]


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, see `kseg.training.optimizers.AdamW`.

    Attributes:
        beta_1, beta_2, epsilon: floats.
        decay_rate: float >= 0.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    decay_rate: float = 0.0

    def slots(self, values):
        """Creates first and second moments, see `SGD.slots`."""
        return [[ops.zeros_like(value) for value in values] for _ in range(2)]

    def update(self, values, gradients, slots, *, step, rates, decays):
        """Updates a variable, see `SGD.update`."""
        if self.decay_rate:
            values = [
                v - rate * self.decay_rate * v if decayed else v
                for v, rate, decayed in zip(values, rates, decays, strict=True)
            ]
        number = ops.cast(step + 1, "float32")
        bias = ops.sqrt(1.0 - self.beta_2**number) / (1.0 - self.beta_1**number)
        first, second = (
            [m + (g**power - m) * (1.0 - beta) for m, g in zip(moments, gradients, strict=True)]
            for moments, power, beta in ((slots[0], 1, self.beta_1), (slots[1], 2, self.beta_2))
        )
        values = [
            v - rate * bias * m / (ops.sqrt(s) + self.epsilon)
            for v, rate, m, s in zip(values, rates, first, second, strict=True)
        ]
        return values, [first, second]


def is_decayed(variable):
    """Returns False for biases, norms and Swin's position-bias tables, which do not decay."""
    return len(variable.shape) > 1 and "relative_position_bias_table" not in variable.name


def clip_by_global_norm(gradients, limit):
    """Scales gradients down so that their global L2 norm is at most `limit`.

    Args:
        gradients: list of float tensors.
        limit: float > 0.

    Returns:
        list of tensors; NaN everywhere if the norm is not finite, as `tf.clip_by_global_norm`.
    """
    norm = global_norm(gradients)
    factor = limit * ops.minimum(1.0 / norm, 1.0 / limit)
    factor = ops.where(ops.isfinite(norm), factor, float("nan"))
    return [gradient * factor for gradient in gradients]


def global_norm(tensors):
    """Computes the global L2 norm of a list of tensors, float32 scalar."""
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(x, "float32"))) for x in tensors))
