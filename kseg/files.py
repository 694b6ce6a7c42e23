"""Atomic replacement of files and folders.

What is written goes to a folder beside the target, `.kseg-<host>-<process>.tmp`, under its final
name, is flushed to the disk, and takes the target's place in one step. A process that is killed
leaves the old one in place; what it wrote is removed when a later one writes to the same folder.
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
# A process number comes again, in a container that is started anew even at once.
_TOKEN = uuid.uuid4().hex[:8]
_NAME = re.compile(r"\.kseg-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}\.tmp")
# Names of earlier versions, beside the file: `.<file>.<process>.tmp`.
_FORMER_NAME = re.compile(
    r"\..+\.(?:csv|h5|html|json|jsonl|mp4|npz|onnx|png|tfrecord|tflite|tsv|txt|zip)\.(\d+)\.tmp"
)
# Of another host's process nothing says whether it lives; no write takes this long.
_STALE = 24 * 60 * 60  # Seconds.
_PROBE = 1 << 12  # Bytes, without which a disk is full.
_NEW, _OLD = "new", "old"
_cleaned = set()
_lock = threading.Lock()


@contextlib.contextmanager
def replace_file(path):
    """Yields a path to write; at the end of the block the file there takes the place of `path`.

    Args:
        path: file, which may exist; its folder is made. A link stays one: its target is replaced.

    Yields:
        `pathlib.Path` of the same name, in a folder of its own.

    Raises:
        OSError: naming `path`, if it cannot be written. The old file is still there then, as it is
            after any other exception from the block.
    """
    with _replacing(path, folder=False) as new:
        yield new


@contextlib.contextmanager
def replace_folder(path):
    """Yields an empty folder to fill; at the end of the block it takes the place of `path`.

    Args:
        path: folder, which may exist; what it holds is replaced. Its parent is made.

    Yields:
        `pathlib.Path` of a folder of the same name.

    Raises:
        OSError: as `replace_file` does.
    """
    with _replacing(path, folder=True) as new:
        new.mkdir()
        yield new


def write_bytes(path, content):
    """Writes a file in one step; arguments and errors as those of `replace_file`."""
    with replace_file(path) as new:
        new.write_bytes(content)


def write_text(path, text):
    """Writes a file in UTF-8 in one step; arguments and errors as those of `replace_file`."""
    write_bytes(path, text.encode())


def check_file(path):
    """Makes sure that a file can be written, before the work that it is to hold.

    Nothing is left behind: what was tried is removed again.

    Args:
        path: file, which may exist; its folder may be missing.

    Raises:
        OSError: naming `path`, if it cannot be written.
    """
    _check(path, folder=False)


def check_folder(path):
    """Makes sure that a folder can be replaced as a whole; as `check_file`."""
    _check(path, folder=True)


def check_contents(path):
    """Makes sure that files can be written to a folder, which may be missing; as `check_file`."""
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
        reason: str, what is missing.

    Raises:
        OSError: naming `path`, if it is not complete.
    """
    if complete:
        return
    check_space(path)
    raise OSError(errno.EIO, f"was not written completely: {reason}", str(path))


def check_space(path, size=_PROBE):
    """Makes sure that the disk of a file that is being written is not full.

    Args:
        path: the file; its folder exists.
        size: int, bytes that must be free.

    Raises:
        OSError: naming `path`, if fewer are.
    """
    if shutil.disk_usage(pathlib.Path(path).parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def make_folder(path):
    """Makes a folder, and makes sure that files can be written to it.

    Args:
        path: folder, which may exist.

    Raises:
        OSError: naming `path`, if it is a file, or cannot be made or written to.
    """
    path = pathlib.Path(path)
    with _naming(path):
        _check_kind(path, folder=True)
        _make_parents(path)
        path.mkdir(exist_ok=True)
        _probe(path)


def clean(folder):
    """Removes what killed processes left in a folder; one that was half exchanged is put back.

    Every function here that writes does it once for each folder. Readers need it only where a file
    system cannot exchange two folders in one step (network drives), and then only if what they
    look for is missing.

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
    """Takes temporary folders out of a message: the file as a user knows it."""
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
    """Makes folders and a file in a temporary folder, and removes them.

    Args:
        folder: `pathlib.Path` of one that exists.
        path: of a file or folder in it, whose names may be too long for the file system, or hold
            what it does not take.
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
    """Refuses to put a file in place of a folder, a folder in place of a file."""
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
    """Refuses a path below a file."""
    parent = next(parent for parent in path.parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{parent} is a file, not a folder")


@contextlib.contextmanager
def _naming(path):
    """Makes errors about temporary names, and those without a name, errors about `path`."""
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
    """Makes a folder that no other writer has."""
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
    """Puts `new` in place of `path`, which may exist; what was there is left in `old` or `new`."""
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
    """Exchanges two folders atomically; False if system or file system cannot."""
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
