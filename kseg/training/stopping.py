"""Stopping of a training on a signal, on all workers after the same step."""

import contextlib
import signal
import sys

from kseg import waiting
from kseg.errors import Interrupted
from kseg.training.distribution import anywhere

_AGREE_EVERY = 10  # Steps between checks whether any worker was asked to stop.


class Stopping:
    """Turns SIGINT and SIGTERM into a stop after a step; a second SIGINT interrupts at once.

    Signals are handled within its `with` block.

    Args:
        strategy: `tf.distribute.Strategy`.
        cluster: `kseg.training.cluster.Cluster` or None.
    """

    def __init__(self, strategy, cluster):
        self._received = False
        self._before = {}
        self._watched = contextlib.ExitStack()
        self._strategy = strategy
        self._cluster = cluster

    def __enter__(self):
        self._watched.enter_context(waiting.signals_watched())
        for number in (signal.SIGINT, signal.SIGTERM):
            # Outside the main thread (ValueError) signals are left to the caller.
            with contextlib.suppress(ValueError):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._watched.close()

    def is_due(self, step):
        """Returns True if the training stops after a step; all workers of a cluster must call it.

        In a cluster they agree every tenth step, so that all stop at the same one.
        """
        if not self._cluster:
            return self._received
        return step % _AGREE_EVERY == 0 and anywhere(self._strategy, self._received)

    def stop(self, step):
        """Ends the training after a step whose state is saved.

        Raises:
            Interrupted: always.
        """
        if self._cluster:  # When a worker exits, the others fail, so the chief exits last.
            anywhere(self._strategy, False)
        raise Interrupted(f"stopped at step {step}; the same command resumes there")

    def _receive(self, number, frame):
        if self._received:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._received = True
        print("\nstopping after this step", file=sys.stderr, flush=True)
