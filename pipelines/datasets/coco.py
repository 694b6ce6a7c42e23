"""Annotations in COCO's format, from any tool: polygons, run lengths, panoptic pictures.

    annotations/instances_train2017.json, train2017/     or   train/_annotations.coco.json, images
    annotations/instances_default.json, images/          or   any one file, with ratios

A JSON file's split follows from its own name or else its folder's. Images are located by the file
names it lists. Masks equal those of pycocotools, bit for bit. Each file is parsed once, and its
polygons are kept as arrays.

The parts of an annotation are merged; only run lengths can have holes. Crowd regions (`iscrowd`)
lie below all others. A panoptic JSON needs its folder of PNGs, which hold the segment ids.
"""

import contextlib
import posixpath
import re

import numpy as np

from pipelines.datasets.annotated import (
    AnnotatedImage,
    Files,
    as_name,
    as_shape,
    assemble,
    check_choice,
    head_of,
    missing_images,
    read_json,
    stem_of,
)
from pipelines.datasets.areas import ColumnRuns, Polygons, Segment, SegmentPicture, as_ring
from pipelines.datasets.dataset import shorten
from pipelines.datasets.splits import split_of
from pipelines.errors import DataError

CROWDS = ("draw", "ignore", "drop")
EXPECTED = "a JSON file with `images`, `annotations` and `categories`"
ENDS = (".json",)
_LISTS = ("images", "annotations", "categories")
_LIST_KEY = re.compile(rb'"(images|annotations|categories)"\s*:')


def matches(path, head, files):
    """Returns True if a file has this format.

    Args:
        path, head: its path, and its first bytes as from `pipelines.datasets.annotated.head_of`.
        files: `Files`, all files of the source.
    """
    return head.lstrip().startswith(b"{") and bool(_LIST_KEY.search(head))


def find(source, *, annotations=None, crowd="draw", **arguments):
    """Lists the examples of each split.

    Args:
        source: as for `pipelines.sources.open_source`.
        annotations: dict from split to annotation file, a path or a file in the source. Default:
            all files of the format in the source.
        crowd: str, treatment of crowd regions: `draw` draws them with their class, `ignore` ignores
            their pixels, `drop` leaves them out.
        **arguments: `class_map`, `unlabeled`, `overlap`, `split`, `seed`, as for
            `pipelines.datasets.annotated.assemble`.

    Returns:
        `Found`.

    Raises:
        DataError: if files or classes cannot be found or used, or an option is out of range.
    """
    check_choice("crowd", crowd, CROWDS)
    files = Files(source)
    images, names, colors, notes, empty = [], {}, {}, [], 0
    given = annotations is not None
    for split, path, file in files.given(annotations) if given else _search(files, notes):
        content = read_json(file, object_hook=_compact)
        missing = [name for name in _LISTS if not _is_list(content, name)]
        if missing:
            if given:
                raise DataError(f"{file} must be {EXPECTED}")
            if len(missing) < 2:  # Such as captions. With two missing, it is of another format.
                notes.append(f"{path} has no list `{missing[0]}` and is left out")
            continue
        more, without = _read(files, split, path, file, content, crowd)
        images += more
        empty += without
        for category in content["categories"]:
            names[category["name"]] = None
            colors.setdefault(category["name"], _color(category))
    if empty:
        notes.append(f"{empty} annotations have a box and no area: they are not drawn")
    if images and not any(image.areas for image in images):
        raise DataError(
            f"{files.name} holds no areas in its annotations: {len(images)} images, {empty} boxes"
        )
    _note_unused(names, images, notes)
    return assemble(
        files, images, list(names), expected=EXPECTED, colors=colors, notes=notes, **arguments
    )


def _search(files, notes):
    """Finds JSON files that may have this format; adds `notes` on damaged ones."""
    found = []
    for path, file in files.with_end(*ENDS):
        head, whole = head_of(file)
        if head.lstrip().startswith(b"{") and (not whole or _LIST_KEY.search(head)):
            found.append((split_of(path), path, file))
        elif whole and not _is_json(file):
            notes.append(f"{path} is empty or no JSON and is left out")
    return found


def _is_json(file):
    try:
        read_json(file)
    except DataError:
        return False
    return True


def _is_list(content, name):
    found = content.get(name) if isinstance(content, dict) else None
    return isinstance(found, list) and all(isinstance(item, dict) for item in found)


def _note_unused(names, images, notes):
    """Adds a note on unused categories, such as Roboflow's first, which names the data set."""
    used = {name for image in images for name, _ in image.areas}
    unused = [name for name in names if name not in used]
    if unused:
        notes.append(f"No area has the class {shorten(list(map(repr, unused)))}")


def _compact(value):
    """Converts an annotation's polygons to arrays on parsing: a tenth of the memory."""
    areas = value.get("segmentation")
    if isinstance(areas, list):
        # Errors are reported when the annotation is read.
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            value["segmentation"] = [np.array(ring, "float64") for ring in areas]
    elif isinstance(areas, dict) and isinstance(areas.get("counts"), list):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            counts = np.array(areas["counts"] or np.zeros(0, int))
            if counts.ndim == 1 and counts.dtype.kind in "iu":
                areas["counts"] = counts.astype("int64", casting="same_kind")
    return value


def _color(category):
    color = category.get("color")
    sound = isinstance(color, list) and len(color) == 3
    sound = sound and all(isinstance(c, int) and 0 <= c <= 255 for c in color)
    return color if sound else None


def _read(files, split, path, file, content, crowd):
    """Reads one file; returns `(list of AnnotatedImage, number of annotations without area)`."""
    categories, entries = {}, {}
    without = 0
    try:
        for category in content["categories"]:
            if category["id"] in categories:
                raise DataError(f"{file} must name a category once. Twice: {category['id']}")
            categories[category["id"]] = as_name(category["name"], f"{file}: a category's `name`")
        for entry in content["images"]:
            if entry["id"] in entries:
                raise DataError(f"{file} must list an image once. Twice: id {entry['id']}")
            entries[entry["id"]] = (entry, [], [])
        for number, annotation in enumerate(content["annotations"]):
            where = f"{file}, annotation {annotation.get('id', number)}"
            if annotation["image_id"] not in entries:
                raise DataError(f"{where}: there is no image {annotation['image_id']!r}")
            entry, below, above = entries[annotation["image_id"]]
            if "segments_info" in annotation:
                above += _segments(files, path, where, annotation, categories, entry, crowd)
                continue
            if annotation["category_id"] not in categories:
                raise DataError(
                    f"{where}: unknown class {annotation['category_id']!r}. The file has "
                    f"{shorten([f'{key}: {name}' for key, name in categories.items()], 5)}"
                )
            area = _area(annotation.get("segmentation"), where)
            without += area is None
            is_crowd = bool(annotation.get("iscrowd"))
            if area is not None and not (is_crowd and crowd == "drop"):
                name = None if is_crowd and crowd == "ignore" else annotation["category_id"]
                (below if is_crowd else above).append((categories.get(name), area))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} must be {EXPECTED}: {error} is missing or wrong") from None
    images, missing = [], []
    for entry, below, above in entries.values():
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{file}: image {entry['id']} must have a `file_name`")
        pictures = {area.picture.path for _, area in above if isinstance(area, Segment)}
        found = files.image(name, path, split, without=pictures)
        if found is None:
            missing.append(name)
            continue
        mask = next((area.picture.file for _, area in above if isinstance(area, Segment)), None)
        size = as_shape(entry.get("height"), entry.get("width"), f"{file}, {name}")
        areas = [*below, *above]
        images.append(
            AnnotatedImage(stem_of(name), found[1], file, size, areas, split, mask, len(below))
        )
    if missing:
        raise missing_images(file, missing)
    return images, without


def _area(value, where):
    """Returns the area of an annotation; None if it has none."""
    if isinstance(value, list):  # Tools write `[]` or `[[]]` for a box.
        value = [ring for ring in value if not _is_empty(ring)] or None
    if value is None:
        return None
    if isinstance(value, dict):
        counts, size = value.get("counts"), value.get("size")
        sound = isinstance(counts, (str, np.ndarray)) and isinstance(size, list) and len(size) == 2
        if not sound:
            raise DataError(f"{where}: run lengths must have `counts` and `size`")
        return ColumnRuns(counts, as_shape(*size, where))
    if not isinstance(value, list):
        raise DataError(f"{where}: `segmentation` must be polygons or run lengths")
    try:
        return Polygons(tuple(map(as_ring, value)), "crossings")
    except DataError as error:
        raise DataError(f"{where}: {error}. Correct the annotation, or remove it") from None


def _is_empty(ring):
    return ring == [] if isinstance(ring, list) else isinstance(ring, np.ndarray) and not ring.size


def _segments(files, path, where, annotation, categories, entry, crowd):
    """Returns the segments of a panoptic picture, as list of `(class name, area)`."""
    name = annotation["file_name"]
    folder = posixpath.splitext(posixpath.basename(path))[0]
    found = files.image(f"{folder}/{name}", path, annotated=False)
    if found is None or (
        f"/{found[0]}".endswith(f"/{entry['file_name']}") and folder not in found[0].split("/")
    ):
        raise DataError(f"{where}: the panoptic picture {folder}/{name} is missing")
    segments = annotation["segments_info"]
    picture = SegmentPicture(found[1], frozenset(s["id"] for s in segments), found[0])
    areas = []
    for segment in segments:
        if segment["category_id"] not in categories:
            raise DataError(f"{where}: unknown class {segment['category_id']!r}")
        is_crowd = bool(segment.get("iscrowd"))
        if not (is_crowd and crowd == "drop"):
            name = None if is_crowd and crowd == "ignore" else segment["category_id"]
            areas.append((categories.get(name), Segment(picture, segment["id"])))
    return areas
