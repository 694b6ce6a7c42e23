"""How label files are written: from their bytes to an array of values.

A reader is called with the bytes and gives a uint8 or uint16 array `(height, width)`; it raises
`DataError` for what it cannot read. Its `repr` says all that its result depends on besides.
"""

import dataclasses
import functools
import io
import json

import cv2
import numpy as np

from pipelines.errors import DataError

_UNKNOWN = 0xFFFF


@dataclasses.dataclass(frozen=True)
class IndexMask:
    """A picture whose values are the labels.

    One channel of 8 or 16 bits; a PNG with a palette counts by its indices, not its colours. Three
    channels, and a fourth for opacity, are as good as one where they are equal.
    """

    def __call__(self, content):
        """Decodes; see the module."""
        values = _decode(content)
        if values.ndim == 3:
            first = values[..., 0]
            if not all((values[..., i] == first).all() for i in (1, 2)):
                raise DataError(
                    "a label must have one channel, or three that are equal, this has colours"
                )
            values = first
        if values.dtype not in (np.uint8, np.uint16):
            raise DataError(f"a label must have 8 or 16 bits a pixel, this has {values.dtype}")
        return values


INDEX_MASK = IndexMask()


@dataclasses.dataclass(frozen=True)
class ColorMask:
    """A picture whose colours are the labels.

    Attributes:
        colors: tuple of `(red, green, blue)`.
        values: tuple of int below 65535, the value of each colour.
        unknown: int, the value of any other colour; None where that is a fault.
    """

    colors: tuple
    values: tuple
    unknown: int | None = None

    def __call__(self, content):
        """Decodes; see the module."""
        picture = _decode(content, palette=False)
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, axis=2)
        if picture.dtype != np.uint8:
            raise DataError(f"a colour-coded label must have 8 bits, this has {picture.dtype}")
        blue, green, red = (picture[..., i].astype("int32") for i in range(3))
        codes = red << 16 | green << 8 | blue
        values = _color_table(self.colors, self.values)[codes]
        strange = values == _UNKNOWN
        if strange.any():
            if self.unknown is None:
                found, counts = np.unique(codes[strange], return_counts=True)
                most = np.argsort(-counts, kind="stable")[:5]
                text = ", ".join(f"#{found[i]:06x} ({counts[i]} pixels)" for i in most)
                raise DataError(f"colours must be in the class table; found {text}")
            values[strange] = self.unknown
        return values


@dataclasses.dataclass(frozen=True)
class RedChannel:
    """A picture whose red channel is the label; the others hold something else."""

    def __call__(self, content):
        """Decodes; see the module."""
        picture = _decode(content)
        if picture.ndim != 3 or picture.dtype != np.uint8:
            raise DataError("a label must have three channels of 8 bits, this has another form")
        return picture[..., 2]


@dataclasses.dataclass(frozen=True)
class MatVariable:
    """A MATLAB file with a map of whole numbers; needs SciPy.

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
        except Exception as error:  # SciPy has no error of its own: anything may come.
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
    """JSON with the masks of an image as COCO's compressed run lengths.

    `{"size": [height, width], "masks": [[value, counts], ...]}`; a later mask covers earlier ones,
    what none covers is 0.
    """

    def __call__(self, content):
        """Decodes; see the module."""
        label = json.loads(content)
        height, width = label["size"]
        values = np.zeros(height * width, "uint16")
        for value, counts in label["masks"]:
            runs = _expand_runs(counts)
            if sum(runs) != height * width or min(runs, default=0) < 0:
                raise DataError(f"a mask of class {value} does not fill {height}x{width} pixels")
            values[np.repeat(np.arange(len(runs)) % 2 == 1, runs)] = value
        # Masks are written column by column.
        return values.reshape(width, height).T


@dataclasses.dataclass(frozen=True)
class Recoded:
    """Another reader's values, translated.

    Attributes:
        reader: one of this module.
        name: str, what the table is called in messages.
        table: tuple of int: the new value of 0, 1, ...; -1 is an unknown one.
        unknown: int, the new value of others; None where they are a fault.
    """

    reader: object
    name: str
    table: tuple
    unknown: int | None = None

    def __call__(self, content):
        """Decodes; see the module."""
        values, table = self.reader(content), np.array(self.table)
        found = np.where(values < len(table), table[np.minimum(values, len(table) - 1)], -1)
        strange = found < 0
        if strange.any() and self.unknown is not None:
            found[strange] = self.unknown
        elif strange.any():
            others, counts = np.unique(values[strange], return_counts=True)
            text = ", ".join(f"{v} ({n} pixels)" for v, n in zip(others[:5], counts, strict=False))
            raise DataError(f"values must be those of {self.name}; found {text}")
        return found.astype("uint16")


def is_color_picture(content):
    """Says if a picture has colours other than grey in its file; a palette is none.

    Args:
        content: bytes.

    Raises:
        DataError: if it cannot be decoded.
    """
    return _decode(content).ndim == 3


def _decode(content, *, palette=True):
    """Decodes a picture: `(height, width)`, or `(height, width, 3 or 4)` in OpenCV's order.

    Args:
        content: bytes.
        palette: bool: give a palette PNG's indices. OpenCV would give its colours.
    """
    if palette and content[:4] == b"\x89PNG" and content[25:26] == b"\x03":
        from PIL import Image

        try:
            return np.asarray(Image.open(io.BytesIO(content)))
        except (OSError, SyntaxError, ValueError):
            raise DataError("the label cannot be decoded") from None
    # OpenCV raises on no bytes at all, and gives None for others that it cannot read.
    values = (
        cv2.imdecode(np.frombuffer(content, "uint8"), cv2.IMREAD_UNCHANGED) if content else None
    )
    if values is None:
        raise DataError("the label cannot be decoded")
    return values


def _expand_runs(counts):
    """Reads COCO's run lengths: pixels without and with the mask in turn.

    A number is written in groups of 5 bits, the lowest first, each as the character of 48 plus
    the group, plus 32 where more follow; the last group's highest bit is the sign. From the fourth
    on, it is the difference to the number two places before.
    """
    runs, number, shift = [], 0, 0
    for character in counts:
        group = ord(character) - 48
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
    """uint16 array of 2^24: the value of each colour."""
    table = np.full(1 << 24, _UNKNOWN, "uint16")
    for value, (red, green, blue) in zip(values, colors, strict=True):
        table[red << 16 | green << 8 | blue] = value
    return table
