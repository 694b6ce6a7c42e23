"""Decoding of text files as common tools write them: UTF-8, UTF-16 (BOM or not), ANSI."""

import codecs
import unicodedata

from pipelines.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # Before UTF-16, whose mark is a prefix of this one.
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ALLOWED = "\t\n\r\f\v\x85"


def decode_text(content, name):
    """Decodes a text file without replacing or dropping characters.

    Args:
        content: bytes.
        name: name of the file, for messages.

    Returns:
        `(text, note)`: str without byte order mark, and a line for the user if the encoding is
        an assumption, else None.

    Raises:
        DataError: if it is not text, or is in an encoding other than UTF-8, UTF-16, UTF-32 or
            Windows-1252.
    """
    encoding, note = _encoding(content), None
    content = next(
        (content[len(mark) :] for mark, _ in _MARKS if content.startswith(mark)), content
    )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise DataError(f"{name} begins as {encoding.upper()} and is damaged") from None
        try:
            text = content.decode("cp1252")
        except UnicodeDecodeError:
            raise _not_text(name) from None
        line = next(line.strip() for line in text.splitlines() if not line.isascii())
        note = (
            f"{name} is not UTF-8: read as Windows-1252 (Excel's and Notepad's ANSI), such as "
            f"{line[:60]!r}. If that is wrong, save the file as UTF-8"
        )
    if any(unicodedata.category(c) == "Cc" and c not in _ALLOWED for c in set(text)):
        raise _not_text(name)
    return text, note


def _encoding(content):
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding
    # UTF-16 without BOM: in plain Latin text every other byte is zero.
    if len(content) >= 4 and len(content) % 2 == 0:
        for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            if content[start::2].count(0) > 0.9 * len(content) / 2:
                return encoding
    return "utf-8"


def _not_text(name):
    return DataError(f"{name} must be a text file, as UTF-8. It holds bytes that are no text")
