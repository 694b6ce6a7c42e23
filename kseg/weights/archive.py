"""What all readers of weights files share: a file that came from elsewhere must not harm.

A few bytes can claim a terabyte, or inflate to one. No reader takes more memory than `most_bytes`
of the file's size, and whatever its parser stumbles over becomes one line.
"""

import contextlib
import zipfile

from kseg.errors import UserError

# Networks are noise to a compressor; zeros of untrained layers are not.
_RATIO = 20
_SPARE = 2**26  # Bytes that any file may grow to.
_CHUNK = 2**22


def most_bytes(size):
    """The bytes that what is in a file may take in memory.

    Args:
        size: int, bytes of the file.

    Returns:
        int: 20 times as many, and 64 MB.
    """
    return _RATIO * size + _SPARE


@contextlib.contextmanager
def refuse_damage(path, kind, advice="Fetch it again"):
    """Turns whatever reading a file raises into one line.

    Args:
        path: of the file.
        kind: str, what it should be.
        advice: str, the way out.

    Raises:
        UserError: in place of every other exception. Parsers of damaged files raise anything:
            `zlib.error`, `NotImplementedError`, `RecursionError`, `MemoryError`...
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        reason = text[0][:200] if text else ""
        if not reason or not isinstance(error, (ValueError, OSError, zipfile.BadZipFile)):
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        raise UserError(f"{path} is damaged, or no {kind} ({reason}). {advice}") from None


def open_archive(file, size):
    """Opens a zip archive whose members are not larger than they should be.

    Args:
        file: path or binary file.
        size: int, bytes of the file.

    Returns:
        `zipfile.ZipFile`.

    Raises:
        ValueError: if its members claim more than `most_bytes`, or are compressed in a way that
            NumPy, Keras and PyTorch do not use.
        zipfile.BadZipFile: if it is no archive.
    """
    archive = zipfile.ZipFile(file)
    try:
        claimed = sum(info.file_size for info in archive.infolist())
        if claimed > most_bytes(size):
            raise ValueError(f"its {size} bytes would inflate to {claimed}")
        methods = {info.compress_type for info in archive.infolist()}
        if methods - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("its members are compressed by an unknown method")
    except ValueError:
        archive.close()
        raise
    return archive


def read_member(archive, name):
    """Reads a member of an archive piece by piece: it may inflate to more than it claims.

    Args:
        archive: from `open_archive`.
        name: str.

    Returns:
        bytearray.

    Raises:
        KeyError: if there is no such member.
        ValueError: if it has another size than it claims.
        zipfile.BadZipFile, zlib.error: if it is damaged.
    """
    info = archive.getinfo(name)
    content = bytearray()
    with archive.open(info) as member:
        while piece := member.read(_CHUNK):
            content += piece
            if len(content) > info.file_size:
                break
    if len(content) != info.file_size:
        raise ValueError(f"{name} does not have the {info.file_size} bytes that it claims")
    return content
