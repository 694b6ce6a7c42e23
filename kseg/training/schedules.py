"""Learning rates and weights of losses as functions of the optimizer step."""

import itertools
import math

import keras
from keras import ops


class _WarmupAndDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up and decay from the peak to the end, shared by the schedules below.

    Args:
        learning_rate: float > 0, the peak.
        steps: int > 0, T. Later steps train with `end_learning_rate`.
        warmup_steps: int >= 0.
        end_learning_rate: float >= 0.
    """

    def __init__(self, learning_rate, steps, *, warmup_steps=0, end_learning_rate=0.0):
        self.learning_rate = learning_rate
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.end_learning_rate = end_learning_rate

    def _decay(self, left):
        """Computes the learning rate as a fraction of the way from the end to the peak.

        Args:
            left: float32 scalar in [0, 1], the fraction of steps left.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no decay")

    def __call__(self, step):
        """Returns the learning rate of an int step, float32 scalar."""
        step = ops.cast(step, "float32")
        left = ops.maximum(1.0 - step / self.steps, 0.0)
        decayed = (self.learning_rate - self.end_learning_rate) * self._decay(left)
        rate = self.end_learning_rate + decayed
        if self.warmup_steps:
            rate = rate * ops.minimum((step + 1.0) / self.warmup_steps, 1.0)
        return rate

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
            "end_learning_rate": self.end_learning_rate,
        }


@keras.saving.register_keras_serializable(package="kseg")
class PolynomialSchedule(_WarmupAndDecay):
    """Linear warm-up, then polynomial decay over all steps.

    Step t of T (counted from 0) trains with
    `(end + (peak - end) * (1 - t / T)^power) * min(1, (t + 1) / warmup)`: the warm-up starts near
    0, whatever `end` is.

    Args:
        learning_rate: float > 0, the peak.
        steps: int > 0, T. Later steps train with `end_learning_rate`.
        power: float > 0; 1 is linear decay.
        warmup_steps: int >= 0.
        end_learning_rate: float >= 0.
    """

    def __init__(self, learning_rate, steps, *, power=0.9, warmup_steps=0, end_learning_rate=0.0):
        super().__init__(
            learning_rate, steps, warmup_steps=warmup_steps, end_learning_rate=end_learning_rate
        )
        self.power = power

    def _decay(self, left):
        return left**self.power

    def get_config(self):
        """Returns the constructor's arguments."""
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable(package="kseg")
class CosineSchedule(_WarmupAndDecay):
    """Linear warm-up, then half a cosine over all steps.

    Step t of T (counted from 0) trains with
    `(end + (peak - end) * (1 + cos(pi * t / T)) / 2) * min(1, (t + 1) / warmup)`.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, Eq. 5; the warm-up is not theirs.

    Args:
        learning_rate: float > 0, the peak.
        steps: int > 0, T. Later steps train with `end_learning_rate`.
        warmup_steps: int >= 0.
        end_learning_rate: float >= 0.
    """

    def _decay(self, left):
        return 0.5 - 0.5 * ops.cos(math.pi * left)


@keras.saving.register_keras_serializable(package="kseg")
class WarmRestarts(keras.optimizers.schedules.LearningRateSchedule):
    """Sequence of schedules, each starting at its own first step.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, for the restart at the peak with the weights
    and the optimizer's state kept.

    Args:
        schedules: list of schedules with an attribute `steps`, the length of each cycle; the last
            one also gives the rate of all later steps.
    """

    def __init__(self, schedules):
        self.schedules = list(schedules)

    def __call__(self, step):
        """Returns the learning rate of an int step, float32 scalar."""
        step = ops.cast(step, "int32")
        rate, start = self.schedules[0](step), 0
        for before, schedule in itertools.pairwise(self.schedules):
            start += before.steps
            since = ops.maximum(step - start, 0)
            rate = ops.where(step >= start, schedule(since), rate)
        return rate

    def get_config(self):
        """Returns the constructor's arguments."""
        return {"schedules": [keras.saving.serialize_keras_object(s) for s in self.schedules]}

    @classmethod
    def from_config(cls, config):
        """Builds the schedule from the result of `get_config`."""
        return cls([keras.saving.deserialize_keras_object(s) for s in config["schedules"]])


@keras.saving.register_keras_serializable(package="kseg")
class Ramp:
    """A weight that is 0 before a step and then rises linearly.

    Args:
        weight: float, the final value.
        start: int, the step up to which the weight is 0.
        steps: int, length of the linear ramp from `start`; 0: a jump to `weight` at `start`.

    Call arguments:
        step: int or int tensor.

    Returns:
        float32 scalar.
    """

    def __init__(self, weight, *, start=0, steps=0):
        self.weight = weight
        self.start = start
        self.steps = steps

    def __call__(self, step):
        """Returns the weight at a step."""
        since = ops.cast(step, "float32") - self.start
        share = since / self.steps if self.steps else since + 1.0
        return self.weight * ops.clip(share, 0.0, 1.0)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {"weight": self.weight, "start": self.start, "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        """Builds the ramp from the result of `get_config`."""
        return cls(**config)
