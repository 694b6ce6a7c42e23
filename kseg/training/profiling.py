"""Traces of training steps for TensorBoard's profile page."""

import tensorflow as tf


class Profiling:
    """Traces the steps `first` to `last` of a training.

    Use it as a context manager around the loop, which ensures that a started trace is written.

    Args:
        folder: `pathlib.Path` of TensorBoard events; the trace goes to its `plugins/profile`.
        steps: `(first, last)`, counted from 1, or None: no trace.
    """

    def __init__(self, folder, steps):
        self._folder = folder
        self._first, self._last = steps or (None, None)
        self._running = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stop()

    def before(self, step):
        """Starts the trace if due; call it before each step."""
        # Not only at the first step: a run may resume between the two.
        if self._first is not None and not self._running and self._first <= step <= self._last:
            tf.profiler.experimental.start(str(self._folder))
            self._running = True

    def after(self, step, logs):
        """Ends the trace if due; call it after each step.

        Args:
            step: int.
            logs: dict of its tensors, waited for so that the trace holds the whole step.
        """
        if self._running and step == self._last:
            for value in logs.values():
                value.numpy()
            self._stop()

    def _stop(self):
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
