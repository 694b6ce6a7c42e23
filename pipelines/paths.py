"""Files at any path of `tf.io.gfile`: local, gs://, s3://."""

import uuid

import tensorflow as tf

from kseg import files


def is_local(path):
    """Whether a path is one of this machine's file systems."""
    return "://" not in str(path)


def write_bytes(path, content):
    """Writes a file in one step: a killed process leaves the old one or the new one.

    Args:
        path: file; the folder of a local one is made.
        content: bytes.

    Raises:
        OSError, tf.errors.OpError: if it cannot be written.
    """
    if is_local(path):
        files.write_bytes(path, content)
        return
    unfinished = f"{path}.{uuid.uuid4().hex}.tmp"
    with tf.io.gfile.GFile(unfinished, "wb") as file:
        file.write(content)
    tf.io.gfile.rename(unfinished, path, overwrite=True)
