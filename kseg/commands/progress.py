"""A line that counts images, with their speed."""

import shutil
import sys
import time


class Progress:
    """Shows `12/101 images, 3.1 a second`; on a terminal only, where each line overwrites the last.

    The speed is that since the first call, which tells that the network is compiled.

    Args:
        total: int, how many images there will be.
    """

    def __init__(self, total):
        self._total = total
        self._shown = sys.stderr.isatty()
        self._last = 0.0
        self._first = None

    def __call__(self, done):
        """Shows how many are done."""
        now = time.monotonic()
        self._first = self._first or (done, now)
        before, start = self._first
        speed = f", {(done - before) / (now - start):.1f} a second" if now > start else ""
        if self._shown and (now - self._last > 0.2 or done == self._total):
            self._last = now
            end = "\n" if done == self._total else ""
            text = f"{done}/{self._total} images{speed}"
            # A line that is broken into two cannot be overwritten.
            text = text[: shutil.get_terminal_size().columns - 1]
            print(f"\r{text}\x1b[K", end=end, file=sys.stderr, flush=True)
