"""Annotations of labelme: a JSON file beside each image, with `shapes` and `imagePath`.

Shapes are drawn as labelme itself draws them: polygons, rectangles (also rotated), circles, masks;
lines 10 pixels wide, points as disks of radius 5. Pixels labeled `__ignore__` are ignored;
`_background_` becomes `background`. Images without a JSON file are left out. If the image
named in a JSON file is missing, the image with the JSON file's own name is used, otherwise the copy
in `imageData`.
"""

import base64
import binascii
import dataclasses
import posixpath

import numpy as np

from pipelines.datasets.annotated import (
    AnnotatedImage,
    Files,
    as_name,
    as_shape,
    assemble,
    located,
    missing_images,
    read_json,
    stem_of,
)
from pipelines.datasets.areas import Bitmap, Figure, Polygons, as_ring
from pipelines.datasets.splits import split_of
from pipelines.errors import DataError
from pipelines.sources import fingerprint

ENDS = (".json",)
EXPECTED = "a JSON file of labelme (`shapes`, `imagePath`) for each image"
_NUM_POINTS = {"rectangle": 2, "circle": 2, "line": 2, "point": 1, "linestrip": None}
_FARTHEST = 1 << 24  # Largest coordinate, in pixels.
_RENAMED = {"__ignore__": None, "_background_": "background"}


@dataclasses.dataclass(frozen=True)
class EmbeddedImage:
    """The copy of an image in its JSON file; can be read like a `pathlib.Path`.

    Attributes:
        annotations: the JSON file.
    """

    annotations: object

    def __str__(self):
        return f"{self.annotations}, imageData"

    @property
    def fingerprint(self):
        """Fingerprint of the JSON file, `pipelines.sources.fingerprint`."""
        return fingerprint(self.annotations)

    def read_bytes(self):
        """Decodes the image.

        Returns:
            bytes of the image file.

        Raises:
            DataError: if `imageData` is not base64.
        """
        try:
            return base64.b64decode(read_json(self.annotations)["imageData"], validate=True)
        except (binascii.Error, ValueError):
            raise DataError(f"{self} must be base64") from None


def matches(path, head, files):
    """Returns True if a file has this format.

    Args:
        path, head: its path, and its first bytes as from `pipelines.datasets.annotated.head_of`.
        files: `Files`, all files of the source.
    """
    return b'"shapes"' in head and (b'"imagePath"' in head or b'"flags"' in head)


def find(source, **arguments):
    """Lists the examples of each split.

    Args:
        source: as for `pipelines.sources.open_source`.
        **arguments: as for `pipelines.datasets.annotated.assemble`.

    Returns:
        `Found`.

    Raises:
        DataError: if files or classes cannot be found or used, or an option is out of range.
    """
    files = Files(source)
    images, notes, renamed, embedded = [], [], 0, 0
    beside = {stem_of(item[0]): item for item in files.images()}
    for path, file in files.with_end(*ENDS):
        content = read_json(file)
        if not isinstance(content, dict):
            continue
        if not isinstance(content.get("shapes"), list):
            if "imagePath" in content or "imageData" in content:
                raise DataError(f"{file} must have a list `shapes`; it may be empty")
            continue
        name = content.get("imagePath")
        if not isinstance(name, str) or not name:
            raise DataError(f"{file} must name its image, in `imagePath`")
        name = posixpath.basename(name.replace("\\", "/"))
        split = split_of(posixpath.dirname(path))
        found = files.image(name, path, split)
        if found is None and (found := beside.get(stem_of(path))):
            renamed += 1
        if found is None:
            if not isinstance(content.get("imageData"), str):
                raise missing_images(file, [name])
            found = path, EmbeddedImage(file)
            embedded += 1
        size = None
        if content.get("imageHeight") is not None:
            size = as_shape(content["imageHeight"], content.get("imageWidth"), file)
        areas = []
        for number, shape in enumerate(content["shapes"]):
            with located(f"{file}, shape {number}"):
                areas.append(_area(shape))
        images.append(AnnotatedImage(stem_of(found[0]), found[1], file, size, areas, split))
    if renamed:
        notes.append(f"{renamed} files name a missing image: the one of their own name is taken")
    if embedded:
        notes.append(f"{embedded} images are missing: the copies in the JSON files are taken")
    annotated = {str(image.file) for image in images}
    left = sum(str(file) not in annotated for _, file in files.images())
    if left:
        notes.append(f"{left} images have no JSON file and are left out")
    return assemble(files, images, None, expected=EXPECTED, notes=notes, **arguments)


def _area(shape):
    """Returns `(class name, area)`."""
    try:
        name, kind = shape["label"], shape.get("shape_type") or "polygon"
        points = shape["points"]
    except (KeyError, TypeError, AttributeError):
        raise DataError("must have `label` and `points`") from None
    name = _RENAMED.get(as_name(name, "a label"), name)
    if kind in ("polygon", "oriented_rectangle"):
        return name, Polygons((as_ring(points),), "outline")
    try:
        points = np.array(points, "float64").reshape(-1, 2)
    except (ValueError, TypeError, OverflowError):
        points = np.zeros((0, 2))
    if not len(points) or not np.isfinite(points).all() or np.abs(points).max() > _FARTHEST:
        raise DataError("points must be pairs of numbers")
    if kind == "mask":
        left, top = points[0].astype(int)
        return name, Bitmap(str(shape.get("mask")), int(top), int(left))
    if not isinstance(kind, str) or kind not in _NUM_POINTS:
        raise DataError(f"unknown kind of shape {kind!r}")
    if len(points) != (_NUM_POINTS[kind] or max(2, len(points))):
        raise DataError(f"a {kind} must not have {len(points)} points")
    return name, Figure(kind, points)
