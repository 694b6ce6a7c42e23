"""Files at any path of `tf.io.gfile`: local, gs://, s3://.

Local files are read and written without TensorFlow, which takes seconds to import. Failures are an
`OSError` that names the path, for every kind of path.
"""

import contextlib
import errno
import os
import shutil
import stat
import uuid

from kseg import files


def is_local(path):
    """Returns True for a path in this machine's file systems."""
    return "://" not in str(path)


def join(*parts):
    """Joins the parts of a path, as str."""
    return os.path.join(*map(str, parts))


def exists(path):
    """Returns True if a file or folder exists.

    Raises:
        OSError: if that cannot be determined.
    """
    if is_local(path):
        return os.path.exists(path)
    with _remote(path) as gfile:
        return gfile.exists(str(path))


def size(path):
    """Returns the size of a file in bytes.

    Raises:
        OSError: `FileNotFoundError` if it does not exist.
    """
    if is_local(path):
        return os.stat(path).st_size
    with _remote(path) as gfile:
        return gfile.stat(str(path)).length


def read_bytes(path):
    """Reads a file.

    Raises:
        OSError: if it cannot be read; `FileNotFoundError` if it does not exist.
    """
    return b"".join(read_blocks(path))


def read_blocks(path, length=1 << 20):
    """Reads a file in blocks of `length` bytes, the last one shorter.

    Raises:
        OSError: as `read_bytes`.
    """
    if not is_local(path):
        with _remote(path) as gfile, gfile.GFile(str(path), "rb") as file:
            while block := file.read(length):
                yield block
        return
    # A pipe in place of a file would block.
    if not stat.S_ISREG(os.stat(path).st_mode):
        number = errno.EISDIR if os.path.isdir(path) else errno.EINVAL
        raise OSError(number, "it is not a file", str(path))
    with open(path, "rb") as file:
        while block := file.read(length):
            yield block


def write_bytes(path, content):
    """Writes a file in one step: a killed process leaves either the old or the new one.

    Args:
        path: file; for a local one, its folder is created.
        content: bytes.

    Raises:
        OSError: if it cannot be written.
    """
    if is_local(path):
        files.write_bytes(path, content)
        return
    with _remote(path) as gfile:
        unfinished = f"{path}.{uuid.uuid4().hex}.tmp"
        with gfile.GFile(unfinished, "wb") as file:
            file.write(content)
        gfile.rename(unfinished, str(path), overwrite=True)


def check_folder(path):
    """Checks that files can be written to a folder, before the work whose results it will hold.

    Args:
        path: folder, which may be missing; it is not created. Remote ones are not checked.

    Raises:
        OSError: if they cannot; names `path`.
    """
    if is_local(path):
        files.check_contents(path)


def make_folder(path):
    """Creates a folder and its parents, unless they exist.

    Raises:
        OSError: if it cannot be created or, if it is local, cannot be written to.
    """
    if is_local(path):
        files.make_folder(path)
        return
    with _remote(path) as gfile:
        gfile.makedirs(str(path))


def list_folder(path):
    """Lists the names in a folder, as a list of str; empty if the folder is missing.

    Raises:
        OSError: if it cannot be listed.
    """
    try:
        if is_local(path):
            return os.listdir(path)
        with _remote(path) as gfile:
            return [name.rstrip("/") for name in gfile.listdir(str(path))]
    except FileNotFoundError:
        return []


def rename(path, new):
    """Renames a file, replacing any file of the new name.

    Raises:
        OSError: if it cannot be renamed.
    """
    if is_local(path):
        os.replace(path, new)
        return
    with _remote(path) as gfile:
        gfile.rename(str(path), str(new), overwrite=True)


def remove(path):
    """Removes a file, which may be missing, or a folder with its content.

    Raises:
        OSError: if it cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        if not is_local(path):
            with _remote(path) as gfile:
                remove_it = gfile.rmtree if gfile.isdir(str(path)) else gfile.remove
                remove_it(str(path))
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


@contextlib.contextmanager
def _remote(path):
    """Yields `tf.io.gfile`; its errors become those of the operating system."""
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, _reason(error), str(path)) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, _reason(error), str(path)) from error


def _reason(error):
    return " ".join(str(error.message).split())
