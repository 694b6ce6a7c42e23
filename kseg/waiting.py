"""Watched waiting for data that may never arrive.

A read that the operating system never completes (from a network drive that is gone, or a pipe in
place of a file) blocks the main thread outside Python, where no signal is handled. Therefore a
thread watches the wait: it reports the cause if it can be found, and ends the process on a signal.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time

_FIRST_LOOK = 2.0  # Seconds of waiting after which the data is examined.
_LONG = 15.0  # Seconds after which it is examined again and the wait is reported.
_PATIENCE = 5.0  # Seconds that the main thread gets to react to a signal.
_POLL = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MANY = 64  # Bytes read at once from the pipe of signals, one byte per signal.
_lock = threading.Lock()
_waits = {}  # Thread -> when its current wait began.


class _Watch:
    diagnose = explain = None
    ends_process = False
    thread = None
    pipe = None
    signals = ()  # (time, number) of received signals.


def set_source(diagnose, explain):
    """Sets how a wait for data is diagnosed.

    Args:
        diagnose: function without arguments, called in a separate thread when data does not
            arrive. Returns a line that states the cause, or None. In a command, the process
            ends with that line and exit code 2; elsewhere it is printed.
        explain: function of an exception raised by an iterator. Returns the `UserError` to raise
            instead, or None.
    """
    _Watch.diagnose = diagnose
    _Watch.explain = explain


def end_process_if_lost():
    """Allows a wait for lost data to end the process; for commands, which own their process."""
    _Watch.ends_process = True


def next_batch(iterator):
    """Returns the next item of an iterator, watching the wait.

    Raises:
        UserError: instead of errors that the source of the data explains.
    """
    with watched():
        try:
            return next(iterator)
        except StopIteration:
            raise
        except Exception as error:
            explained = _Watch.explain and _Watch.explain(error)
            if explained is None:
                raise
            raise explained from error


@contextlib.contextmanager
def watched():
    """Watches a block that reads data."""
    _start()
    thread = threading.get_ident()
    _waits[thread] = time.monotonic()
    try:
        yield
    finally:
        del _waits[thread]


def each_batch(dataset):
    """Iterates over batches, watching each wait."""
    iterator = iter(dataset)
    while True:
        try:
            batch = next_batch(iterator)
        except StopIteration:
            return
        yield batch


@contextlib.contextmanager
def signals_watched():
    """Ends the process, within the block, a few seconds after a signal that it cannot handle.

    This applies to SIGINT or SIGTERM during a wait for data, and to a second SIGINT at any time.
    (A second SIGTERM has no further effect: `timeout` of the coreutils sends two.) Handlers of
    these signals are not changed, and run if they can. An inner block, or one outside the main
    thread, has no effect; after the outer block, its signals are forgotten.
    """
    if _Watch.pipe is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    with _lock:
        _Watch.pipe = reader
    _start()
    try:
        yield
    finally:
        with _lock:
            _Watch.pipe, _Watch.signals = None, ()
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def _start():
    with _lock:
        if _Watch.thread is None:
            _Watch.thread = threading.Thread(target=_watch, name="waiting", daemon=True)
            _Watch.thread.start()


def _watch():
    looks = []  # When the current wait is examined, in seconds.
    looked_at = None
    while True:
        time.sleep(_POLL)
        _read_signals()
        now, signals = time.monotonic(), _Watch.signals
        since = min(list(_waits.values()), default=None)
        if signals and since is not None and now - max(since, signals[0][0]) > _PATIENCE:
            _end("interrupted while waiting for data; what was saved before is kept", 130)
        again = next((when for when, number in signals[1:] if number == signal.SIGINT), now)
        if now - again > _PATIENCE:
            _end("interrupted; what was saved before is kept", 130)
        if since != looked_at:
            looked_at, looks = since, [_FIRST_LOOK, _LONG]
        if since is not None and looks and now - since > looks[0]:
            long = looks.pop(0) == _LONG
            # The look may block as the read does.
            threading.Thread(target=_look, args=(since, long), daemon=True).start()


def _read_signals():
    with _lock:  # The pipe is closed by the main thread.
        if _Watch.pipe is not None and select.select([_Watch.pipe], [], [], 0)[0]:
            numbers = [n for n in os.read(_Watch.pipe, _MANY) if n in _SIGNALS]
            _Watch.signals = (*_Watch.signals, *[(time.monotonic(), n) for n in numbers])


def _look(since, long):
    problem = _Watch.diagnose and _Watch.diagnose()
    if since not in list(_waits.values()):
        return  # It arrived.
    if problem and _Watch.ends_process:
        _end(f"error: {problem}", 2)
    if long:
        why = f": {problem}" if problem else ""
        line = f"\nno data for {_LONG:.0f} seconds, still waiting{why}"
        print(line, file=sys.stderr, flush=True)


def _end(message, code):
    with contextlib.suppress(OSError, ValueError):
        print(f"\n{message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)
