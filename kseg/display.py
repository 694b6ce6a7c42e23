"""Display of user-given names, of any length and script, in tables, pictures and CSV."""

import unicodedata

_LONGEST = 40  # Columns of a name in a table.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Replacements of letters and signs that do not decompose into ASCII and accents.
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE", "ł": "l",
     "Ł": "L", "đ": "d", "Đ": "D", "\u0131": "i", "\u2018": "'", "\u2019": "'", "“": '"',
     "”": '"', "\u2013": "-", "—": "-", "…": "..."}
)  # fmt: skip


def width(text):
    """Counts the terminal columns of a text: 2 for a wide character, 0 for a combining one."""
    return sum(map(_columns, text))


def fit(text, columns):
    """Pads a text with blanks to a number of columns, or shortens it to end in `…`.

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
    """Returns the width of a table's column for some names: that of the longest, at most 40.

    Args:
        names: iterable of str.

    Returns:
        int.
    """
    return min(_LONGEST, max(map(width, names)))


def drawable(text):
    """Reduces a text to ASCII, which OpenCV's fonts can draw: drops accents, `?` for the rest."""
    plain = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    plain = (sign for sign in plain if not unicodedata.combining(sign) and _columns(sign))
    return "".join(sign if " " <= sign <= "~" else "?" for sign in plain)


def spreadsheet_cell(text):
    """Puts an apostrophe before a text that a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _columns(sign):
    if unicodedata.category(sign) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1
