"""Checks that the loss and the weights of a training stay finite."""

import numpy as np

from kseg.errors import UserError, option
from kseg.runs import step_file
from kseg.runs.finite import describe_non_finite


class NonFiniteLossError(UserError):
    """A loss term is NaN or infinite."""


class NonFiniteWeightsError(UserError):
    """A weight, or other state of the training, is NaN or infinite."""


class FiniteWatch:
    """Checks each step's loss terms while the next step runs, so that the device never waits.

    A step's loss is computed before its update and says nothing about the updated weights: these
    are checked before they are evaluated or written.

    Args:
        run: `kseg.runs.Run`.
        state: dict from name to variable, everything that a checkpoint holds.
        saving: `kseg.training.saving.Saving`, which knows the newest checkpoint.
    """

    def __init__(self, run, state, saving):
        self._run = run
        self._state = state
        self._saving = saving
        self._pending = None
        self._values = {}

    def check(self, step, logs):
        """Checks the terms of the previous step and keeps those of this one for later."""
        before, self._pending = self._pending, (step, logs)
        self._look(before)

    def flush(self):
        """Checks the newest step, too, and returns its values."""
        before, self._pending = self._pending, None
        self._look(before)
        return dict(self._values)

    def check_weights(self, step):
        """Checks all weights, moving statistics, momenta and banks; all workers must call it."""
        if broken := describe_non_finite(self._state):
            raise NonFiniteWeightsError(
                f"The weights must stay finite. After step {step} {broken} are not{self._way_out()}"
                if step
                else f"The initial weights must be finite. {broken} are not. Look at model.weights "
                "and model.backbone.weights"
            )

    def _look(self, pending):
        if pending is None:
            return
        step, logs = pending
        self._values = {name: float(value) for name, value in logs.items()}
        broken = [name for name, value in self._values.items() if not np.isfinite(value)]
        if broken:
            term = next((name for name in broken if name != "loss"), "loss")
            state = describe_non_finite(self._state)
            weights = f", and so are {state}" if state else ""
            raise NonFiniteLossError(
                f"The loss must stay finite. At step {step} {term} is {self._values[term]}"
                f"{weights}{self._way_out()}"
            )

    def _way_out(self):
        lower = "Lower optimizer.learning_rate or set train.clip_norm"
        if self._saving.saved_step is None:
            return f" (no checkpoint yet). {lower}"
        step = self._saving.saved_step
        weights = self._run.path / "checkpoints" / step_file(step)
        return (
            f" (the checkpoint of step {step} is intact). {lower}, with {option('restart', True)}, "
            f"or in a new run from these weights: {option('run', f'{self._run.path}_lower')} "
            f"{option('overrides', [f'model.weights={weights}'])}"
        )
