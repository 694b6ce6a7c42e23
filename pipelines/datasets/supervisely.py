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
    as_shape,
    assemble,
    head_of,
    missing_images,
    read_json,
    stem_of,
)
from pipelines.datasets.areas import Bitmap, Polygons, as_ring
from pipelines.datasets.dataset import shorten
from pipelines.datasets.splits import SPLITS, split_of
from pipelines.errors import DataError

EXPECTED = "meta.json with `classes`, and folders ann/ and img/"


def recognize(files):
    """The path of the first file of this format in `Files`, or None."""
    paths = [path for path, _ in files.all]
    for path, file in files.with_end("meta.json"):
        inside = any("/ann/" in f"/{other}" and other.endswith(".json") for other in paths)
        if inside and b'"classes"' in head_of(file):
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
    colors = {}
    for path, file in files.with_end("meta.json"):
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
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{file} must be an annotation with `size` and `objects`") from None
        areas = []
        for number, item in enumerate(objects):
            areas += _areas(item, colors, left, f"{file}, object {number}")
        split = tagged[0] if tagged else split_of(posixpath.dirname(path))
        key = stem_of(f"{head}/{name}".lstrip("/"))
        images.append(AnnotatedImage(key, found[1], file, size, areas, split))
    if not images or not colors:
        raise DataError(f"{files.name} must hold {EXPECTED}")
    notes = [f"{n} objects of kind {kind!r} are not drawn" for kind, n in sorted(left.items())]
    return assemble(files, images, list(colors), colors=colors, notes=notes, **arguments)


def _read_classes(file):
    try:
        return {
            entry["title"]: [int(entry["color"][i : i + 2], 16) for i in (1, 3, 5)]
            if str(entry.get("color", "")).startswith("#")
            else None
            for entry in read_json(file)["classes"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} must be a project's meta.json: {error} is missing") from None


def _areas(item, colors, left, where):
    """The area of an object as `[(class name, area)]`; empty if it cannot be drawn."""
    try:
        name, kind = item["classTitle"], item.get("geometryType")
        kind = kind or ("bitmap" if item.get("bitmap") else "polygon")
        if name not in colors:
            raise DataError(f"unknown class {name!r}. The project has {shorten([*colors], 10)}")
        if kind == "bitmap":
            column, row = item["bitmap"]["origin"]
            return [(name, Bitmap(item["bitmap"]["data"], int(row), int(column)))]
        if kind == "rectangle":
            (x0, y0), (x1, y1) = np.round(np.array(item["points"]["exterior"], "float64"))
            return [(name, _filled([x0, y0, x1, y0, x1, y1, x0, y1], []))]
        if kind == "polygon":
            return [(name, _filled(item["points"]["exterior"], item["points"]["interior"]))]
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: {error} is missing or wrong") from None
    left[kind] += 1
    return []


def _filled(ring, holes):
    holes = tuple(np.round(as_ring(hole, "a hole")) for hole in holes)
    return Polygons((np.round(as_ring(ring)),), "filled", holes)
