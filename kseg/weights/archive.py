"""Safeguards shared by all readers of weights files, which may come from an untrusted source.

A few bytes can claim a terabyte, or inflate to one. No reader takes more memory than `max_bytes`
of the file's size, and every parser error becomes a one-line message.
"""

import contextlib
import lzma
import pickle
import struct
import zipfile
import zlib

from kseg.errors import UserError

# Trained weights hardly compress; the zeros of untrained layers do.
_RATIO = 20
_SPARE = 2**26  # Bytes allowed in addition, whatever the size of the file.
_CHUNK = 2**22
_REASONS = {
    (zlib.error, lzma.LZMAError): "its compressed content is damaged",
    (EOFError, struct.error): "it is cut off",
    MemoryError: "it claims more memory than there is",
    RecursionError: "it is nested too deeply",
    NotImplementedError: "it uses a feature of its format that is not supported",
    UnicodeError: "its text is damaged",
}


def max_bytes(size):
    """Limits the memory that the content of a file may take.

    Args:
        size: int, bytes of the file.

    Returns:
        int, bytes: 20 times the size, plus 64 MiB.
    """
    return _RATIO * size + _SPARE


@contextlib.contextmanager
def reporting_damage(path, kind, advice="Fetch it again"):
    """Turns any error of reading a file into a one-line `UserError`.

    Args:
        path: path of the file, for the message.
        kind: str, the expected kind of file.
        advice: str, what the user should do.

    Raises:
        UserError: in place of every other exception. Parsers of damaged files raise errors of many
            types: `zlib.error`, `NotImplementedError`, `RecursionError`, `MemoryError`...
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is damaged or not a {kind} ({_plain_reason(error)}). {advice}"
        ) from None


def _plain_reason(error):
    """Describes what is wrong with a file, without the names of Python's exceptions."""
    for kinds, reason in _REASONS.items():
        if isinstance(error, kinds):
            return reason
    if isinstance(error, KeyError) and error.args:
        return f"it has no {str(error.args[0])[:80]!r}"
    text = str(error).strip().splitlines()
    if text and isinstance(error, (ValueError, OSError, zipfile.BadZipFile, pickle.PickleError)):
        return text[0][:200]
    return "its structure is not that of such a file"


def open_archive(file, size):
    """Opens a zip archive after checking the sizes that its members claim.

    Args:
        file: path or binary file.
        size: int, bytes of the file.

    Returns:
        `zipfile.ZipFile`.

    Raises:
        ValueError: if its members claim more than `max_bytes`, or use a compression method that
            NumPy, Keras and PyTorch do not use.
        zipfile.BadZipFile: if it is not a zip archive.
    """
    archive = zipfile.ZipFile(file)
    try:
        claimed = sum(info.file_size for info in archive.infolist())
        if claimed > max_bytes(size):
            raise ValueError(f"its {size} bytes would inflate to {claimed}")
        methods = {info.compress_type for info in archive.infolist()}
        if methods - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("its members are compressed by an unknown method")
    except ValueError:
        archive.close()
        raise
    return archive


def read_member(archive, name):
    """Reads a member of an archive in chunks, since it may inflate to more than it claims.

    Args:
        archive: from `open_archive`.
        name: str.

    Returns:
        bytearray.

    Raises:
        KeyError: if there is no such member.
        ValueError: if its size is not the claimed one.
        zipfile.BadZipFile, zlib.error: if it is damaged.
    """
    info = archive.getinfo(name)
    content = bytearray()
    with archive.open(info) as member:
        while chunk := member.read(_CHUNK):
            content += chunk
            if len(content) > info.file_size:
                break
    if len(content) != info.file_size:
        raise ValueError(f"{name} does not have the {info.file_size} bytes that it claims")
    return content
