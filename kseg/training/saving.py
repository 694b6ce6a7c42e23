"""Restoring and saving of training state: the newest checkpoints and the best weights."""

import functools
import sys

import numpy as np

from kseg.runs import checkpoints, step_file
from kseg.training.patience import Patience

NO_BEST = {"mean_iou": None, "step": None}


class Saving:
    """Restores the state of a training and saves it.

    In a cluster every worker has an instance, because all must read the state together; only that
    of the chief prints, writes and deletes.

    Args:
        run: `kseg.runs.Run`.
        state: dict from name to variable, everything that a checkpoint holds.
        lock: lock of the run's folder from `kseg.runs.lock.hold`; None on workers other than the
            chief.

    Attributes:
        saved_step: int or None, the step of the newest checkpoint, which is known to be finite.
        best: dict with `mean_iou` and `step` of the best evaluation, both None before the first.
        patience: `kseg.training.patience.Patience`, part of the state.
        initial_weights: str, the source of the first weights; set by the caller of a new training.
    """

    def __init__(self, run, state, lock):
        self.saved_step = None
        self.best = NO_BEST
        self.patience = Patience(run.config.train.patience)
        self.initial_weights = "unknown"  # In checkpoints of earlier versions.
        self._run = run
        self._state = state
        self._lock = lock
        self._folder = run.path / "checkpoints"

    def restore(self):
        """Restores all state from the newest checkpoint.

        A checkpoint with weights that are not finite, as earlier versions could write, is deleted
        in favor of the previous one.

        Returns:
            int, its step; None if there is no checkpoint.

        Raises:
            UserError: if the checkpoint is damaged, or of another experiment.
        """
        for step in reversed(self._run.checkpoint_steps()):
            file = self._folder / step_file(step)
            try:
                meta = checkpoints.restore(
                    file, self._state, check=functools.partial(self._run.check_checkpoint, file)
                )
            except checkpoints.NonFiniteCheckpointError as error:
                if self._lock:
                    print(f"warning: {error}. It is deleted", file=sys.stderr, flush=True)
                    file.unlink()
                continue
            best = meta.get("best") or {}
            # Earlier versions could store NaN as the best score.
            self.best = best if is_better(best.get("mean_iou"), None) else NO_BEST
            self.patience.restore(meta.get("patience"))
            self.initial_weights = meta.get("initial_weights", self.initial_weights)
            self.saved_step = meta["step"]
            if self._lock:
                steps = self._run.config.train.total_steps
                print(f"resuming from step {self.saved_step} of {steps}", flush=True)
            return self.saved_step
        return None

    def save(self, step, progress):
        """Writes the checkpoint of a step, unless it exists, and removes the oldest ones.

        Checkpoints at the end of a cycle of the schedule (`train.restarts`) are kept.

        Args:
            step: int.
            progress: `kseg.training.reporting.TrainingProgress`.

        Raises:
            UserError: if another process has taken over the run's folder.
        """
        if self.saved_step == step:
            return
        self.saved_step = step
        arrays = checkpoints.read(self._state)
        if not self._lock:
            return
        meta = {
            "step": step,
            "best": self.best,
            "patience": self.patience.state,
            "initial_weights": self.initial_weights,
        }
        self._lock.check()
        with progress.working(f"writing the checkpoint of step {step}"):
            checkpoints.save(
                self._folder / step_file(step), arrays, {**meta, **self._run.identity()}
            )
        settings = self._run.config.train
        for old in self._run.checkpoint_steps()[: -settings.keep_checkpoints]:
            if old not in settings.cycle_ends:
                (self._folder / step_file(old)).unlink()

    def save_best(self, step, mean_iou, weights):
        """Writes the weights of a step if they are the best so far; for the chief.

        Args:
            step: int.
            mean_iou: float; may be NaN.
            weights: dict from name to variable or array.

        Raises:
            UserError: if another process has taken over the run's folder.
        """
        if is_better(mean_iou, self.best["mean_iou"]):
            self.best = {"mean_iou": mean_iou, "step": step}
            self._lock.check()
            meta = {**self.best, "initial_weights": self.initial_weights, **self._run.identity()}
            checkpoints.save(self._folder / "best.npz", weights, meta)


def is_better(mean_iou, best):
    """Returns True if a score equals or exceeds the best so far; False for NaN."""
    if mean_iou is None or np.isnan(mean_iou):
        return False
    return best is None or mean_iou >= best
