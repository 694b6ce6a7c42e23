"""Display of user-given names, of any length and script, in tables, pictures and CSV."""

import unicodedata

_LONGEST = 40  # Columns of a name in a table.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Letters that are no letter with an accent.
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE", "ł": "l",
     "Ł": "L", "đ": "d", "Đ": "D", "\u0131": "i", "\u2018": "'", "\u2019": "'", "“": '"',
     "”": '"', "\u2013": "-", "—": "-", "…": "..."}
)  # fmt: skip


def width(text):
    """The columns that a text takes on a terminal: 2 for a wide sign, 0 for one that joins."""
    return sum(map(_columns, text))


def fit(text, columns):
    """Brings a text to a number of columns: blanks at its end, or cut off with `…`.

    Args:
        text: str.
        columns: int.

    Returns:
        str.
    """
    if width(text) > columns:
        kept, left = [], columns - 1
        for sign in text:
            left -= _columns(sign)
            if left < 0:
                break
            kept.append(sign)
        text = "".join(kept) + "…"
    return text + " " * (columns - width(text))


def name_columns(names):
    """The columns of a table for some names: those of the longest, within reason.

    Args:
        names: iterable of str.

    Returns:
        int.
    """
    return min(_LONGEST, max(map(width, names)))


def drawable(text):
    """A text in signs that OpenCV's fonts have: without accents, `?` for what has no Latin form."""
    plain = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    plain = (sign for sign in plain if not unicodedata.combining(sign) and _columns(sign))
    return "".join(sign if " " <= sign <= "~" else "?" for sign in plain)


def spreadsheet_cell(text):
    """A text that no spreadsheet takes for a formula: with an apostrophe where it begins as one."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _columns(sign):
    if unicodedata.category(sign) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1
