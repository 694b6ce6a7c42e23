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
    as_name,
    as_shape,
    assemble,
    located,
    missing_images,
    not_drawn,
    read_json,
    stem_of,
)
from pipelines.datasets.areas import BrushRuns, Polygons, as_ring
from pipelines.datasets.splits import ARRAY_ENDS, IMAGE_ENDS, split_of
from pipelines.errors import DataError

ENDS = (".json",)
EXPECTED = "a JSON export of Label Studio: tasks with `data` and `annotations`"
_KINDS = ("polygon", "brush", "rectangle")
_BY_KEY = {"points": "polygon", "rle": "brush", "width": "rectangle"}


def matches(path, head, files):
    """Returns True if a file has this format.

    Args:
        path, head: its path, and its first bytes as from `pipelines.datasets.annotated.head_of`.
        files: `Files`, all files of the source.
    """
    begins = re.match(rb"\s*\[\s*\{", head)
    return bool(begins) and b'"annotations"' in head and b'"result"' in head


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
    for path, file in files.with_end(*ENDS):
        tasks = read_json(file)
        if not isinstance(tasks, list) or not any(map(_is_task, tasks)):
            continue
        for number, task in enumerate(tasks):
            if not _is_task(task):
                raise DataError(f"{file}, task {number}: must be an object with `data`")
            where = f"{file}, task {task.get('id', number)}"
            results = _results(task, where)
            if results is None:
                bare += 1
                continue
            names, split = _image_names(task, where), split_of(path)
            found = next(filter(None, (files.image(n, path, split) for n in names)), None)
            if found is None:
                raise missing_images(where, names[:1])
            with located(where, "a result's "):
                size, areas = _areas(results, left)
            split = split or split_of(posixpath.dirname(found[0]))
            images.append(AnnotatedImage(stem_of(found[0]), found[1], file, size, areas, split))
    notes = not_drawn(left, "results")
    if bare:
        notes.append(f"{bare} tasks have no annotation and are left out")
    return assemble(files, images, None, expected=EXPECTED, notes=notes, **arguments)


def _is_task(value):
    return isinstance(value, dict) and "data" in value


def _results(task, where):
    """Returns the results of the task's valid annotation, or None."""
    try:
        found = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
        if len(found) > 1:
            found = [a for a in found if a.get("ground_truth")] or found
        if len(found) > 1:
            raise DataError(
                f"{where}: an image must have one annotation, and has {len(found)}. Mark one as "
                "ground truth, or cancel the others"
            )
        results = found[0]["result"] if found else None
        if results is None or all(isinstance(result, dict) for result in results):
            return results
    except (KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{where}: an annotation must have a `result`, a list of objects")


def _image_names(task, where):
    data = task["data"] if isinstance(task["data"], dict) else {}
    texts = [task.get("file_upload"), *data.values()]
    names = []
    for text in texts:
        if not isinstance(text, str):
            continue
        try:
            address = urllib.parse.urlparse(text)
            local = urllib.parse.parse_qs(address.query).get("d", [])
        except ValueError as error:
            raise DataError(f"{where}: the address {text[:80]!r} is wrong: {error}") from None
        path = local[0] if local else urllib.parse.unquote(address.path)
        if path.lower().endswith(IMAGE_ENDS + ARRAY_ENDS):
            names.append(path)
    if not names:
        raise DataError(f"{where}: `data` must name an image, not {str(task['data'])[:80]}")
    plain = [re.sub(r"^[0-9a-f]{8}-", "", posixpath.basename(name)) for name in names]
    return list(dict.fromkeys([*names, *plain]))


def _areas(results, left):
    """Returns `(size, areas)`; the size is None if nothing is drawn."""
    size, areas = None, []
    labeled = {str(r["id"]) for r in results if "id" in r and _names(r)}
    for result in results:
        kind, names = result["type"].removesuffix("labels"), _names(result)
        value = result.get("value") or {}  # A relation has none.
        if not kind:  # `labels` names a region of any kind.
            kind = next((k for key, k in _BY_KEY.items() if key in value), "labels")
        if kind not in _KINDS:
            left[result["type"]] += 1
            continue
        if not names:
            if str(result.get("id")) not in labeled:  # Else another result holds its label.
                left[f"{kind} without label"] += 1
            continue
        if not isinstance(names, list) or len(names) != 1:
            raise DataError(
                f"a {kind} must have one label, as a list of one name, not {str(names)[:80]}. "
                "Leave one"
            )
        if result.get("image_rotation"):
            raise DataError("an image that was rotated in Label Studio is not read")
        own = as_shape(result["original_height"], result["original_width"], "a result")
        if size not in (None, own):
            raise DataError(f"two sizes of one image: {size} and {own}")
        size = own
        areas.append((as_name(names[0], "a label"), _area(kind, value, size)))
    return size, areas


def _names(result):
    """Returns the labels of a result; empty or None if it has none."""
    value = result.get("value") or {}
    return value.get(result["type"]) or value.get("labels")


def _area(kind, value, size):
    if kind == "brush":
        if value.get("format") != "rle":
            raise DataError(f"a brush must be run lengths, not {value.get('format')!r}")
        if not isinstance(value["rle"], list):
            raise DataError("a brush must be a list of bytes, in `rle`")
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
