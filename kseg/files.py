"""Atomic replacement of files and folders.

Content is written to a temporary folder beside the target, `.kseg-<host>-<process>.tmp`, under its
final name, flushed to disk, and then replaces the target in one step. A killed process leaves the
old content in place; its temporary folder is removed when a later process writes to the same place.
The temporary name does not depend on the target's, which may be as long as the file system allows.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import pathlib
import re
import shutil
import socket
import sys
import threading
import time
import uuid

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
# Process ids are reused; in a restarted container even immediately.
_TOKEN = uuid.uuid4().hex[:8]
_NAME = re.compile(r"\.kseg-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}\.tmp")
# Names of earlier versions, beside the file: `.<file>.<process>.tmp`.
_FORMER_NAME = re.compile(
    r"\..+\.(?:csv|h5|html|json|jsonl|mp4|npz|onnx|png|tfrecord|tflite|tsv|txt|zip)\.(\d+)\.tmp"
)
# Whether a process of another host is alive is unknown; no write takes this long.
_STALE = 24 * 60 * 60  # Seconds.
_PROBE = 1 << 12  # A disk with fewer free bytes is considered full.
_NEW, _OLD = "new", "old"
_cleaned = set()
_lock = threading.Lock()


@contextlib.contextmanager
def replace_file(path):
    """Yields a path to write to; at the end of the block the file written there replaces `path`.

    Args:
        path: file, which may exist; its folder is created. Of a symbolic link, the target is
            replaced.

    Yields:
        `pathlib.Path` with the same name, in a temporary folder.

    Raises:
        OSError: naming `path`, if it cannot be written. After this or any other exception from the
            block, an old file is unchanged.
    """
    with _replacing(path, folder=False) as new:
        yield new


@contextlib.contextmanager
def replace_folder(path):
    """Yields an empty folder to fill; at the end of the block it replaces `path`.

    Args:
        path: folder, which may exist; its content is replaced. Its parent is created.

    Yields:
        `pathlib.Path` of a folder with the same name.

    Raises:
        OSError: as for `replace_file`.
    """
    with _replacing(path, folder=True) as new:
        new.mkdir()
        yield new


def write_bytes(path, content):
    """Writes a file in one step; raises as `replace_file`."""
    with replace_file(path) as new:
        new.write_bytes(content)


def write_text(path, text):
    """Writes a UTF-8 file in one step; raises as `replace_file`."""
    write_bytes(path, text.encode())


def check_file(path):
    """Checks that a file can be written, before the result that it will hold is computed.

    The check leaves nothing behind.

    Args:
        path: file, which may exist; its folder may be missing.

    Raises:
        OSError: naming `path`, if it cannot be written.
    """
    _check(path, folder=False)


def check_folder(path):
    """Checks that a folder can be replaced as a whole; as `check_file`."""
    _check(path, folder=True)


def check_contents(path):
    """Checks that files can be written to a folder, which may be missing; as `check_file`."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return _check(path, folder=True)
    with _naming(path):
        _probe(pathlib.Path(os.path.realpath(path)))


def check_written(path, complete, reason):
    """Raises an error for a file that a library wrote without reporting that the disk was full.

    Args:
        path: file that was written.
        complete: bool, whether all of it can be read back.
        reason: str, the part that is missing.

    Raises:
        OSError: naming `path`, if it is not complete.
    """
    if complete:
        return
    check_space(path)
    raise OSError(errno.EIO, f"was not written completely: {reason}", str(path))


def check_space(path, size=_PROBE):
    """Checks that the disk of a file that is being written is not full.

    Args:
        path: the file; its folder exists.
        size: int, bytes that must be free.

    Raises:
        OSError: naming `path`, if fewer are free.
    """
    if shutil.disk_usage(pathlib.Path(path).parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def make_folder(path):
    """Creates a folder and checks that files can be written to it.

    Args:
        path: folder, which may exist.

    Raises:
        OSError: naming `path`, if it is a file, or cannot be created or written to.
    """
    path = pathlib.Path(path)
    with _naming(path):
        _check_kind(path, folder=True)
        _make_parents(path)
        path.mkdir(exist_ok=True)
        _probe(path)


def clean(folder):
    """Removes temporary folders of killed processes, and completes an interrupted exchange.

    The functions of this module that write call it once for each folder. Readers need it only on
    file systems that cannot exchange two folders in one step (network drives), and only if a file
    is missing.

    Args:
        folder: may be missing.
    """
    try:
        with os.scandir(folder) as entries:
            leftovers = [entry.path for entry in entries if _is_left_behind(entry)]
    except OSError:
        return
    for path in map(pathlib.Path, leftovers):
        with contextlib.suppress(OSError):
            for old in (path / _OLD).iterdir():
                if not os.path.lexists(path.parent / old.name):
                    old.rename(path.parent / old.name)
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # A file, of an earlier version.
            path.unlink()


def final_name(text):
    """Removes the names of temporary folders from a message."""
    inside = rf"{_NAME.pattern}/(?:(?:{_NEW}|{_OLD})/)?"
    return re.sub(rf"{inside}|/{_NAME.pattern}(?:/(?:{_NEW}|{_OLD}))?(?!/)", "", text)


@contextlib.contextmanager
def _replacing(path, *, folder):
    named, path = pathlib.Path(path), pathlib.Path(os.path.realpath(path))
    temporary = None
    try:
        with _naming(named):
            _check_kind(path, folder)
            _make_parents(path)
            _clean_once(path.parent)
            temporary = _temporary(path.parent)
            (temporary / _NEW).mkdir()
            new = temporary / _NEW / path.name
            yield new
            _flush(new)
            _exchange(new, path, temporary / _OLD)
            _flush_entry(path.parent)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check(path, folder):
    named, path = pathlib.Path(path), pathlib.Path(os.path.realpath(path))
    with _naming(named):
        _check_kind(path, folder)
        _check_parents(path)
        parent = next(parent for parent in path.parents if parent.is_dir())
        _probe(parent, path.relative_to(parent))


def _probe(folder, path="."):
    """Creates folders and a file in a temporary folder, and removes them.

    Args:
        folder: `pathlib.Path` of an existing folder.
        path: of a file or folder in it, whose names may be too long for the file system, or
            contain characters that it does not allow.
    """
    temporary = _temporary(folder)
    try:
        inner = temporary / path
        inner.mkdir(parents=True, exist_ok=True)
        probe = inner / "x"
        probe.write_bytes(bytes(_PROBE))
        _flush_file(probe)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_kind(path, folder):
    """Rejects replacing a folder by a file, or a file by a folder."""
    if not os.path.lexists(path):
        return
    if folder and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "there is a file of that name")
    if not folder and path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "there is a folder of that name")
    if not folder and not path.is_file():
        raise OSError(errno.EINVAL, "it is neither a file nor a folder")


def _make_parents(path):
    _check_parents(path)
    path.parent.mkdir(parents=True, exist_ok=True)


def _check_parents(path):
    """Rejects a path that has a file among its parents."""
    parent = next(parent for parent in path.parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{parent} is a file, not a folder")


@contextlib.contextmanager
def _naming(path):
    """Makes errors that name a temporary file, or none, name `path`."""
    try:
        yield
    except OSError as error:
        other = error.filename
        ours = other is None or _NAME.search(str(other)) or _is_inside(path, str(other))
        if not ours:
            raise
        reason = error.strerror or " ".join(final_name(str(error)).split())
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            # HDF5 puts the reason into the middle of its message.
            if error.errno in (None, number) and os.strerror(number) in reason:
                raise OSError(number, os.strerror(number), str(path)) from error
        if error.errno is None:
            raise OSError(errno.EIO, reason, str(path)) from error
        raise OSError(error.errno, reason, str(path)) from error


def _is_inside(path, other):
    """Returns True if an error about `other`, a parent folder of `path`, concerns `path`."""
    other = pathlib.Path(os.path.realpath(other))
    path = pathlib.Path(os.path.realpath(path))
    return other == path or other in path.parents


def _temporary(folder):
    """Creates a folder for this writer alone."""
    name = f".kseg-{_HOST}-{os.getpid()}-{_TOKEN}-{uuid.uuid4().hex[:8]}.tmp"
    path = pathlib.Path(folder) / name
    path.mkdir()
    return path


def _clean_once(folder):
    with _lock:
        known = folder in _cleaned
        _cleaned.add(folder)
    if not known:
        clean(folder)


def _is_left_behind(entry):
    match = _NAME.fullmatch(entry.name)
    if match is None:
        former = _FORMER_NAME.fullmatch(entry.name)
        return former is not None and not _lives(int(former[1]))
    host, process, token = match.groups()
    if host == _HOST:
        return token != _TOKEN and (int(process) == os.getpid() or not _lives(int(process)))
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE


def _lives(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _flush(path):
    """Flushes a file, or all files of a folder, to disk."""
    if not path.is_dir():
        _flush_file(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _flush_file(os.path.join(folder, name))
        _flush_entry(folder)


def _flush_file(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot; that the disk is full or broken shows here, too.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(handle)


def _flush_entry(folder):
    """Flushes the entries of a folder to disk, where the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _exchange(new, path, old):
    """Replaces `path`, if it exists, by `new`; the old content is left in `old` or `new`."""
    if not path.is_dir():
        os.replace(new, path)
    elif not _swap(new, path):
        # Two steps: a kill between them leaves `old`, which `clean` puts back.
        old.mkdir()
        os.replace(path, old / path.name)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(old / path.name, path)
            raise


def _swap(first, second):
    """Exchanges two folders atomically; returns False if the system does not support it."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, ctypes.c_uint(2))  # RENAME_SWAP
    elif hasattr(library, "renameat2"):
        current_folder = ctypes.c_int(-100)  # AT_FDCWD
        failed = library.renameat2(
            current_folder, names[0], current_folder, names[1], ctypes.c_uint(2)
        )
    else:
        return False
    if failed and ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return not failed
