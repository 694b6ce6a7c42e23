"""Early stopping when evaluations no longer improve."""

import math


class Patience:
    """Counts evaluations without improvement.

    Args:
        settings: `kseg.config.schema.Patience`, or None: never stop.

    Attributes:
        state: JSON-able dict that a checkpoint stores: `watch`, the name of the watched value,
            `best`, its value at the best evaluation (None before the first), and `evaluations`, the
            number of evaluations since.
    """

    def __init__(self, settings):
        self._settings = settings
        self.state = {"watch": settings and settings.watch, "best": None, "evaluations": 0}

    def restore(self, state):
        """Continues from the `state` of a checkpoint, or afresh if it watched another value."""
        # Checkpoints of earlier versions do not say what they watched.
        if state and state.get("watch", self.state["watch"]) == self.state["watch"]:
            self.state = {**self.state, **state}

    @property
    def is_over(self):
        """True if training ends."""
        return bool(self._settings) and self.state["evaluations"] >= self._settings.evaluations

    def evaluated(self, mean_iou, loss):
        """Counts an evaluation.

        Args:
            mean_iou: float; NaN is never an improvement.
            loss: float, the weighted sum of the losses on the evaluation split; may be NaN.
        """
        if not self._settings:
            return
        # Signed so that higher is better.
        value, best = mean_iou, self.state["best"]
        if self._settings.watch == "loss":
            value, best = -loss, None if best is None else -best
        is_first = best is None and not math.isnan(value)
        if is_first or (best is not None and value > best + self._settings.min_change):
            watched = -value if self._settings.watch == "loss" else value
            self.state = {**self.state, "best": watched, "evaluations": 0}
        else:
            self.state = {**self.state, "evaluations": self.state["evaluations"] + 1}

    def describe(self, step):
        """Formats a one-line message about early stopping after a step."""
        best, watch = self.state["best"], self._settings.watch
        reason = f"no valid {watch}" if best is None else f"no better {watch} than {best:.4f}"
        return (
            f"training ends at step {step}: {reason} in {self.state['evaluations']} evaluations "
            "(train.patience)"
        )
