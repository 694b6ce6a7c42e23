"""One training process at a time in the folder of a run.

The process that trains holds the file `train.lock` there. The file names its owner (host, process),
and its modification time is the heartbeat, set every few seconds. The lock of a dead process is
taken over: at once if it ran on this machine, else after a minute without a heartbeat. All that is
needed of the file system is exclusive creation and renaming of files, so the lock works on network
drives, too, and no clock is compared with that of another machine.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid

from kseg.errors import UserError, option
from kseg.json_text import parse_json

FILE = "train.lock"
_BEAT = 5.0  # Seconds between heartbeats.
_STALE = 60.0  # Seconds without one after which a process on another machine counts as dead.
_POLL = 1.0

_held = {}


class RunLock:
    """A lock that this process holds; created by `hold`.

    Args:
        folder: `pathlib.Path` of the run.
        token: str, unique identifier of this lock.
    """

    def __init__(self, folder, token):
        self._folder = folder
        self._token = token
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()

    def check(self):
        """Checks that this process still holds the lock; call it before anything is written.

        Raises:
            UserError: if another process took it over, after this one was suspended or cut off
                from the drive for minutes; or if somebody removed it.
        """
        owner, _ = _read(self._folder / FILE)
        if owner.get("token") != self._token:
            other = f": {_name(owner)} took it over" if owner else ""
            raise UserError(
                f"A run needs its folder for itself. This process lost {self._folder}{other}. It "
                "has stopped without writing; start it again when no other process trains there"
            )

    def release(self):
        """Releases the lock."""
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(OSError, UserError):
            self.check()
            (self._folder / FILE).unlink()

    def _beat(self):
        while not self._stopped.wait(_BEAT):
            with contextlib.suppress(OSError):  # The drive may come back; `check` decides.
                if _read(self._folder / FILE)[0].get("token") == self._token:
                    os.utime(self._folder / FILE)


@contextlib.contextmanager
def hold(folder):
    """Holds the lock of a run's folder during the block; may be nested within a process.

    Args:
        folder: path, created if missing, and then removed again if it stays empty.

    Yields:
        `RunLock`.

    Raises:
        UserError: if another process trains there.
    """
    folder = pathlib.Path(folder)
    key = os.path.realpath(folder)
    if key in _held:
        yield _held[key]
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = _held[key] = RunLock(folder, _acquire(folder))
    try:
        yield lock
    finally:
        del _held[key]
        lock.release()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # Fails unless the folder is empty.


def _acquire(folder):
    """Creates the lock file and returns its token."""
    path = folder / FILE
    me = _this_process()
    seen, since = None, None  # The last heartbeat of a process on another machine.
    while True:
        with contextlib.suppress(FileExistsError), open(path, "x") as file:
            json.dump(me, file)
            return me["token"]
        owner, beat = _read(path)
        if beat is None:  # Removed in the meantime.
            continue
        alive = _lives(owner, me)
        if alive is None and seen is None:
            alive = False if _age(folder, beat) > _STALE else None
            if alive is None:
                print(
                    f"{_name(owner)} held {folder} a moment ago: waiting up to {_STALE:.0f} s for "
                    "its next heartbeat",
                    file=sys.stderr,
                    flush=True,
                )
            seen, since = (owner, beat), time.monotonic()
        elif alive is None:
            if (owner, beat) != seen:
                alive = True
            elif time.monotonic() - since > _STALE:
                alive = False
        if alive:
            raise UserError(
                f"A run's folder is for one training process at a time. {folder} is in use by "
                f"{_name(owner)}. Wait for it or stop it, or give {option('run')} another folder"
            )
        if alive is None:
            time.sleep(_POLL)
        else:
            _take_away(path, owner)


def _take_away(path, owner):
    """Removes the lock of a dead process, but not a newer one of another process."""
    away = path.with_name(f".{FILE}.{uuid.uuid4().hex}.tmp")
    try:
        path.rename(away)
    except FileNotFoundError:
        return
    if _read(away)[0] != owner:
        with contextlib.suppress(OSError):
            os.link(away, path)  # Unlike renaming, this never replaces a file.
    away.unlink(missing_ok=True)


def _this_process():
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "token": uuid.uuid4().hex,
    }


def _machine():
    """Identifies the scope in which process ids are unique: the boot and the PID namespace."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(process):
    """Returns the start time of a process in clock ticks since boot; None if unknown."""
    try:
        text = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def _lives(owner, me):
    """Returns True if a lock's process is alive; None if only its heartbeat can show it."""
    is_local = (owner.get("host"), owner.get("machine")) == (me["host"], me["machine"])
    process = owner.get("process")
    if not is_local or not isinstance(process, int) or process <= 0:
        return None
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # It belongs to another user.
    started = _started(process)
    if started is None or owner.get("started") is None:
        return None  # The id may have been reused by another process.
    return started == owner["started"]


def _read(path):
    """Returns the lock's content, a dict, empty if damaged or being written; and its heartbeat."""
    try:
        with open(path) as file:  # Opening it makes a network drive refresh its attributes.
            beat = os.fstat(file.fileno()).st_mtime_ns
            text = file.read()
    except FileNotFoundError:
        return {}, None
    try:
        owner = parse_json(text)
    except ValueError:
        owner = {}
    return owner if isinstance(owner, dict) else {}, beat


def _age(folder, beat):
    """Returns the seconds since a heartbeat, by the file system's clock."""
    probe = folder / f".{FILE}.{uuid.uuid4().hex}.tmp"
    try:
        probe.touch()
        return (probe.stat().st_mtime_ns - beat) / 1e9
    finally:
        probe.unlink(missing_ok=True)


def _name(owner):
    if "process" not in owner:
        return "another process"
    return f"process {owner['process']} on {owner.get('host', 'an unknown machine')}"
