"""JSON exports of Label Studio: polygons, brushes and boxes of each task.

A task's image is located by its name: for an upload, also without the eight characters that Label
Studio prepends; for a local file, by the name in its path. Brushes are decoded as in Label Studio's
own converter (at least half-opaque pixels are inside), polygons are drawn by the rule of
pycocotools. A task must have exactly one annotation that is not cancelled; if it has several, one
must be marked as ground truth.
"""

import collections
import posixpath
import re
import urllib.parse

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
from pipelines.datasets.areas import BrushRuns, Polygons, as_ring
from pipelines.datasets.splits import IMAGE_ENDS, split_of
from pipelines.errors import DataError

EXPECTED = "a JSON export of Label Studio: tasks with `data` and `annotations`"
_KINDS = ("polygon", "brush", "rectangle")
_BY_KEY = {"points": "polygon", "rle": "brush", "width": "rectangle"}


def recognize(files):
    """The path of the first file of this format in `Files`, or None."""
    for path, file in files.with_end(".json"):
        head = head_of(file)
        if re.match(rb"\s*\[\s*\{", head) and b'"annotations"' in head and b'"result"' in head:
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
    images, left, bare = [], collections.Counter(), 0
    for path, file in files.with_end(".json"):
        tasks = read_json(file)
        if not isinstance(tasks, list) or not all(
            isinstance(task, dict) and "data" in task for task in tasks
        ):
            continue
        for number, task in enumerate(tasks):
            where = f"{file}, task {task.get('id', number)}"
            results = _results(task, where)
            if results is None:
                bare += 1
                continue
            names, split = _image_names(task, where), split_of(path)
            found = next(filter(None, (files.image(n, path, split) for n in names)), None)
            if found is None:
                raise missing_images(where, names[:1])
            size, areas = _areas(results, left, where)
            split = split or split_of(posixpath.dirname(found[0]))
            images.append(AnnotatedImage(stem_of(found[0]), found[1], file, size, areas, split))
    if not images:
        raise DataError(f"{files.name} must hold {EXPECTED}")
    notes = [f"{n} results of kind {kind!r} are not drawn" for kind, n in sorted(left.items())]
    if bare:
        notes.append(f"{bare} tasks have no annotation and are left out")
    return assemble(files, images, None, notes=notes, **arguments)


def _results(task, where):
    """The results of the task's valid annotation, or None."""
    try:
        found = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
        if len(found) > 1:
            found = [a for a in found if a.get("ground_truth")] or found
        if len(found) > 1:
            raise DataError(
                f"{where}: an image must have one annotation, and has {len(found)}. Mark one as "
                "ground truth, or cancel the others"
            )
        return found[0]["result"] if found else None
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{where}: an annotation must have a `result`") from None


def _image_names(task, where):
    texts = [task.get("file_upload"), *(task["data"] or {}).values()]
    names = []
    for text in texts:
        if not isinstance(text, str):
            continue
        address = urllib.parse.urlparse(text)
        local = urllib.parse.parse_qs(address.query).get("d", [])
        path = local[0] if local else urllib.parse.unquote(address.path)
        if path.lower().endswith(IMAGE_ENDS):
            names.append(path)
    if not names:
        raise DataError(f"{where}: `data` must name an image, not {task['data']!r}")
    plain = [re.sub(r"^[0-9a-f]{8}-", "", posixpath.basename(name)) for name in names]
    return list(dict.fromkeys([*names, *plain]))


def _areas(results, left, where):
    """Returns `(size, areas)`; the size is None if nothing is drawn."""
    size, areas = None, []
    for result in results:
        try:
            value, kind = result["value"], result["type"].removesuffix("labels")
            names = value.get(result["type"]) or value.get("labels")
            if not kind:  # `labels` names a region of any kind.
                kind = next((k for key, k in _BY_KEY.items() if key in value), "labels")
            if not names and kind in _KINDS:
                continue  # A duplicate of the region without its label.
            if kind not in _KINDS:
                left[result["type"]] += 1
                continue
            if result.get("image_rotation"):
                raise DataError("an image that was rotated in Label Studio is not read")
            own = as_shape(result["original_height"], result["original_width"], where)
            if size not in (None, own):
                raise DataError(f"two sizes of one image: {size} and {own}")
            size = own
            areas += [(str(name), _area(kind, value, size)) for name in names]
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where}: a result's {error} is missing or wrong") from None
    return size, areas


def _area(kind, value, size):
    if kind == "brush":
        if value.get("format") != "rle":
            raise DataError(f"a brush must be run lengths, not {value.get('format')!r}")
        return BrushRuns(bytes(value["rle"]), size)
    if kind == "polygon":
        points = value["points"]
    else:
        if value.get("rotation"):
            raise DataError("a rectangle that is rotated is not read. Draw a polygon")
        x, y, width, height = (float(value[k]) for k in ("x", "y", "width", "height"))
        points = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    # Coordinates are percentages of width and height.
    ring = as_ring(points) * np.float64(size[::-1]) / 100
    return Polygons((ring,), "crossings")
