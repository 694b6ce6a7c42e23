"""Areas of annotation files, rasterized to masks by the rules of each format's own tool.

An area has `draw(height, width)`, which returns `(top, left, mask)`: a bool array, and the row and
column of the image at which its first element lies. Coordinates are in pixels, x to the right, y
down; 0 is the left (top) edge of the image for `crossings`, otherwise the first pixel's center.
"""

import base64
import binascii
import dataclasses
import math
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pipelines.datasets.label_files import expand_runs
from pipelines.datasets.mask_files import check_png, decode_mask
from pipelines.datasets.thread_cache import cached_by_thread
from pipelines.errors import DataError

_SUBPIXELS = 5
_EMPTY = (0, 0, np.zeros((0, 0), bool))
_LINE_WIDTH, _POINT_RADIUS = 10, 5  # As in labelme's own masks, in pixels.
_MAX_COORDINATE = 1 << 24
# Time and memory grow with the length of an outline, and with the pixels of a section of the image.
_FAR = 16  # Coordinates reach this multiple of the image's height and width together.
_LONG = 64  # An outline, this multiple and once the image's pixels.
_SPARE = 1 << 16  # Pixels of a section, besides 4 times those of the image.


@dataclasses.dataclass(frozen=True, eq=False)
class Polygons:
    """One or several rings of points; the area is their union minus the holes.

    Attributes:
        rings: tuple of float arrays `(points, 2)` of x and y, three points or more each.
        rule: str, which pixels belong to the area. `crossings`: those whose centers lie inside,
            found on a grid of 5 x 5 steps per pixel (pycocotools). `outline`: edges are included
            (Pillow's polygons, labelme). `filled`: integer coordinates, edges are included
            (`cv2.fillPoly`: Ultralytics, Supervisely).
        holes: tuple of arrays like `rings`; for `filled` only.
        relative: bool, whether coordinates are fractions of the image's width and height.
    """

    rings: tuple
    rule: str
    holes: tuple = ()
    relative: bool = False

    def draw(self, height, width):
        """Draws; see the module."""
        scale = (width, height) if self.relative else (1, 1)
        rings, holes = (
            [ring * np.array(scale, ring.dtype) for ring in group]
            for group in (self.rings, self.holes)
        )
        for ring in (*rings, *holes):
            _check_near(ring, height, width)
        if self.rule == "crossings":
            return _union([_by_crossings(ring, height, width) for ring in rings])
        # Include holes: OpenCV shifts lines slightly where it clips them.
        everything = np.concatenate([*rings, *holes])
        left, top = np.clip(np.floor(everything.min(0)) - 1, 0, (width, height)).astype(int)
        right, bottom = np.clip(np.ceil(everything.max(0)) + 2, 0, (width, height)).astype(int)
        if right <= left or bottom <= top:
            return _EMPTY
        corner, size = (left, top), (bottom - top, right - left)
        if self.rule == "outline":
            parts = [_with_pillow("polygon", ring - corner, *size) for ring in rings]
            return int(top), int(left), np.logical_or.reduce(parts)
        mask = np.zeros(size, "uint8")
        for group, value in ((rings, 1), (holes, 0)):
            for ring in group:
                cv2.fillPoly(mask, [(np.trunc(ring) - corner).astype("int32")], value)
        return int(top), int(left), mask.astype(bool)


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
    """A labelme shape other than a polygon, drawn with Pillow as labelme does.

    Attributes:
        kind: str, `rectangle`, `circle`, `line`, `linestrip` or `point`.
        points: float array `(points, 2)`: two corners; center and a point on the
            circle; or a list of points.
    """

    kind: str
    points: np.ndarray

    def draw(self, height, width):
        """Draws; see the module."""
        _check_near(self.points, height, width)
        return 0, 0, _with_pillow(self.kind, self.points, height, width)


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnRuns:
    """COCO's run lengths: pixels outside and inside, alternating, column by column.

    Attributes:
        counts: str (compressed) or int array.
        size: `(height, width)`.
    """

    counts: object
    size: tuple

    def draw(self, height, width):
        """Draws; see the module."""
        if self.size != (height, width):
            raise DataError(f"run lengths of {self.size} (height, width) are of another image size")
        counts = expand_runs(self.counts) if isinstance(self.counts, str) else self.counts
        counts = _checked_runs(counts, height, width)
        return 0, 0, _from_runs(counts).reshape(width, height).T


@dataclasses.dataclass(frozen=True, eq=False)
class RowRuns:
    """CVAT's run lengths: pixels outside and inside, alternating, by rows of an image section.

    Attributes:
        counts: int array.
        top, left, height, width: int, position and size of the section.
    """

    counts: np.ndarray
    top: int
    left: int
    height: int
    width: int

    def draw(self, height, width):
        """Draws; see the module."""
        _check_section(self.height, self.width, height, width)
        counts = _checked_runs(self.counts, self.height, self.width)
        mask = _from_runs(counts).reshape(self.height, self.width)
        return _clipped(self.top, self.left, mask, height, width)


@dataclasses.dataclass(frozen=True, eq=False)
class Bitmap:
    """A small picture: base64 of a PNG, perhaps zlib-compressed; nonzero pixels are inside.

    Attributes:
        content: str, base64.
        top, left: int, position of its first pixel in the image.
    """

    content: str
    top: int
    left: int

    def draw(self, height, width):
        """Draws; see the module."""
        try:
            content = base64.b64decode(self.content, validate=True)
            if not content.startswith(b"\x89PNG"):
                # Four channels of 16 bits, and as much again for the file's structure.
                limit = 16 * (4 * height * width + _SPARE)
                content = zlib.decompressobj().decompress(content, limit)
        except (binascii.Error, ValueError, zlib.error):
            raise DataError("a bitmap must be the base64 text of a PNG") from None
        if len(content) < 33 or not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise DataError("a bitmap holds no PNG")
        columns, rows = struct.unpack(">II", content[16:24])
        _check_section(rows, columns, height, width)
        check_png(content, "a bitmap")
        try:
            picture = cv2.imdecode(np.frombuffer(content, "uint8"), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            picture = None
        if picture is None:
            raise DataError("a bitmap holds a PNG that is damaged")
        if picture.ndim == 3:
            # Opacity, if present, decides alone, as in Supervisely's own bitmaps.
            opacity = picture.shape[2] == 4 and picture[..., 3].min() < 255
            picture = picture[..., 3] if opacity else picture[..., :3].max(2)
        return _clipped(self.top, self.left, picture > 0, height, width)


@dataclasses.dataclass(frozen=True, eq=False)
class BrushRuns:
    """Label Studio's bitwise run lengths of an RGBA picture; pixels of alpha above 127 are inside.

    The header holds the number of bytes (32 bits), the bits per value minus one (5 bits), and four
    bit widths of lengths minus one (4 bits each). Runs follow: a bit (1: one repeated value), two
    bits that choose the width of the length, the length minus one, and the value or values.

    Attributes:
        content: bytes.
        size: `(height, width)`.
    """

    content: bytes
    size: tuple

    def draw(self, height, width):
        """Draws; see the module."""
        if self.size != (height, width):
            raise DataError(f"a brush of {self.size} (height, width) is of another image size")
        values = _read_brush(self.content, height, width)
        return 0, 0, values.reshape(height, width, 4)[..., 3] > 127


@dataclasses.dataclass(frozen=True)
class SegmentPicture:
    """A PNG of COCO's panoptic format: red + 256 green + 65536 blue is the id of a segment.

    Attributes:
        file: the picture.
        ids: frozenset of int, ids of its segments; 0 marks unlabeled pixels.
        path: str, path of the file in its source.
    """

    file: object
    ids: frozenset
    path: str = ""

    def read(self):
        """Decodes the picture to segment ids, int32 `(height, width)`."""
        return _read_segments(self)


@cached_by_thread(1)  # The segments of an image are drawn one after another.
def _read_segments(picture):
    mask = decode_mask(picture.file.read_bytes())
    if mask.values.dtype != np.uint8 or mask.values.ndim != 3:
        raise DataError("a panoptic picture must have colors of 8 bits a channel")
    red, green, blue = np.moveaxis(mask.values[..., :3].astype("int32"), 2, 0)
    ids = red | green << 8 | blue << 16
    strange = set(np.unique(ids).tolist()) - picture.ids - {0}
    if strange:
        raise DataError(f"the picture holds the segment {min(strange)}, which its JSON lacks")
    return ids


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of a panoptic picture.

    Attributes:
        picture: `SegmentPicture`.
        id: int.
    """

    picture: SegmentPicture
    id: int

    def draw(self, height, width):
        """Draws; see the module."""
        ids = self.picture.read()
        if ids.shape != (height, width):
            raise DataError(f"a panoptic picture must have the size {height, width}: {ids.shape}")
        return 0, 0, ids == self.id


def rasterize(areas, size, *, unlabeled, overlap, below=0):
    """Draws the areas of an image into a label map.

    Args:
        areas: list of `(label, area)`, label 0 to 255.
        size: `(height, width)`.
        unlabeled: int, the label of pixels outside all areas.
        overlap: str, `later`: where areas overlap, the later one is visible. `smaller`: the one
            with fewer pixels, or the later of two equally large ones.
        below: int, number of areas at the beginning of the list that lie below all others.

    Returns:
        uint8 `size`.

    Raises:
        DataError: if an area cannot be drawn.
    """
    values = np.full(size, unlabeled, "uint8")
    drawn = ((label, area.draw(*size)) for label, area in areas)
    if overlap == "smaller":
        drawn = list(drawn)
        drawn = [
            item
            for part in (drawn[:below], drawn[below:])
            for item in sorted(part, key=lambda item: -int(item[1][2].sum()))
        ]
    for label, (top, left, mask) in drawn:
        rows, columns = mask.shape
        values[top : top + rows, left : left + columns][mask] = label
    return values


def as_ring(numbers, what="a polygon"):
    """Checks the points of a polygon.

    Args:
        numbers: list of alternating x and y, or of pairs; or an array.
        what: str, its name in messages.

    Returns:
        float64 array `(points, 2)`.

    Raises:
        DataError: unless there are at least three points with finite coordinates.
    """
    try:
        flat = np.asarray(numbers, "float64").reshape(-1)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{what} must be a list of numbers") from None
    if flat.size % 2:
        raise DataError(f"{what} must be x and y in turn, and has {flat.size} numbers")
    if flat.size < 6:
        points = f"{flat.size // 2} point{'s' if flat.size != 2 else ''}"
        raise DataError(f"{what} must have three points or more, and has {points}")
    if not np.isfinite(flat).all() or np.abs(flat).max() > _MAX_COORDINATE:
        raise DataError(f"{what} must have finite coordinates below {_MAX_COORDINATE}")
    return flat.reshape(-1, 2)


def _check_near(points, height, width):
    """Raises a DataError if an outline is far from the image or too long to be drawn."""
    limit = _FAR * (height + width)
    if np.abs(points).max(initial=0) > limit:
        raise DataError(
            f"coordinates must be in or near the image of {height}x{width} pixels, not beyond "
            f"{limit}. Correct or remove the area"
        )
    longest = height * width + _LONG * (height + width)
    if np.abs(points - np.roll(points, 1, axis=0)).max(axis=1, initial=0).sum() > longest:
        raise DataError(
            f"an outline must be shorter than {longest} pixels in an image of {height}x{width}. "
            "Correct or remove the area"
        )


def _check_section(rows, columns, height, width):
    """Raises a DataError if a section of an image is empty or much larger than the image."""
    if min(rows, columns) < 1 or rows * columns > 4 * height * width + _SPARE:
        raise DataError(
            f"an area's section of {rows}x{columns} pixels must not be empty, or much larger than "
            f"its image of {height}x{width}"
        )


def _checked_runs(counts, height, width):
    """Returns the run lengths as an int64 array, which fill a height and width."""
    try:
        counts = np.asarray(counts, "int64")
    except (OverflowError, TypeError, ValueError):
        raise DataError("run lengths must be whole numbers") from None
    size = height * width
    if counts.min(initial=0) < 0 or counts.max(initial=0) > size or counts.sum() != size:
        total = sum(counts.tolist())  # Python integers do not overflow.
        raise DataError(f"run lengths must fill {height}x{width} pixels, not {total}")
    return counts


def _by_crossings(ring, height, width):
    """Fills a ring as pycocotools does (Lin et al., Microsoft COCO API, `rleFrPoly`).

    Each edge is a digital line on a grid of 5 x 5 steps per pixel. Wherever the outline crosses the
    middle of a pixel column, the mask is inverted from there to the column's end.
    """
    points = np.trunc(_SUBPIXELS * ring + 0.5).astype("int64")
    start, end = points, np.roll(points, -1, axis=0)
    across, down = np.abs(end - start).T
    steep = across < down
    # Lines are drawn from left to right, steep ones from top to bottom, in either ring direction.
    axis = np.where(steep, 1, 0)
    rows = np.arange(len(points))
    turned = start[rows, axis] > end[rows, axis]
    first, last = np.where(turned[:, None], end, start), np.where(turned[:, None], start, end)
    length = np.maximum(across, down)
    rise = last - first
    slope = rise[rows, 1 - axis] / np.maximum(length, 1)
    edge = np.repeat(rows, length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(turned[edge], length[edge] - step, step)
    along = first[rows, axis][edge] + step
    beside = np.trunc(first[rows, 1 - axis][edge] + slope[edge] * step + 0.5).astype("int64")
    x, y = np.where(steep[edge], (beside, along), (along, beside))
    changed = x[1:] != x[:-1]
    x_left = np.where(x[1:] < x[:-1], x[1:], x[1:] - 1)[changed]
    y_above = np.minimum(y[1:], y[:-1])[changed]
    middle = (x_left - _SUBPIXELS // 2) % _SUBPIXELS == 0
    column = (x_left[middle] - _SUBPIXELS // 2) // _SUBPIXELS
    row = np.ceil(np.clip((y_above[middle] + 0.5) / _SUBPIXELS - 0.5, 0, height)).astype("int64")
    inside = (column >= 0) & (column < width)
    column, row = column[inside], row[inside]
    if not column.size:
        return _EMPTY
    left, right = int(column.min()), int(column.max()) + 1
    # Columns are consecutive: a change at the end of one lies at the start of the next.
    changes = np.bincount((column - left) * height + row, minlength=(right - left) * height + 1)
    mask = (np.cumsum(changes[: (right - left) * height]) & 1).astype(bool)
    return 0, left, mask.reshape(right - left, height).T


def _union(parts):
    parts = [part for part in parts if part[2].size]
    if len(parts) < 2:
        return parts[0] if parts else _EMPTY
    top, left = (min(part[i] for part in parts) for i in (0, 1))
    bottom, right = (max(part[i] + part[2].shape[i] for part in parts) for i in (0, 1))
    mask = np.zeros((bottom - top, right - left), bool)
    for row, column, part in parts:
        rows, columns = part.shape
        mask[row - top : row - top + rows, column - left : column - left + columns] |= part
    return top, left, mask


def _with_pillow(kind, points, height, width):
    picture = Image.new("L", (int(width), int(height)))
    draw = ImageDraw.Draw(picture)
    points = [tuple(point) for point in points.tolist()]
    if kind == "polygon":
        draw.polygon(points, outline=1, fill=1)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points
        corners = ((min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1)))
        draw.rectangle(corners, outline=1, fill=1)
    elif kind in ("circle", "point"):
        (x, y) = points[0]
        radius = math.dist(*points) if kind == "circle" else _POINT_RADIUS
        draw.ellipse(((x - radius, y - radius), (x + radius, y + radius)), outline=1, fill=1)
    else:
        draw.line(points, fill=1, width=_LINE_WIDTH)
    return np.asarray(picture) > 0


def _from_runs(counts):
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def _clipped(top, left, mask, height, width):
    rows = slice(max(0, -top), max(0, min(mask.shape[0], height - top)))
    columns = slice(max(0, -left), max(0, min(mask.shape[1], width - left)))
    return max(0, top), max(0, left), mask[rows, columns]


def _read_brush(content, height, width):
    bits = np.unpackbits(np.frombuffer(content, "uint8"))
    position = 0

    def read(count):
        nonlocal position
        if position + count > bits.size:
            raise DataError("the run lengths of a brush are truncated")
        part = bits[position : position + count]
        position += count
        return int("".join(map(str, part.tolist())), 2)

    total, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if total != 4 * height * width:
        raise DataError(f"a brush must fill {height}x{width} pixels of 4 channels")
    if word > 8:
        raise DataError("the run lengths of a brush are damaged")
    values, i = np.zeros(total, "uint8"), 0
    while i < total:
        repeated = read(1)
        end = i + 1 + read(lengths[read(2)])
        if end > total:
            raise DataError("the run lengths of a brush are damaged")
        if repeated:
            values[i:end] = read(word)
        else:
            part = bits[position : position + word * (end - i)]
            if part.size < word * (end - i):
                raise DataError("the run lengths of a brush are truncated")
            weights = 1 << np.arange(word - 1, -1, -1)
            values[i:end] = part.reshape(-1, word) @ weights
            position += word * (end - i)
        i = end
    return values
