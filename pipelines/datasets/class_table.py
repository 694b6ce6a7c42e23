"""Class tables of the user, in JSON, CSV or the formats of annotation tools.

    [{"name": "road", "color": [128, 64, 128]},      name,color,value,ignore     name,r,g,b
     {"name": "void", "color": "#000000",            road,#804080,7,             road,128,64,128
      "ignore": true}]                               void,#000000,0,yes          void,0,0,0

    {"0": "road", "1": "car"}        Pixel Value, Class             road:128,64,128::
                                     0, road                        void:0,0,0::
    classes.txt: one name a line     Roboflow's _classes.csv        CVAT's labelmap.txt

In classes.txt lines that begin with # are comments. If a number precedes every name (`0: road`),
numbers rise and names differ, they are the values.

`value` is the class's value in index masks; without that column, its position in the table, from 0.
`color` is its color in color-coded masks and in visualizations. Rows with `ignore` are not trained
on. The separator of a CSV file may be a comma, a semicolon or a tab.
"""

import colorsys
import csv
import dataclasses
import io
import re
import unicodedata

from kseg.classes import MAX_CLASSES
from kseg.json_text import parse_json
from pipelines.datasets.dataset import IGNORE_LABEL, Taxonomy, shorten
from pipelines.datasets.text_files import decode_text
from pipelines.errors import DataError

_COLUMNS = {"red": "r", "green": "g", "blue": "b", "colour": "color"}
_ROBOFLOW = ["pixel value", "class"]
_CVAT = "# label:color_rgb:parts:actions"
_SEPARATORS = ",;\t"
_NUMBERED = re.compile(r"(\d{1,5})(?:\s*[:=,;.)-]\s*|\s+)(\S.*)", flags=re.ASCII)
_YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the class table.

    Attributes:
        name: str.
        color: `(red, green, blue)`, or None.
        value: int.
        label: int, the class's number; 255 if it is ignored.
    """

    name: str
    color: tuple | None
    value: int
    label: int


class ClassTable:
    """A table of classes, their colors and their values.

    Args:
        content: bytes of the file.
        name: name of the file, for messages; an ending `.csv`, `.tsv` or `.txt` sets the format.

    Attributes:
        name: str.
        rows: list of `Row`.
        has_values: bool, whether the table gives the values; otherwise they count from 0.
        notes: list of str, remarks for the user on how the table was read.

    Raises:
        DataError: if the table cannot be used; names the row.
    """

    def __init__(self, content, name):
        self.name = str(name)
        text, note = decode_text(content, self.name)
        self.notes = [note] if note else []
        end = self.name.lower().rsplit(".", 1)[-1]
        entries = {"csv": self._read_csv, "tsv": self._read_csv, "txt": self._read_lines}.get(
            end, self._read
        )(text)
        self.rows = []
        has_value = [entry.get("value") not in (None, "") for entry in entries]
        if any(has_value) and not all(has_value):
            self._fail("either all rows or none must have a value", has_value.index(False))
        self.has_values = any(has_value)
        count = 0
        for i, entry in enumerate(entries):
            # The label 255 must not make a surplus class, rejected below, look ignored.
            self.rows.append(self._row(i, entry, count + (count == IGNORE_LABEL)))
            count += self.rows[-1].label != IGNORE_LABEL
        if not 0 < count <= MAX_CLASSES:
            raise DataError(
                f"{self.name} must have 1 to {MAX_CLASSES} classes that are not ignored. It has "
                f"{count}"
            )
        self._check_twins("name", [row.name for row in self.rows])
        self._check_twins("value", [row.value for row in self.rows])
        self._check_twins("color", [row.color for row in self.rows if row.color])

    @property
    def has_colors(self):
        """True if all rows have a color."""
        return all(row.color for row in self.rows)

    def taxonomy(self):
        """Returns the classes, as a taxonomy for labels that are already translated.

        Returns:
            `Taxonomy`; classes without a color are given one.
        """
        classes = [row for row in self.rows if row.label != IGNORE_LABEL]
        palette = [list(row.color or invented_color(row.label)) for row in classes]
        label_map = {row.label: row.label for row in classes} | {IGNORE_LABEL: IGNORE_LABEL}
        return Taxonomy([row.name for row in classes], palette, label_map)

    def _read(self, text):
        try:
            entries = parse_json(text, object_pairs_hook=self._without_twins)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{self.name} must be JSON or end in .csv: {error}") from None
        if isinstance(entries, dict):
            for key in ("classes", "id2label"):
                entries = entries.get(key, entries) if isinstance(entries, dict) else entries
        if isinstance(entries, dict) and entries and all(map(str.isdecimal, entries)):
            entries = [
                {"value": key, **(entry if isinstance(entry, dict) else {"name": entry})}
                for key, entry in entries.items()
            ]
        if isinstance(entries, list):
            entries = [{"name": e} if isinstance(e, str) else e for e in entries]
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise DataError(
                f'{self.name} must be a list of classes such as {{"name": "road", "color": '
                '[128, 64, 128]}, or map values to names such as {"0": "road"}'
            )
        return entries

    def _without_twins(self, pairs):
        keys = [key for key, _ in pairs]
        again = {key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()
        if again:
            raise DataError(f"{self.name} has a key twice: {shorten(sorted(map(repr, again)))}")
        return dict(pairs)

    def _read_lines(self, text):
        """Reads one name per line, perhaps numbered, or CVAT's labelmap.txt."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines or not lines[0].startswith(_CVAT):
            names = [line for line in lines if not line.startswith("#")]
            if len(names) < len(lines):
                comments = len(lines) - len(names)
                self.notes.append(f"{self.name}: {comments} lines that begin with # are left out")
            return self._numbered(names) or [{"name": name} for name in names]
        entries = []
        for i, line in enumerate(lines[1:]):
            parts = line.rsplit(":", 3)
            if len(parts) < 4:
                self._fail(f"a line must be name:red,green,blue:parts:actions, not {line!r}", i)
            entries.append({"name": parts[0], "color": parts[1]})
        return entries

    def _numbered(self, lines):
        """Parses lines such as `0: road` to entries; None unless all lines have this form."""
        found = [_NUMBERED.fullmatch(line) for line in lines]
        if len(lines) < 2 or not all(found):
            return None
        values, names = [int(match[1]) for match in found], [match[2] for match in found]
        if values != sorted(set(values)) or len(set(names)) < len(names):  # 1 Euro, 2 Euro.
            return None
        self.notes.append(
            f"{self.name}: the numbers before the names are read as the values of the masks, such "
            f"as {values[0]} for {names[0]!r}"
        )
        return [{"name": n, "value": v} for n, v in zip(names, values, strict=True)]

    def _read_csv(self, text):
        # Excel's optional first line, which declares the separator.
        declared = re.match(r"sep=(.)\r?\n", text, flags=re.IGNORECASE)
        text = text[declared.end() :] if declared else text
        head = next((line for line in text.splitlines() if line.strip()), "")
        separator = declared[1] if declared else max(_SEPARATORS, key=head.count)
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
        )
        try:
            table = [[cell.strip() for cell in row] for row in reader]
        except (csv.Error, TypeError, ValueError) as error:
            raise DataError(
                f"{self.name} is no sound CSV, line {reader.line_num}: {error}. A cell that begins "
                "with a quotation mark must end with one"
            ) from None
        table = [row for row in table if any(row)]
        columns = [_COLUMNS.get(c.lower(), c.lower()) for c in table[0]] if table else []
        if columns == _ROBOFLOW:
            columns = ["value", "name"]
        columns = _without_empty_ends(columns)
        known = {"name", "color", "r", "g", "b", "value", "ignore"}
        if "name" not in columns or not set(columns) <= known or len(set(columns)) < len(columns):
            raise DataError(
                f"{self.name} must begin with a line of columns: name, and color or r,g,b, and "
                "perhaps value, ignore, once each. It begins with "
                f"{', '.join(columns)[:200] or 'nothing'}"
            )
        entries = []
        for i, row in enumerate(table[1:]):
            row = row[: len(columns)] + _without_empty_ends(row[len(columns) :])
            if len(row) > len(columns):
                self._fail(f"a row must have {len(columns)} cells, this has {len(row)}", i)
            entry = dict(zip(columns, row, strict=False))
            if any(entry.get(channel) for channel in "rgb"):
                entry["color"] = [entry.get(channel) for channel in "rgb"]
            for channel in "rgb":
                entry.pop(channel, None)
            entries.append(entry)
        return entries

    def _row(self, number, entry, next_label):
        unknown = set(entry) - {"name", "color", "value", "ignore"}
        if unknown:
            self._fail(f"unknown key {sorted(unknown)[0]!r}", number)
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            self._fail(f"a class must have a name, not {name!r}", number)
        # Collapse whitespace to single spaces; compose letters (NFC), as typed on a keyboard.
        name = " ".join(unicodedata.normalize("NFC", name).split())
        if any(c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cs") for c in name):
            self._fail(f"a name must consist of printable characters, not {name!r}", number)
        value = entry.get("value")
        value = number if value in (None, "") else _whole_number(value)
        if not 0 <= value < 1 << 16:
            self._fail(f"a value must be 0 to 65535, not {entry.get('value')!r}", number)
        ignore = str(entry.get("ignore") or "").lower()
        if ignore not in (*_YES, *_NO):
            self._fail(f"ignore must be true or false, not {entry['ignore']!r}", number)
        label = IGNORE_LABEL if ignore in _YES else next_label
        return Row(name, self._color(entry.get("color"), number), value, label)

    def _color(self, color, number):
        if color in (None, ""):
            return None
        parts = color
        try:
            if isinstance(color, str) and color.startswith("#") and len(color) == 7:
                parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
            elif isinstance(color, str):
                parts = color.replace(",", " ").split()
            parts = tuple(_whole_number(part) for part in parts)
        except (ValueError, TypeError):
            parts = ()
        if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
            self._fail(f"a color must be [red, green, blue] or #rrggbb, not {color!r}", number)
        return parts

    def _check_twins(self, what, values):
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise DataError(
                f"{self.name}: every row must have a {what} of its own. Used twice: "
                f"{shorten([repr(twin) for twin in repeated])}"
            )

    def _fail(self, problem, number):
        raise DataError(f"{self.name}, class {number + 1}: {problem}")


def _whole_number(text):
    """Returns the integer in a cell such as `2`, `2.0` or Excel's `2,0`; -1 for any other text."""
    match = re.fullmatch(r"(\d{1,6})([.,]0*)?", str(text).strip(), flags=re.ASCII)
    return int(match[1]) if match else -1


def _without_empty_ends(cells):
    """Drops trailing empty cells, which spreadsheets tend to write."""
    while cells and not cells[-1]:
        cells = cells[:-1]
    return cells


def invented_color(label):
    """Invents a color for a label; hues are spaced by the golden ratio to be far apart."""
    channels = colorsys.hsv_to_rgb(label * 0.618034 % 1, (0.9, 0.55)[label % 2], 0.9)
    return [round(255 * channel) for channel in channels]
