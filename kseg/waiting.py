"""Watched waiting for data that may never arrive.

A read that the operating system does not answer (a network drive that is gone, a pipe in place of
a file) blocks the main thread outside Python, where it handles no signal. So a thread watches the
wait: it says what is wrong if it can be found out, and ends the process when asked to.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time

_LONG = 15.0  # Seconds of one wait, after which the data is looked at.
_PATIENCE = 5.0  # Seconds that the main thread gets to react to a signal.
_POLL = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_lock = threading.Lock()


class _Watch:
    since = None  # When the current wait began.
    diagnose = None
    thread = None
    pipe = None
    signals = ()  # When signals came.


def set_diagnosis(function):
    """Sets what is asked when data does not come.

    Args:
        function: without arguments; gives a line that says what is wrong, or None. It is called in
            a thread of its own. The process ends with the line and exit code 2.
    """
    _Watch.diagnose = function


def next_batch(iterator):
    """Returns `next(iterator)`, watched."""
    _start()
    _Watch.since = time.monotonic()
    try:
        return next(iterator)
    finally:
        _Watch.since = None


def each_batch(dataset):
    """Iterates over batches, watched."""
    iterator = iter(dataset)
    while True:
        try:
            batch = next_batch(iterator)
        except StopIteration:
            return
        yield batch


def watch_signals():
    """Ends the process some seconds after SIGINT or SIGTERM while it waits for data.

    It does the same after a second signal, whatever the main thread does. Handlers of these
    signals stay as they are, and run if they can. Outside the main thread nothing happens.
    """
    with _lock:
        if _Watch.pipe is not None:
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        except ValueError:
            os.close(reader)
            os.close(writer)
            return
        _Watch.pipe = reader
    _start()


def _start():
    with _lock:
        if _Watch.thread is None:
            _Watch.thread = threading.Thread(target=_watch, name="waiting", daemon=True)
            _Watch.thread.start()


def _watch():
    looked_at = None
    while True:
        _read_signals()
        now, since, signals = time.monotonic(), _Watch.since, _Watch.signals
        if signals and since is not None and now - max(since, signals[0]) > _PATIENCE:
            _end("interrupted while waiting for data; what was saved before is kept", 130)
        if len(signals) > 1 and now - signals[1] > _PATIENCE:
            _end("interrupted; what was saved before is kept", 130)
        if since is not None and since != looked_at and now - since > _LONG:
            looked_at = since
            # The look may block as the read does.
            threading.Thread(target=_look, args=(since,), daemon=True).start()


def _read_signals():
    if _Watch.pipe is None:
        time.sleep(_POLL)
    elif select.select([_Watch.pipe], [], [], _POLL)[0]:
        now = time.monotonic()
        received = [number for number in os.read(_Watch.pipe, 64) if number in _SIGNALS]
        _Watch.signals = (*_Watch.signals, *[now] * len(received))


def _look(since):
    problem = _Watch.diagnose and _Watch.diagnose()
    if _Watch.since != since:
        return  # It came.
    if problem:
        _end(f"error: {problem}", 2)
    print(f"\nno data for {_LONG:.0f} seconds, still waiting", file=sys.stderr, flush=True)


def _end(message, code):
    with contextlib.suppress(OSError, ValueError):
        print(f"\n{message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)
