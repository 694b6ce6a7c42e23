"""Learning rates as functions of the optimizer step."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="kseg")
class PolynomialSchedule(keras.optimizers.schedules.LearningRateSchedule):
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
        self.learning_rate = learning_rate
        self.steps = steps
        self.power = power
        self.warmup_steps = warmup_steps
        self.end_learning_rate = end_learning_rate

    def __call__(self, step):
        """Learning rate of an int step, float32 scalar."""
        step = ops.cast(step, "float32")
        left = ops.maximum(1.0 - step / self.steps, 0.0)
        decayed = (self.learning_rate - self.end_learning_rate) * left**self.power
        rate = self.end_learning_rate + decayed
        if self.warmup_steps:
            rate = rate * ops.minimum((step + 1.0) / self.warmup_steps, 1.0)
        return rate

    def get_config(self):
        """The constructor's arguments."""
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "power": self.power,
            "warmup_steps": self.warmup_steps,
            "end_learning_rate": self.end_learning_rate,
        }
