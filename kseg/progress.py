"""Progress of long tasks on stderr: a bar on a terminal, otherwise occasional plain lines.

Nothing is shown for a task of less than `_PATIENCE` seconds.
"""

import sys
import threading
import time

_PATIENCE = 1.0  # Seconds after which something is shown.
_REPEAT = 30.0  # Seconds between plain lines.
_REFRESH = 0.25  # Seconds between two drawings of a bar.


class Progress:
    """Shows the progress of the current task of a command.

    A context manager: at the end of the block the bar is removed, also after an error. `advance`
    and `update` may be called from any thread.

    Args:
        doing: str, such as `"evaluating"`.
        total: int, number of items to process; None if unknown.
        unit: str, what is counted, in the plural.
        shown: bool. False: nothing is shown.
    """

    def __init__(self, doing, total=None, *, unit="images", shown=True):
        self._doing = doing
        self._total = total
        self._unit = unit
        self._shown = shown
        self._done = 0
        self._start = time.monotonic()
        self._thread = None
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self):
        self._start = time.monotonic()
        if self._shown:
            watch = self._draw if sys.stderr.isatty() else self._write_lines
            self._thread = threading.Thread(target=watch, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception):
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def advance(self, count=1):
        """Adds to the number of processed items."""
        with self._lock:
            self._done += count
            if self._total:
                self._done = min(self._done, self._total)

    def update(self, done):
        """Sets the number of processed items."""
        with self._lock:
            self._done = done

    def text(self):
        """Formats a line such as `evaluating: 12/40 images, 3.1 a second, 0:00:09 left`."""
        seconds = time.monotonic() - self._start
        if not self._total:
            shown = f": {clock(seconds)} so far" if seconds >= _REPEAT else " ..."
            return self._doing + shown
        parts = [f"{self._doing}: {self._done}/{self._total} {self._unit}"]
        if self._done:
            rate = self._done / max(seconds, 1e-9)
            parts.append(f"{rate:.{1 if rate < 100 else 0}f} a second")
            parts.append(f"{clock((self._total - self._done) / rate)} left")
        elif seconds >= _REPEAT:
            parts.append(f"{clock(seconds)} so far")
        return ", ".join(parts)

    def _draw(self):
        """Draws the bar until the task ends."""
        if self._ended.wait(_PATIENCE):
            return
        from tqdm import tqdm

        format_ = None if self._total else "{desc}: {elapsed}"
        with tqdm(
            desc=self._doing,
            total=self._total,
            unit=f" {self._unit}",
            bar_format=format_,
            dynamic_ncols=True,
            leave=False,
            file=sys.stderr,
        ) as bar:
            bar.start_t -= _PATIENCE
            while True:
                bar.update(self._done - bar.n)
                bar.refresh()
                if self._ended.wait(_REFRESH):
                    return

    def _write_lines(self):
        """Writes a first line, and further ones at intervals, until the task ends."""
        if self._ended.wait(_PATIENCE):
            return
        while True:
            print(self.text(), file=sys.stderr, flush=True)
            if self._ended.wait(_REPEAT):
                return


def clock(seconds):
    """Formats seconds as `hours:minutes:seconds`."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
