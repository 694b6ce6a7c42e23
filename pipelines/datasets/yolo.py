"""Polygons in the format of Ultralytics YOLO: `data.yaml` and a text file per image.

    data.yaml                  names, and perhaps train, val, test: folders, or lists of images
    images/train/a.jpg         labels/train/a.txt: lines of a class and x, y, x, y, ... from 0 to 1
    train/images/a.jpg         train/labels/a.txt

Without data.yaml the classes are those of classes.txt, as Label Studio and labelImg write it. An
image with no text file or an empty one has no objects. Masks are drawn as in Ultralytics: integer
coordinates, filled by OpenCV, edges included, smaller objects on top of larger ones.
"""

import posixpath

import numpy as np

from pipelines.datasets.annotated import AnnotatedImage, Files, assemble, located, stem_of
from pipelines.datasets.areas import Polygons, as_ring
from pipelines.datasets.dataset import read_list
from pipelines.datasets.splits import SPLITS, split_of
from pipelines.datasets.text_files import decode_text
from pipelines.errors import DataError

ENDS = (".yaml", ".yml", "classes.txt")
EXPECTED = "data.yaml with `names`, and images/ beside labels/ with a text file for each image"
_CLASSES = "classes.txt"
_TOLERANCE = 0.01


def matches(path, head, files):
    """Returns True if a file has this format.

    Args:
        path, head: its path, and its first bytes as from `pipelines.datasets.annotated.head_of`.
        files: `Files`, all files of the source.
    """
    fits = b"names" in head or posixpath.basename(path).lower() == _CLASSES
    return fits and not all(map(_is_class_list, _label_files(files)))


def find(source, *, overlap="smaller", **arguments):
    """Lists the examples of each split.

    Args:
        source: as for `pipelines.sources.open_source`.
        overlap: str, `smaller` or `later`.
        **arguments: as for `pipelines.datasets.annotated.assemble`.

    Returns:
        `Found`.

    Raises:
        DataError: if files or classes cannot be found or used, or an option is out of range.
    """
    files = Files(source)
    names, folders = _read_table(files)
    labels, images, bare = _label_files(files), [], 0
    for image_path, image in files.images():
        place = _below("images", image_path)
        if place is None:
            continue
        label = labels.pop(place, None)
        areas = [] if label is None else _read_areas(label, names)
        bare += not areas
        split = next(
            (s for s, tests in folders.items() if any(holds(image_path) for holds in tests)), None
        )
        split = split or split_of(posixpath.dirname(image_path))
        images.append(AnnotatedImage(place[1], image, label, None, areas, split))
    labels = {place: file for place, file in labels.items() if not _is_class_list(place)}
    if labels:
        raise DataError(
            f"{next(iter(labels.values()))} must have an image of the same name in images/. "
            f"{len(labels)} label files have none"
        )
    if not any(image.areas for image in images):
        raise DataError(f"{files.name} must hold {EXPECTED}. It has no polygons")
    notes = [f"{bare} images have no polygon and are unlabeled throughout"] if bare else []
    return assemble(
        files, images, names, expected=EXPECTED, overlap=overlap, notes=notes, **arguments
    )


def _below(folder, path):
    """Divides a path at the innermost folder of a name, in any case.

    Returns:
        `(folders before, path below without suffix)`; None if there is no such folder.
    """
    folders = path.split("/")[:-1]
    for i in reversed(range(len(folders))):
        if folders[i].lower() == folder:
            return "/".join(folders[:i]), stem_of("/".join(path.split("/")[i + 1 :]))
    return None


def _label_files(files):
    """Returns the text files in folders `labels`: dict from their `_below` to the file."""
    found = ((_below("labels", path), file) for path, file in files.with_end(".txt"))
    return {place: file for place, file in found if place}


def _is_class_list(place):
    return f"{posixpath.basename(place[1])}.txt".lower() == _CLASSES


def _read_table(files):
    """Returns `(names, folders)`; `folders` maps splits to lists of tests of image paths."""
    import yaml

    found = []
    for _, file in files.with_end(*ENDS):
        text, _ = decode_text(file.read_bytes(), file)
        try:
            content = yaml.safe_load(text)
        except RecursionError:
            raise DataError(f"{file} must be YAML: it is nested too deeply") from None
        except Exception as error:  # PyYAML's conversion of dates and numbers may raise anything.
            reason = " ".join(str(error).split())
            raise DataError(f"{file} must be YAML: {reason}") from None
        if isinstance(content, dict) and "names" in content:
            found.append((file, content))
    if not found and (names := _read_classes(files)):
        return names, {}
    if len(found) != 1:
        several = ", ".join(str(file) for file, _ in found)
        raise DataError(
            f"{files.name} must hold {EXPECTED}. Found: {several or 'no file with `names`'}"
        )
    file, content = found[0]
    names = content["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(f"{file}: `names` must be numbered from 0. Found: {list(names)[:9]}")
        names = [names[i] for i in range(len(names))]
    sound = isinstance(names, list) and names
    if not sound or any(isinstance(n, (list, dict, set, bytes, type(None))) for n in names):
        # Not the content itself, which references of YAML can make endless.
        shown = "nested or empty entries" if sound else repr(names)
        raise DataError(f"{file}: `names` must be a list of classes, not {shown}")
    names = list(map(str, names))
    if len(set(names)) < len(names):
        raise DataError(f"{file}: every class must have a name of its own: {', '.join(names)}")
    folders = {}
    for key, value in content.items():
        for name in value if isinstance(value, list) else [value]:
            if key in SPLITS and isinstance(name, str):
                folders.setdefault(SPLITS[key], []).append(_holds(files, name))
    return names, folders


def _read_classes(files):
    """The lines of the files classes.txt, which must be equal; None without such a file."""
    found = [file for path, file in files.with_end(_CLASSES) if path.lower().endswith(_CLASSES)]
    tables = [read_list(file) for file in found]
    for file, names in zip(found, tables, strict=True):
        if names != tables[0]:
            raise DataError(f"{found[0]} and {file} must have the same classes, and differ")
        if len(set(names)) < len(names):
            raise DataError(f"{file}: every class must have a name of its own: {', '.join(names)}")
    return tables[0] if tables else None


def _holds(files, name):
    """Returns a test whether an image path belongs to a split, by its folder or a list file."""
    name = posixpath.normpath(name.replace("\\", "/")).lstrip("./")
    if name.endswith(".txt"):
        lists = [file for path, file in files.all if f"/{path}".endswith(f"/{name}")]
        listed = {
            stem_of(posixpath.normpath(line)).lstrip("./") for f in lists for line in read_list(f)
        }
        return lambda path: any(f"/{stem_of(path)}".endswith(f"/{item}") for item in listed)
    return lambda path: not name or f"/{name}/" in f"/{path}"


def _read_areas(file, names):
    """Returns the areas of a text file."""
    text, _ = decode_text(file.read_bytes(), file)
    areas = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split()
        if not cells:
            continue
        where = f"{file}, line {number}"
        try:
            values = np.array(cells, "float64")
        except ValueError:
            raise DataError(f"{where}: must be numbers, not {line[:60]!r}") from None
        if len(values) == 5:
            raise DataError(
                f"{where}: must be a class and three points or more, and has 4 numbers: a box, or "
                "two points. Draw a polygon, or remove the line"
            )
        if not np.isfinite(values[0]) or values[0] % 1 or not 0 <= values[0] < len(names):
            raise DataError(
                f"{where}: unknown class {cells[0]}. The classes are 0 to {len(names) - 1}"
            )
        with located(where):
            ring = as_ring(values[1:])
        if ring.min() < -_TOLERANCE or ring.max() > 1 + _TOLERANCE:
            raise DataError(
                f"{where}: coordinates must be shares of the image, 0 to 1. Found "
                f"{ring.min():g} to {ring.max():g}"
            )
        area = Polygons((ring.astype("float32"),), "filled", relative=True)
        areas.append((names[int(values[0])], area))
    return areas
