"""Readers of label files: from bytes to an array of values.

A reader is called with the bytes and returns a uint8 or uint16 array `(height, width)`; it raises
`DataError` for a file that it cannot read. Its `repr` states everything else that determines the
result. A `PictureReader` also reads a picture that is decoded already, or a part of one.
"""

import collections
import dataclasses
import functools
import io

import numpy as np

from kseg.errors import option
from kseg.json_text import parse_json
from pipelines.datasets.mask_files import decode_mask
from pipelines.errors import DataError

_UNKNOWN = 0xFFFF
_BLOCK = 1 << 22  # Pixels.


class PictureReader:
    """A reader of pictures: `decode_mask`, then `read`; JPEG files only if `lossy`."""

    lossy = False

    def __call__(self, content):
        """Decodes; see the module."""
        return self.read(decode_mask(content, lossy=self.lossy))

    def read(self, mask):
        """Reads a `pipelines.datasets.mask_files.Mask`; returns and raises as `__call__`."""
        raise NotImplementedError(f"{type(self).__name__} reads no masks")


@dataclasses.dataclass(frozen=True)
class IndexMask(PictureReader):
    """A picture whose values are the labels, see `pipelines.datasets.mask_files.Mask.values`.

    Three equal channels, with or without an opacity channel, count as one.
    """

    def read(self, mask):
        """Reads a mask; see `PictureReader`."""
        return _one_channel(mask)


INDEX_MASK = IndexMask()


@dataclasses.dataclass(frozen=True)
class ValueMask(PictureReader):
    """A picture whose values are those of a class table.

    Attributes:
        rows: tuple of `(value, color, label)`; `color` is `(red, green, blue)` or None, `label` 0
            to 255.
        unknown: int, the label of any other value; None if other values are errors.
        check_palette: bool, raise an error if the palette gives a value the color of a row with
            another label: read by its colors, the mask would mean something else.
        hint: str, the end of the message about unknown values.
    """

    rows: tuple
    unknown: int | None = None
    check_palette: bool = False
    hint: str = dataclasses.field(default="", repr=False, compare=False)

    def read(self, mask):
        """Reads a mask; see `PictureReader`."""
        values = _one_channel(mask)
        if self.check_palette and mask.has_palette_colors:
            self._check_palette(values, mask.palette)
        # 8-bit tables save memory: aerial masks have hundreds of millions of pixels.
        table = np.zeros(1 << 8 * values.itemsize, "uint8")
        unknown = np.ones(len(table), bool)
        for value, _, label in self.rows:
            if value < len(table):
                table[value], unknown[value] = label, False
        labels, strange = table[values], unknown[values]
        if strange.any():
            if self.unknown is None:
                raise DataError(
                    "values must be those of the class table; found "
                    f"{_frequent(_as_counter(values, unknown), '{}')}{self.hint}"
                )
            labels[strange] = self.unknown
        return labels

    def _check_palette(self, values, palette):
        labels = {value: label for value, _, label in self.rows}
        others = {color: (value, label) for value, color, label in self.rows if color}
        for value in np.flatnonzero(count_values(values)):
            color = tuple(palette[value].tolist()) if value < len(palette) else None
            if color in others and value in labels and others[color][1] != labels[value]:
                raise DataError(
                    f"the value {value} has the color #{bytes(color).hex()} in the palette, which "
                    f"the class table gives to the value {others[color][0]}. Choose by "
                    f"{option('masks', 'index')} (values count) or {option('masks', 'colors')} "
                    "(colors count)"
                )


@dataclasses.dataclass(frozen=True)
class ColorMask(PictureReader):
    """A picture whose colors are the labels; opacity is ignored.

    Attributes:
        colors: tuple of `(red, green, blue)`.
        values: tuple of int below 65535, the value of each color.
        unknown: int, the value of any other color; None if other colors are errors.
        hint: str, the end of the message about unknown colors.
    """

    colors: tuple
    values: tuple
    unknown: int | None = None
    hint: str = dataclasses.field(default="", repr=False, compare=False)

    def read(self, mask):
        """Reads a mask; see `PictureReader`."""
        table, found = _color_table(self.colors, self.values), collections.Counter()
        values = np.empty(mask.values.shape[:2], "uint16")
        # Row by row: 32-bit codes for a whole aerial mask would exhaust the memory.
        for row, target in zip(mask.values[:, None], values[:, None], strict=True):
            codes = color_codes(dataclasses.replace(mask, values=row))
            target[...] = table[codes]
            strange = target == _UNKNOWN
            if strange.any():
                found.update(codes[strange].tolist() if self.unknown is None else ())
                target[strange] = self.unknown or 0
        if found:
            share = 100 * found.total() / values.size
            raise DataError(
                "colors must be in the class table; found "
                f"{_frequent(found, '#{:06x}')}, {share:.2g} % of the mask{self.hint}"
            )
        return values


@dataclasses.dataclass(frozen=True)
class BinaryMask(PictureReader):
    """A gray picture, dark for one label and bright for another; tolerates blur and JPEG.

    Attributes:
        dark, bright: int, the labels of pixels below half of the largest possible value, and of
            the others.
    """

    dark: int
    bright: int

    lossy = True

    def read(self, mask):
        """Reads a mask; see `PictureReader`."""
        if mask.has_palette_colors:
            raise DataError("a binary mask must be gray, this has a palette of colors")
        values = _one_channel(mask)
        most = int(values.max(initial=0))
        if 0 < most <= 1 < mask.white:
            raise DataError(
                f"a binary mask must be dark and bright, this holds 0 and 1 of {mask.white}. Use "
                f"{option('masks', 'index')}"
            )
        return np.where(values >= (mask.white + 1) // 2, self.bright, self.dark).astype("uint16")


@dataclasses.dataclass(frozen=True)
class RedChannel(PictureReader):
    """A picture whose red channel holds the labels; the other channels are ignored."""

    def read(self, mask):
        """Reads a mask; see `PictureReader`."""
        values = mask.values
        if values.ndim != 3 or values.dtype != np.uint8:
            raise DataError("a label must have three channels of 8 bits, this has another form")
        return values[..., 0]


@dataclasses.dataclass(frozen=True)
class MatVariable:
    """A variable of a MATLAB file that is an integer label map; needs SciPy.

    Attributes:
        variable: str.
    """

    variable: str

    def __call__(self, content):
        """Decodes; see the module."""
        try:
            import scipy.io
        except ImportError:
            raise DataError(
                "reading MATLAB files needs SciPy. Install it: pip install 'kseg[mat]'"
            ) from None
        try:
            found = scipy.io.loadmat(io.BytesIO(content), variable_names=[self.variable])
        except Exception as error:  # SciPy has no error class of its own: it may raise anything.
            raise DataError(f"the MATLAB file cannot be read ({error})") from None
        if self.variable not in found:
            raise DataError(f"the MATLAB file must hold the variable {self.variable!r}")
        values = found[self.variable]
        whole = values.astype("uint16") if values.dtype.kind in "iufb" else None
        if whole is None or values.ndim != 2 or (whole != values).any():
            raise DataError(
                f"{self.variable} must be a map of whole numbers, this is {values.dtype} of shape "
                f"{values.shape}"
            )
        return whole


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """JSON with the masks of an image in COCO's compressed run-length encoding.

    `{"size": [height, width], "masks": [[value, counts], ...]}`; later masks cover earlier
    ones, and pixels outside all masks are 0.
    """

    def __call__(self, content):
        """Decodes; see the module."""
        label = parse_json(content)
        height, width = label["size"]
        values = np.zeros(height * width, "uint16")
        for value, counts in label["masks"]:
            runs = expand_runs(counts)
            if sum(runs) != height * width or min(runs, default=0) < 0:
                raise DataError(f"a mask of class {value} does not fill {height}x{width} pixels")
            values[np.repeat(np.arange(len(runs)) % 2 == 1, runs)] = value
        # Masks are stored column by column.
        return values.reshape(width, height).T


@dataclasses.dataclass(frozen=True)
class Recoded:
    """Translation of another reader's values.

    Attributes:
        reader: a reader of this module.
        name: str, name of the table in messages.
        table: tuple of int: the new values of 0, 1, ...; -1 marks an unknown value.
        unknown: int, the new value of unknown values; None if they are errors.
    """

    reader: object
    name: str
    table: tuple
    unknown: int | None = None

    def __call__(self, content):
        """Decodes; see the module."""
        values, table = self.reader(content), np.array(self.table)
        labels = np.where(values < len(table), table[np.minimum(values, len(table) - 1)], -1)
        unknown = labels < 0
        if unknown.any() and self.unknown is not None:
            labels[unknown] = self.unknown
        elif unknown.any():
            others, counts = np.unique(values[unknown], return_counts=True)
            text = ", ".join(f"{v} ({n} pixels)" for v, n in zip(others[:5], counts, strict=False))
            raise DataError(f"values must be those of {self.name}; found {text}")
        return labels.astype("uint16")


def color_codes(mask):
    """Returns the colors of a mask, each encoded as one integer.

    Args:
        mask: `pipelines.datasets.mask_files.Mask`.

    Returns:
        int32 `(height, width)`: red * 65536 + green * 256 + blue.

    Raises:
        DataError: if there are more than 8 bits per channel.
    """
    values = mask.values
    if mask.palette is not None:
        red, green, blue = mask.palette.astype("int32").T
        codes = np.zeros(1 << 8, "int32")
        codes[: len(red)] = red << 16 | green << 8 | blue
        return codes[values]
    if values.dtype != np.uint8:
        # 8-bit values widened to 16 bits consist of the same byte twice.
        if (values % 257).any():
            raise DataError(f"a color-coded label must have 8 bits, this has {values.dtype}")
        values = (values // 257).astype("uint8")
    if values.ndim == 2:
        scale = 255 // mask.white if mask.white < 255 else 1
        return values.astype("int32") * scale * 0x010101
    codes = values[..., 0].astype("int32")
    for channel in (1, 2):
        codes <<= 8
        codes |= values[..., channel]
    return codes


def _one_channel(mask):
    """Returns the single channel of a mask; raises a DataError if the mask is colored."""
    if mask.is_colored:
        raise DataError(
            "a label must have one channel, or three that are equal, this has colors. Colors "
            f"are read by {option('masks', 'colors')}"
        )
    return mask.values if mask.values.ndim == 2 else mask.values[..., 0]


def count_values(values):
    """Counts the occurrences of each value.

    Args:
        values: uint8 or uint16 array.

    Returns:
        int64 `(256,)` or `(65536,)`.
    """
    counts = np.zeros(1 << 8 * values.itemsize, "int64")
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):  # `np.bincount` needs 64 bits per pixel.
        counts += np.bincount(flat[start : start + _BLOCK], minlength=len(counts))
    return counts


def _as_counter(values, unknown):
    counts = count_values(values)
    others = np.flatnonzero((counts > 0) & unknown)
    return collections.Counter(dict(zip(others.tolist(), counts[others].tolist(), strict=True)))


def _frequent(counts, form):
    """Formats the most frequent values and their pixel counts; `counts` is a Counter."""
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
    more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
    return ", ".join(f"{form.format(value)} ({count} pixels)" for value, count in frequent) + more


def expand_runs(counts):
    """Decodes COCO's run lengths: pixels outside and inside the mask, alternating.

    A number is written in groups of 5 bits, lowest first. Each group is a character of code 48 plus
    the group, plus 32 if more groups follow; the highest bit of the last group is the sign. From
    the fourth number on, the difference from the number two places earlier is stored.

    Raises:
        DataError: if a character or a number is out of range.
    """
    runs, number, shift = [], 0, 0
    for character in counts:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            raise DataError(f"run lengths are damaged at the character {character!r}")
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number, shift = 0, 0
    return runs


@functools.lru_cache(maxsize=4)
def _color_table(colors, values):
    """Returns a uint16 array of 2^24 entries: the value of each color."""
    table = np.full(1 << 24, _UNKNOWN, "uint16")
    for value, (red, green, blue) in zip(values, colors, strict=True):
        table[red << 16 | green << 8 | blue] = value
    return table
