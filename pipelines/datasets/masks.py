"""Interpretation of the values in a user's masks; ambiguity raises an error that asks for a choice.

An index mask can be read by its values, or by matching the colors of its palette or its shades of
gray with the class table; 255 can be the ignored value or the second of two classes. The masks are
inspected, and each possible interpretation is checked against the class table.
"""

import collections
import concurrent.futures
import dataclasses
import os
import sys

import numpy as np

from kseg.errors import option
from pipelines.datasets.dataset import IGNORE_LABEL, Found
from pipelines.datasets.label_files import (
    BinaryMask,
    ColorMask,
    ValueMask,
    color_codes,
    count_values,
)
from pipelines.datasets.mask_files import decode_mask
from pipelines.errors import DataError
from pipelines.pictures import TooLargeError

MASKS = ("auto", "index", "colors", "binary")
_SAMPLE = 16
_MANY = 500
_WHITES = (1, 255, 65535)
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Look:
    """Summary of the content of one mask.

    Attributes:
        pixels: dict from `(value, color code, whether the color is from a palette)` to the number
            of pixels; None for a color picture.
        white: int, see `pipelines.datasets.mask_files.Mask`.
    """

    pixels: dict | None
    white: int


class Masks:
    """Summary of the content of a set of masks.

    Args:
        files: list of files, not empty.
        indices: list of int, indices of the files to inspect.
        parts: function from a file to an iterable of `pipelines.datasets.mask_files.Mask`, the
            parts of its picture.

    Raises:
        DataError: if none of them can be read.

    Attributes:
        colored: the first file that is a color picture, or None.
        gray: the first file that is not a color picture, or None.
        pixels: `collections.Counter`, the sum of all `Look.pixels`.
        values: set of int, all values that occur.
        patterns: set of frozensets, the sets of values of masks with at most 3 values.
        white: int, the largest `white` of the masks.
    """

    def __init__(self, files, indices, parts):
        self.colored = self.gray = None
        self.pixels = collections.Counter()
        self.patterns = set()
        self.white = 1
        with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            looks = pool.map(lambda i: _look(files[i], parts), indices)
            faults = []
            for i, look in zip(indices, looks, strict=True):
                if isinstance(look, str):  # Reported in preparation, unless all are faulty.
                    faults.append(f"{files[i]}: {look}")
                    continue
                if look.pixels is None:
                    self.colored = self.colored or files[i]
                    continue
                self.gray = self.gray or files[i]
                self.pixels.update(look.pixels)
                self.white = max(self.white, look.white)
                values = frozenset(value for value, _, _ in look.pixels)
                if len(values) <= 3:
                    self.patterns.add(values)
        if len(faults) == len(indices):
            more = (
                f" (none of the first {len(faults)} masks can be read)" if len(faults) > 1 else ""
            )
            raise DataError(faults[0] + more)
        self.values = {value for value, _, _ in self.pixels}


def read_masks(
    table, splits, masks="auto", unknown="error", *, taxonomy=None, notes=(), parts=None
):
    """Builds a data set whose masks are read by a class table.

    Args:
        table: `pipelines.datasets.class_table.ClassTable`.
        splits: dict from split to list of `pipelines.datasets.dataset.FileExample`.
        masks, unknown: as for `choose_reader`.
        taxonomy: `Taxonomy`; None: the table's.
        notes: list of str, lines for the user.
        parts: as for `choose_reader`.

    Returns:
        `pipelines.datasets.dataset.Found`.

    Raises:
        DataError: as `choose_reader`.
    """
    # Each mask only once: list files may name an image for several splits.
    used = {str(e.label): e.label for examples in splits.values() for e in examples}
    files = [used[key] for key in sorted(used)]
    reader, note = choose_reader(table, files, masks, unknown, parts=parts)
    splits = {
        name: [dataclasses.replace(example, decode=reader) for example in examples]
        for name, examples in splits.items()
    }
    return Found(taxonomy or table.taxonomy(), splits, [*notes, *([note] if note else [])])


def choose_reader(table, files, masks="auto", unknown="error", *, progress=True, parts=None):
    """Chooses the reader of the masks.

    Args:
        table: `pipelines.datasets.class_table.ClassTable`.
        files: list of mask files. All are inspected if a first sample is inconclusive.
        masks: str, one of `MASKS`.
        unknown: str, treatment of values and colors outside the table: `error` or `ignore`.
        progress: bool, print a message before inspecting many masks.
        parts: as for `Masks`; None: each file is decoded whole.

    Returns:
        `(reader, note)`: one of `pipelines.datasets.label_files`, and a line for the user if the
        interpretation is not the usual one, else None.

    Raises:
        DataError: if no interpretation fits, or several do.
    """
    outside = IGNORE_LABEL if unknown == "ignore" else None
    choice = _Choice(table, outside)
    if masks == "index" or not files:
        return choice.by_values(), None
    if masks == "colors":
        return choice.by_colors(), None
    if masks == "binary":
        if len(table.rows) != 2:
            raise DataError(
                f"{option('masks', 'binary')} needs a class table of two rows, the first dark and "
                f"the second bright. {table.name} has {len(table.rows)}"
            )
        return BinaryMask(*(row.label for row in table.rows)), None
    step = max(1, len(files) // _SAMPLE)
    parts = parts or _whole
    scan = Masks(files, list(range(0, len(files), step))[:_SAMPLE], parts)
    if not choice.is_settled(scan):
        if len(files) > _MANY and progress:
            print(f"looking at the values of {len(files)} masks", file=sys.stderr, flush=True)
        scan = Masks(files, range(len(files)), parts)
    return choice.choose(scan)


class _Choice:
    """The interpretations that a class table allows, and the choice among those that fit."""

    def __init__(self, table, outside):
        self._table, self._outside = table, outside
        self._rows = {row.value: row for row in table.rows}
        self._by_color = {row.color: row for row in table.rows if row.color}

    def by_values(self, *, check_palette=False, hint=""):
        rows = [(row.value, row.color, row.label) for row in self._table.rows]
        if IGNORE_LABEL not in self._rows:
            rows.append((IGNORE_LABEL, None, IGNORE_LABEL))
        return ValueMask(tuple(rows), self._outside, check_palette, hint)

    def by_colors(self, hint=""):
        if not self._table.has_colors:
            raise DataError(
                f"{self._table.name} must give every class a color: the masks hold colors"
            )
        rows = self._table.rows
        colors, labels = zip(*((row.color, row.label) for row in rows), strict=True)
        return ColorMask(colors, labels, self._outside, hint)

    def is_settled(self, scan):
        """Returns True if inspecting further masks cannot change the choice."""
        if scan.colored:
            return True
        ordinary = scan.values & self._rows.keys() - {0, *_WHITES}
        return bool(
            ordinary
            and self._fits_values(scan)
            and not self._fits_colors(scan)
            and not self._contradiction(scan)
        )

    def choose(self, scan):
        if scan.colored:
            if scan.gray and self._fits_values(scan) and not self._fits_colors(scan):
                raise DataError(
                    f"{scan.colored}: masks must be of one kind, but this has colors, and "
                    f"{scan.gray} has numbers ({_listed(scan.values)}). Save them in one way"
                )
            return self.by_colors(_smooth()), None
        if contradiction := self._contradiction(scan):
            raise DataError(f"{contradiction}. {_choose()}")
        self._check_two_kinds_of_binary(scan)
        readings = []
        if self._fits_values(scan) and not self._ignores_all_but_one(scan):
            labels = {key: self._label(key[0]) for key in scan.pixels}
            readings.append(("value", labels, self.by_values(check_palette=True), None))
        if self._is_binary(scan):
            readings.append(self._binary(scan))
        if self._fits_colors(scan):
            labels = {key: self._by_color[_rgb(key[1])].label for key in scan.pixels}
            note = (
                f"The masks are read by their colors: {self._meaning(labels)}. Read by values: "
                f"{option('masks', 'index')}"
            )
            readings.append(("color", labels, self.by_colors(), note))
        if not readings:
            return self._nothing_fits(scan)
        (first, labels, reader, note), *others = readings
        for second, other, *_ in others:
            if other != labels:
                raise DataError(
                    f"Two readings of the masks fit {self._table.name}: by {first}, "
                    f"{self._meaning(labels)}; by {second}, {self._meaning(other)}. {_choose()}, "
                    "or give the table a column `value`"
                )
        return reader, None if others else note  # Interpretations that agree need no note.

    def _label(self, value):
        return self._rows[value].label if value in self._rows else IGNORE_LABEL

    def _fits_values(self, scan):
        return scan.values <= self._rows.keys() | {IGNORE_LABEL}

    def _fits_colors(self, scan):
        return self._table.has_colors and all(
            _rgb(code) in self._by_color for _, code, _ in scan.pixels
        )

    def _contradiction(self, scan):
        """Describes a value with the palette color of another row, or returns None."""
        for value, code, in_palette in sorted(scan.pixels):
            other = self._by_color.get(_rgb(code))
            if not in_palette or other is None or value not in self._rows:
                continue
            row = self._rows[value]
            if row.label != other.label:
                return (
                    f"Two readings of the masks fit {self._table.name}: the value {value} is "
                    f"{row.name!r}, but its color in the palette, #{code:06x}, is that of "
                    f"{other.name!r}"
                )
        return None

    def _ignores_all_but_one(self, scan):
        """Returns True if 255 would be ignored and at most one value would remain."""
        return (
            IGNORE_LABEL in scan.values and IGNORE_LABEL not in self._rows and len(scan.values) <= 2
        )

    def _is_binary(self, scan):
        """Returns True for black and white masks and a table of two rows, 0 and 1 (or 255)."""
        bright = max(scan.values, default=0)
        return (
            len(self._table.rows) == 2
            and 0 in self._rows
            and max(self._rows) in (1, IGNORE_LABEL)
            and scan.values == {0, bright}
            and bright in _WHITES
            and bright not in self._rows
        )

    def _binary(self, scan):
        bright, row = max(scan.values), self._rows[max(self._rows)]
        rows = ((0, None, self._rows[0].label), (bright, None, row.label))
        labels = {key: self._rows[0].label if key[0] == 0 else row.label for key in scan.pixels}
        note = (
            f"The masks hold 0 and {bright}: {bright} is read as {row.name!r}, whose value in "
            f"{self._table.name} is {row.value}"
        )
        if bright == IGNORE_LABEL:
            note += f". Ignore 255 instead: {option('masks', 'index')}"
        return "black and white", labels, ValueMask(rows, self._outside), note

    def _check_two_kinds_of_binary(self, scan):
        """Raises a DataError if some masks hold 0 and 1 and others 0 and 255."""
        if len(self._table.rows) != 2 or not {1, IGNORE_LABEL} <= scan.values <= {0, 1, 255}:
            return
        if IGNORE_LABEL in self._rows or any({1, 255} <= pattern for pattern in scan.patterns):
            return
        raise DataError(
            "Two readings of the masks fit: some hold 0 and 1, others 0 and 255, none both 1 and "
            f"255. Is 255 the class {self._rows[max(self._rows)].name!r}, or is it ignored? If it "
            "is a class, save all masks with 0 and 1. If it is ignored, give "
            f"{option('masks', 'index')}"
        )

    def _nothing_fits(self, scan):
        """Raises an explanatory DataError if nothing fits, or returns the closest reader."""
        name, counts = self._table.name, collections.Counter()
        for (value, _, _), count in scan.pixels.items():
            counts[value] += count
        if self._ignores_all_but_one(scan):
            only = f"The masks hold {_listed(scan.values)} only, and no row of {name} has the "
            raise DataError(
                f"{only}value 255. Two readings fit: 255 is a class, then give its row the value "
                f"255 (a column `value`); or it is ignored, then give {option('masks', 'index')}"
            )
        ignorable = self._outside is not None and IGNORE_LABEL in self._rows
        if len(self._table.rows) == 2 and self._is_blurred(counts, scan.white) and not ignorable:
            a, b = (repr(row.name) for row in sorted(self._table.rows, key=lambda row: row.value))
            raise DataError(
                f"The masks are black and white, but blurred: {_listed(scan.values)}. So do JPEG "
                f"and resizing. If black is {a} and white is {b}, give "
                f"{option('masks', 'binary')}, which divides at half brightness; "
                f"{option('masks', 'index')} takes the values as they are"
            )
        readings = [self.by_values(check_palette=True, hint=self._hint(scan))]
        if self._outside is not None and self._table.has_colors:
            known = {value for value in scan.values if value in self._rows}
            shades = {code for _, code, _ in scan.pixels if _rgb(code) in self._by_color}
            if len(shades) > len(known):
                return self.by_colors(), "The masks are read by their colors"
        return readings[0], None

    def _is_blurred(self, counts, white):
        """Returns True if nearly all pixels are almost black or white, with some in between."""
        total, margin = sum(counts.values()), white // 8
        dark = sum(n for value, n in counts.items() if value <= margin)
        bright = sum(n for value, n in counts.items() if value >= white - margin)
        several = len(counts) > 4 or not self._rows.keys() <= counts.keys()
        return several and white >= 255 and dark and bright and dark + bright >= 0.9 * total

    def _hint(self, scan):
        values, rows = scan.values - {IGNORE_LABEL}, sorted(self._rows)
        seen = f". All masks together hold {_listed(scan.values)}"
        if not values:
            return seen
        if not self._table.has_values and min(values) == 1 and max(values) == len(rows):
            return (
                f"{seen}: they seem to count from 1, the rows of the table from 0. Give the table "
                f"a column `value` (1 to {len(rows)})"
            )
        if not self._table.has_values and len(values) == len(rows):
            return f"{seen}. Give the table a column `value` that says which of them is which class"
        if values - set(rows) == {0}:
            return f"{seen}. If 0 is what nobody labeled, give the table a row for it, with ignore"
        if set(rows) < values and max(values - set(rows)) in (254, 65535):
            return f"{seen}. A value to be ignored needs a row with ignore"
        ignore = option("unknown", "ignore")
        return f"{seen}. Give each a row (with ignore if need be), or {ignore}"

    def _meaning(self, labels):
        names = {row.label: row.name for row in self._table.rows if row.label != IGNORE_LABEL}
        parts = {
            value: names.get(label, "ignored") for (value, _, _), label in sorted(labels.items())
        }
        shown = [f"{value} is {name!r}" for value, name in list(parts.items())[:3]]
        return ", ".join(shown)


def _choose():
    return f"Choose by {option('masks', 'index')} or {option('masks', 'colors')}"


def _smooth():
    return (
        ". Colors between those of the table come from smoothed edges or JPEG: save the masks "
        f"without, or {option('unknown', 'ignore')}"
    )


def _whole(file):
    return [decode_mask(file.read_bytes())]


def _look(file, parts):
    """Inspects a mask; returns the reason as str if it cannot be read."""
    pixels, white = collections.Counter(), 1
    try:
        for mask in parts(file):
            white = max(white, mask.white)
            if mask.is_colored:
                return Look(None, white)
            pixels.update(_count(mask))
    except TooLargeError as error:
        return error.in_preparation()
    except DataError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return Look(dict(pixels), white)


def _count(mask):
    """Returns the `Look.pixels` of a mask without colors."""
    if mask.values.ndim == 3:
        mask = dataclasses.replace(mask, values=np.ascontiguousarray(mask.values[..., 0]))
    counts = count_values(mask.values)
    values = np.flatnonzero(counts)
    one_each = dataclasses.replace(mask, values=values.astype(mask.values.dtype)[None])
    try:
        codes = color_codes(one_each)[0].tolist()
    except DataError:
        codes = [-1] * len(values)  # 16-bit values are not colors.
    in_palette = mask.has_palette_colors
    keys = ((int(v), code, in_palette) for v, code in zip(values, codes, strict=True))
    return dict(zip(keys, counts[values].tolist(), strict=True))


def _rgb(code):
    return (code >> 16, code >> 8 & 255, code & 255) if code >= 0 else None


def _listed(values):
    """Formats the first few values and the number of the others."""
    shown = ", ".join(map(str, sorted(values)[:_SHOWN]))
    rest = len(values) - _SHOWN
    return f"{shown} and {rest} more up to {max(values)}" if rest > 0 else shown
