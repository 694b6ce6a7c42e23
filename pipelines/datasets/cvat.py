"""Annotations in the format `CVAT for images 1.1`: annotations.xml and the images.

Polygons, masks and boxes are drawn in order of depth (`z_order`), polygons as in CVAT's own mask
export, which uses pycocotools; polylines, points, ellipses and cuboids are left out. Classes keep
the colors of their labels. The split is taken from `subset`, or from the image's folders.

CVAT's `Segmentation mask 1.1` (labelmap.txt) is read by `folder`.
"""

import collections
import io
import posixpath
import xml.etree.ElementTree as ElementTree

import numpy as np

from pipelines.datasets.annotated import (
    AnnotatedImage,
    Files,
    as_shape,
    as_whole,
    assemble,
    hex_color,
    located,
    missing_images,
    not_drawn,
    plain_head,
    stem_of,
)
from pipelines.datasets.areas import Polygons, RowRuns, as_ring
from pipelines.datasets.dataset import shorten
from pipelines.datasets.splits import SPLITS, split_of
from pipelines.errors import DataError

ENDS = (".xml",)
EXPECTED = "annotations.xml of `CVAT for images 1.1`"
_SHAPES = ("polygon", "mask", "box")
_OTHERS = ("polyline", "points", "ellipse", "cuboid", "skeleton")


def matches(path, head, files):
    """Returns True if a file has this format.

    Args:
        path, head: its path, and its first bytes as from `pipelines.datasets.annotated.head_of`.
        files: `Files`, all files of the source.
    """
    return b"<annotations>" in head and (b"<image " in head or b"<meta>" in head)


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
    images, colors, left, others = [], {}, collections.Counter(), []
    for path, file in files.with_end(*ENDS):
        content = file.read_bytes()
        usual = posixpath.basename(path).lower() == "annotations.xml"
        if usual and not content.strip():
            raise DataError(f"{file} must hold annotations, and is empty")
        if b"<annotations>" not in plain_head(content):
            others += [f"{path} is not {EXPECTED} and is left out"] if usual else []
            continue
        missing = []
        for attributes, areas in _read(file, content, colors, left):
            name = attributes.get("name", "")
            split = SPLITS.get(attributes.get("subset", "").lower())
            split = split or split_of(posixpath.dirname(name.replace("\\", "/")))
            found = files.image(name, path, split)
            if found is None:
                missing.append(name)
                continue
            size = as_shape(attributes.get("height"), attributes.get("width"), f"{file}, {name}")
            images.append(AnnotatedImage(stem_of(name), found[1], file, size, areas, split))
        if missing:
            raise missing_images(file, missing)
    notes = [*not_drawn(left, "shapes"), *others]
    return assemble(
        files, images, list(colors), expected=EXPECTED, colors=colors, notes=notes, **arguments
    )


def _read(file, content, colors, left):
    """Yields attributes and areas of each image; fills `colors`, counts other shapes in `left`."""
    areas, number = [], 0
    try:
        for event, element in ElementTree.iterparse(io.BytesIO(content), ("start", "end")):
            if event == "start":
                if element.tag == "track":  # Before its shapes, which have no label.
                    raise DataError(
                        f"{file} holds tracks of a video. Export it as `CVAT for images 1.1`"
                    )
            elif element.tag == "label" and element.find("name") is not None:
                name = (element.findtext("name") or "").strip()
                colors.setdefault(name, hex_color(element.findtext("color")))
            elif element.tag in _SHAPES:
                where = f"{file}, {element.tag} {number}"
                name = (element.get("label") or "").strip()
                if name not in colors:
                    raise DataError(
                        f"{where}: unknown class {name!r}. The file has {shorten([*colors], 10)}"
                    )
                with located(where):
                    depth = as_whole(element.get("z_order") or 0, "`z_order`")
                    areas.append((depth, name, _area(element)))
                number += 1
            elif element.tag in _OTHERS and element.get("label"):
                left[element.tag] += 1
            elif element.tag == "image":
                areas.sort(key=lambda item: item[0])
                yield element.attrib, [(name, area) for _, name, area in areas]
                areas = []
                element.clear()
    except DataError:
        raise
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # Of encodings, the latter.
        raise DataError(f"{file} must be XML: {error}") from None


def _area(element):
    try:
        if element.tag == "polygon":
            pairs = [pair.split(",") for pair in element.get("points", "").split(";")]
            return Polygons((as_ring([number for pair in pairs for number in pair]),), "crossings")
        if element.tag == "box":
            if float(element.get("rotation") or 0):
                raise DataError("a box that is rotated is not read. Draw a polygon")
            left, top, right, bottom = (float(element.get(k)) for k in ("xtl", "ytl", "xbr", "ybr"))
            corners = [left, top, right, top, right, bottom, left, bottom]
            return Polygons((as_ring(corners),), "crossings")
        counts = np.array(element.get("rle", "").split(","), "int64")
        return RowRuns(
            counts, *(as_whole(element.get(k), k) for k in ("top", "left", "height", "width"))
        )
    except DataError:
        raise
    except (TypeError, ValueError, OverflowError):
        raise DataError("must have coordinates, or run lengths and a position") from None
