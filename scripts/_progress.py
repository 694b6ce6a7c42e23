"""A line that counts images."""

import sys
import time


class Progress:
    """Shows `12/101 images`; on a terminal only, where each line overwrites the last.

    Args:
        total: int, how many images there will be.
    """

    def __init__(self, total):
        self._total = total
        self._shown = sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, done):
        """Shows how many are done."""
        now = time.monotonic()
        if self._shown and (now - self._last > 0.2 or done == self._total):
            self._last = now
            end = "\n" if done == self._total else ""
            print(f"\r{done}/{self._total} images", end=end, file=sys.stderr, flush=True)
