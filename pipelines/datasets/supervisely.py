"""Supervisely projects: meta.json and folders of images and annotations.

    meta.json                    classes with titles and colors
    <data set>/img/a.jpg         <data set>/ann/a.jpg.json: `size` and `objects`

Polygons (with holes), bitmaps and rectangles are drawn as Supervisely draws them: integer
coordinates, filled by OpenCV, edges included. The split follows from an image's tag (`train`,
`val`) or else from the folder's name. Other shapes are left out.
"""

import collections
import posixpath

import numpy as np

from pipelines.datasets.annotated import (
    AnnotatedImage,
    Files,
    as_name,
    as_shape,
    as_whole,
    assemble,
    hex_color,
    located,
    missing_images,
    not_drawn,
    read_json,
    stem_of,
)
from pipelines.datasets.areas import Bitmap, Polygons, as_ring
from pipelines.datasets.dataset import shorten
from pipelines.datasets.splits import SPLITS, split_of
from pipelines.errors import DataError

ENDS = ("meta.json",)
EXPECTED = "meta.json with `classes`, and folders ann/ and img/"


def matches(path, head, files):
    """Returns True if a file has this format.

    Args:
        path, head: its path, and its first bytes as from `pipelines.datasets.annotated.head_of`.
        files: `Files`, all files of the source.
    """
    return b'"classes"' in head and any("/ann/" in f"/{p}" for p, _ in files.with_end(".json"))


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
    colors = {}
    for path, file in files.with_end(*ENDS):
        if posixpath.basename(path) == "meta.json":
            colors |= _read_classes(file)
    images, left = [], collections.Counter()
    for path, file in files.with_end(".json"):
        if "/ann/" not in f"/{path}":
            continue
        content = read_json(file)
        head, _, name = f"/{path}".rpartition("/ann/")
        name = name.removesuffix(".json")
        found = files.image(f"{head}/img/{name}".lstrip("/"), path)
        if found is None:
            raise missing_images(file, [name])
        try:
            size = as_shape(content["size"]["height"], content["size"]["width"], file)
            objects, tags = content["objects"], content.get("tags") or []
            tagged = [SPLITS[t["name"].lower()] for t in tags if t["name"].lower() in SPLITS]
            if not isinstance(objects, list):
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{file} must be an annotation with `size` and `objects`") from None
        areas = []
        for number, item in enumerate(objects):
            with located(f"{file}, object {number}"):
                areas += _areas(item, colors, left)
        split = tagged[0] if tagged else split_of(posixpath.dirname(path))
        key = stem_of(f"{head}/{name}".lstrip("/"))
        images.append(AnnotatedImage(key, found[1], file, size, areas, split))
    images = images if colors else []
    notes = not_drawn(left, "objects")
    return assemble(
        files, images, list(colors), expected=EXPECTED, colors=colors, notes=notes, **arguments
    )


def _read_classes(file):
    content = read_json(file)
    with located(f"{file} must be a project's meta.json"):
        return {
            as_name(entry["title"], "a class's `title`"): hex_color(entry.get("color"))
            for entry in content["classes"]
        }


def _areas(item, colors, left):
    """Returns the area of an object as `[(class name, area)]`; empty if it cannot be drawn."""
    name, kind = item["classTitle"], item.get("geometryType")
    kind = kind or ("bitmap" if item.get("bitmap") else "polygon")
    if name not in colors:
        raise DataError(f"unknown class {name!r}. The project has {shorten([*colors], 10)}")
    if kind == "bitmap":
        column, row = (as_whole(n, "the origin of a bitmap") for n in item["bitmap"]["origin"])
        return [(name, Bitmap(as_name(item["bitmap"]["data"], "a bitmap's data"), row, column))]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = np.round(np.array(item["points"]["exterior"], "float64"))
        return [(name, _filled([x0, y0, x1, y0, x1, y1, x0, y1], []))]
    if kind == "polygon":
        return [(name, _filled(item["points"]["exterior"], item["points"]["interior"]))]
    left[as_name(kind, "a geometry type")] += 1
    return []


def _filled(ring, holes):
    holes = tuple(np.round(as_ring(hole, "a hole")) for hole in holes)
    return Polygons((np.round(as_ring(ring)),), "filled", holes)
