"""Annotations of labelme: a JSON file beside each image, with `shapes` and `imagePath`.

Shapes are drawn as labelme itself draws them: polygons, rectangles (also rotated), circles, masks;
lines 10 pixels wide, points as disks of radius 5. Pixels labeled `__ignore__` are ignored;
`_background_` becomes `background`. Images without a JSON file are left out.
"""

import posixpath

import numpy as np

from pipelines.datasets.annotated import (
    AnnotatedImage,
    Files,
    as_shape,
    assemble,
    head_of,
    missing_images,
    read_json,
    stem_of,
)
from pipelines.datasets.areas import Bitmap, Figure, Polygons, as_ring
from pipelines.datasets.splits import split_of
from pipelines.errors import DataError

EXPECTED = "a JSON file of labelme (`shapes`, `imagePath`) for each image"
_NUM_POINTS = {"rectangle": 2, "circle": 2, "line": 2, "point": 1, "linestrip": None}
_RENAMED = {"__ignore__": None, "_background_": "background"}


def recognize(files):
    """The path of the first file of this format in `Files`, or None."""
    for path, file in files.with_end(".json"):
        head = head_of(file)
        if b'"shapes"' in head and (b'"imagePath"' in head or b'"flags"' in head):
            return path
    return None


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
    images, notes = [], []
    for path, file in files.with_end(".json"):
        content = read_json(file)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            continue
        name = content.get("imagePath")
        if not isinstance(name, str) or not name:
            raise DataError(f"{file} must name its image, in `imagePath`")
        name = posixpath.basename(name.replace("\\", "/"))
        split = split_of(posixpath.dirname(path))
        found = files.image(name, path, split)
        if found is None:
            raise missing_images(file, [name])
        size = None
        if content.get("imageHeight") is not None:
            size = as_shape(content["imageHeight"], content.get("imageWidth"), file)
        areas = [_area(shape, f"{file}, shape {i}") for i, shape in enumerate(content["shapes"])]
        images.append(AnnotatedImage(stem_of(found[0]), found[1], file, size, areas, split))
    if not images:
        raise DataError(f"{files.name} must hold {EXPECTED}")
    left = len(files.images()) - len(images)
    if left > 0:
        notes.append(f"{left} images have no JSON file and are left out")
    return assemble(files, images, None, notes=notes, **arguments)


def _area(shape, where):
    """Returns `(class name, area)`."""
    try:
        name, kind = shape["label"], shape.get("shape_type") or "polygon"
        points = shape["points"]
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{where}: must have `label` and `points`") from None
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: a label must be a name, not {name!r}")
    name = _RENAMED.get(name, name)
    if kind in ("polygon", "oriented_rectangle"):
        try:
            return name, Polygons((as_ring(points),), "outline")
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    try:
        points = np.array(points, "float64").reshape(-1, 2)
    except (ValueError, TypeError):
        points = np.zeros((0, 2))
    if not len(points) or not np.isfinite(points).all():
        raise DataError(f"{where}: points must be pairs of numbers")
    if kind == "mask":
        left, top = points[0].astype(int)
        return name, Bitmap(str(shape.get("mask")), int(top), int(left))
    if kind not in _NUM_POINTS:
        raise DataError(f"{where}: unknown kind of shape {kind!r}")
    if len(points) != (_NUM_POINTS[kind] or max(2, len(points))):
        raise DataError(f"{where}: a {kind} must not have {len(points)} points")
    return name, Figure(kind, points)
