"""Folders of images and masks, with a class table.

Detected below the source (case-insensitive):

    images/train/ labels/train/     or   train/images/ train/labels/   or   train/ train_labels/
    images/ labels/                 with list files train.txt, val.txt, ... or with ratios
    train/ valid/                   each with both kinds: x.jpg and x_mask.png (Roboflow)
    JPEGImages/ SegmentationClass/  with labelmap.txt (CVAT, Pascal VOC)

`IMAGE_FOLDERS` and `LABEL_FOLDERS` list the accepted alternatives to `images` and `labels`. Names
are compared in Unicode's composed form (NFC), because macOS writes them decomposed.
"""

import collections
import os
import pathlib
import posixpath
import re
import unicodedata

from kseg.errors import option
from pipelines.datasets.annotated import check_choice
from pipelines.datasets.class_table import ClassTable
from pipelines.datasets.dataset import pair_files, pair_listed, wrong_layout
from pipelines.datasets.large_masks import mask_bands
from pipelines.datasets.masks import MASKS, read_masks
from pipelines.datasets.splits import (
    ARRAY_ENDS,
    IMAGE_ENDS,
    JPEG_ENDS,
    LABEL_ENDS,
    SPLITS,
    check_split,
    divide,
)
from pipelines.errors import DataError
from pipelines.sources import open_source

CLASS_FILES = (
    "classes.json", "classes.csv", "class_dict.csv", "_classes.csv", "labelmap.txt", "classes.txt",
    "id2label.json",
)  # fmt: skip
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
LABEL_FOLDERS = (
    "labels", "label", "masks", "mask", "annotations", "annotation", "annots", "annot", "gt",
    "segmentationclass", "segmentationclassraw",
)  # fmt: skip
UNKNOWN = ("error", "ignore")
# File endings of unsupported kinds of mask, to name the kind in error messages.
_OTHER_ENDS = {
    **dict.fromkeys(JPEG_ENDS, "JPEG"), ".gif": "GIF", ".webp": "WebP", ".npy": "NumPy",
    ".npz": "NumPy", ".mat": "MATLAB", ".json": "JSON", ".xml": "XML", ".txt": "text",
    ".svg": "SVG", ".heic": "HEIC", ".avif": "AVIF", ".jp2": "JPEG 2000", ".pgm": "PGM",
    ".ppm": "PPM", ".tga": "TGA", ".psd": "PSD", ".pdf": "PDF",
}  # fmt: skip
# The name of a mask stored in the same folder as its image.
_MASK_NAME = re.compile(r"(.+?)([ _.-](?:masks?|labels?|gt|seg|segmentation|annotation))$", re.I)
_MAX_DEPTH = 3
_EXPECTED = (
    "images/ and labels/ or masks/ (with train/ and val/ in both, or list files), or train/images/ "
    "and train/labels/, or train/ and train_labels/"
)


class NoMasksError(DataError):
    """The source has no masks and class table in a known layout; it may hold annotations."""


def find(
    source,
    *,
    classes=None,
    images=None,
    labels=None,
    split=None,
    masks="auto",
    unknown="error",
    seed=0,
    channels=None,
    tile=None,
):
    """Lists the examples of each split.

    Args:
        source: as for `pipelines.sources.open_source`.
        classes: path of the class table, see `class_table`; default: one of `CLASS_FILES` in the
            source.
        images, labels: str, folders in the source, both or neither; default: detected as described
            in the module docstring.
        split: dict from split to its ratio, or to its list file: a path, or a file in the source.
            Each line names an image, with or without folder and suffix; further columns are
            ignored. Only for data not divided into folders. Default: the list files found.
        masks: str, `index`: masks hold values; `colors`: they hold colors; `binary`: there are two
            classes, the first dark and the second bright; `auto`: the only interpretation that fits
            the table and the masks, see `pipelines.datasets.masks`.
        unknown: str, treatment of values and colors that are not in the table: `error` or `ignore`.
        seed: int, seed of the division by ratios. Adding or removing an image moves few others
            between splits.
        channels: int or None; if given, images may be `.npy` files, too.
        tile: `(height, width)` or None; if given, masks are inspected band by band, see
            `pipelines.tiles`.

    Returns:
        `Found`.

    Raises:
        DataError: if classes or files cannot be found or used, or an option is out of range.
    """
    check_choice("masks", masks, MASKS)
    check_choice("unknown", unknown, UNKNOWN)
    check_split(split)
    for name, value in (("images", images), ("labels", labels)):
        if value is not None and (not isinstance(value, (str, os.PathLike)) or not str(value)):
            raise DataError(f"{option(name)} must be a folder of the source. Received: {value!r}")
    if (images is None) != (labels is None):
        raise DataError(f"Give both {option('images')} and {option('labels')}, or neither")
    source = open_source(source)
    label_ends = LABEL_ENDS + (JPEG_ENDS if masks == "binary" else ())
    image_ends = IMAGE_ENDS + (ARRAY_ENDS if channels and not tile else ())
    try:
        table, notes = read_table(source, classes)
        given = _given(source, images, labels) if images else None
        places = _divided(*given, notes) if given else _search(source, notes)
        ends = image_ends, label_ends, not tile
        files = {name: _list_both(*pair, *ends) for name, pair in places.items()}
    except NoMasksError as error:
        from pipelines.datasets import importers  # Imported here: one of them imports this module.

        raise importers.explain(source, error) from None
    if None not in places:
        if split:
            raise DataError(
                f"{source.name} is divided into folders already: {', '.join(places)}. Leave out "
                f"{option('split')}"
            )
        splits = {name: pair_files(*found) for name, found in files.items()}
    else:
        images, labels, place = files[None]
        splits = divide(
            source,
            images,
            lambda: pair_files(images, labels, place),
            lambda names, file: pair_listed(names, images, labels, file),
            place,
            split,
            seed,
            labels,
        )
    parts = None if tile is None else mask_bands
    return read_masks(table, splits, masks, unknown, notes=[*notes, *table.notes], parts=parts)


def read_table(source, classes):
    """Reads the class table of a source.

    Args:
        source: `pipelines.sources.Source`.
        classes: path of the table; None: one of `CLASS_FILES` in the source.

    Returns:
        `(table, notes)`: `ClassTable`, and list of str for the user.

    Raises:
        DataError: if there is no class table, there are different ones, or it cannot be used.
    """
    if classes is not None:
        if not isinstance(classes, (str, os.PathLike)):
            raise DataError(f"{option('classes')} must be a file. Received: {classes!r}")
        path = pathlib.Path(os.path.expanduser(classes))
        try:
            content = path.read_bytes()
        except (OSError, ValueError) as error:  # The latter of a zero in the name.
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"The class table {path} cannot be read: {reason}") from None
        return ClassTable(content, path), []
    found = {name: places for name in CLASS_FILES if (places := source.find_all(name))}
    if not found:
        raise NoMasksError(
            f"A class table is needed: {', '.join(CLASS_FILES)} in {source.name}, or "
            f"{option('classes', 'FILE')}. A classes.csv has the columns name,color and a row for "
            "each class, such as background,#000000"
        )
    name, places = next(iter(found.items()))
    contents = [place.file(name).read_bytes() for place in places]
    # Roboflow writes the same table into every split.
    for place, content in zip(places, contents, strict=True):
        if content != contents[0]:
            raise DataError(
                f"There must be one class table. {places[0] / name} and {place / name} differ. "
                f"Choose by {option('classes', 'FILE')}"
            )
    notes = []
    if len(found) > 1:
        _, other = [*found.items()][1]
        notes = [
            f"The class table is {places[0] / name}; {other[0] / [*found][1]} is not read. Choose "
            f"by {option('classes', 'FILE')}"
        ]
    return ClassTable(contents[0], places[0] / name), notes


def _given(source, images, labels):
    places = []
    for folder in (images, labels):
        path = str(folder).replace("\\", "/").strip("/")
        forms = [path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))]
        found = next((form for form in forms if source.find(form)), None)
        if found is None:
            raise wrong_layout(source, f"{folder}/")
        places.append(source.find(found) / found)
    return places


def _search(source, notes):
    """Finds the folders of images and labels; adds what is left out to `notes`.

    Returns:
        dict from split to `(image folder, label folder)`; the only key is None for data that is
        not divided.

    Raises:
        DataError: if no such folders are found, or several sets of them.
    """
    level = source.tops()
    for _ in range(_MAX_DEPTH + 1):
        remarks = {root: [] for root in level}
        found = {root: places for root in level if (places := _look(root, remarks[root]))}
        # Folders on disk take precedence over archives.
        found = {r: p for r, p in found.items() if not r.in_archive} or found
        if len(found) > 1:
            raise DataError(
                f"The data must be in one place. It could be {' or '.join(map(str, found))}. Give "
                "one of them as source"
            )
        if found:
            ((root, places),) = found.items()
            notes += remarks[root]
            return places
        level = [root / name for root in level for name in root.folders()]
    named = f"{option('images', 'FOLDER')} {option('labels', 'FOLDER')}"
    raise wrong_layout(source, f"{_EXPECTED}; or name them with {named}", NoMasksError)


def _look(root, notes):
    """Finds the folders of images and labels directly below `root`; None if there are none.

    Raises:
        DataError: if only some splits have labels; `test` is then left out, with a note.
    """
    here = {name.lower(): name for name in root.folders()}
    if pair := _pair(root, here):
        return _divided(*pair, notes)
    found, bare = {}, {}
    for name, split in SPLITS.items():
        if name not in here:
            continue
        inside = root / here[name]
        pair = _pair(inside, {folder.lower(): folder for folder in inside.folders()})
        if not pair:
            beside = [name + joint + end for end in LABEL_FOLDERS for joint in ("", "_", "-")]
            beside = next((here[other] for other in beside if other in here), None)
            pair = (inside, root / beside) if beside else None
        if not pair and _masks_beside(inside):
            pair = (inside, inside)
        if pair:
            found[split] = pair
        elif _has_images(inside):
            bare[split] = inside
    if not found:
        return None
    for split, place in bare.items():
        if split not in found:
            _leave_out(split, place, f"that of {', '.join(found)}", notes)
    return found


def _has_images(place):
    inside = {name.lower() for name in place.folders()} & {*IMAGE_FOLDERS}
    return bool(inside) or any(name.lower().endswith(IMAGE_ENDS) for name in place.files())


def _leave_out(split, place, example, notes):
    """Adds a note about a folder of images without masks; only those for tests may have none."""
    if split != "test":
        raise DataError(
            f"{place} holds images, and no masks. Put them into a folder like {example}, or move "
            f"{place} elsewhere"
        )
    notes.append(f"{place} holds images, and no masks: the split {split} is left out")


def _pair(root, here):
    """Returns the image folder and the label folder below `root`; None if either is missing."""
    pair = [next((n for n in names if n in here), None) for names in (IMAGE_FOLDERS, LABEL_FOLDERS)]
    return [root / here[name] for name in pair] if all(pair) else None


def _divided(images, labels, notes):
    """Divides by subfolders, if they are named after splits; `notes`: as for `_look`."""
    below = [
        {SPLITS[name.lower()]: name for name in place.folders() if name.lower() in SPLITS}
        for place in (images, labels)
    ]
    if not any(below):
        return {None: (images, labels)}
    if below[1] and below[0].keys() - below[1].keys() == {"test"}:
        _leave_out("test", images / below[0].pop("test"), "", notes)
    if below[0].keys() != below[1].keys():
        found = "; ".join(", ".join(names.values()) or "nothing" for names in below)
        raise DataError(f"{images} and {labels} must be divided in the same way. Found: {found}")
    return {split: (images / below[0][split], labels / below[1][split]) for split in below[0]}


def _list_both(image_place, label_place, image_ends, label_ends, reads_arrays=True):
    """Lists images and masks; `reads_arrays`: an option makes `.npy` files images.

    Returns:
        `(images, labels, image_place)`: dicts from id to file.

    Raises:
        DataError: if files are of an unsupported kind.
    """
    if image_place == label_place:
        images = _list(image_place, image_ends)
        labels = {}
        for key in list(images):
            name = _MASK_NAME.match(key)
            if name and name[1] in images and images[key].suffix.lower() in label_ends:
                labels[name[1]] = images[key]
        for file in labels.values():
            images = {key: other for key, other in images.items() if other != file}
        return images, labels, image_place
    images = _list(image_place, image_ends)
    labels = _without_common_end(images, _list(label_place, label_ends))
    if images.keys() - labels.keys():
        _check_kinds(images.keys() - labels.keys(), label_place)
    if not images:
        _check_kinds(labels.keys(), image_place, images=True, reads_arrays=reads_arrays)
    return images, labels, image_place


def _list(place, ends):
    """Lists files below `place` at any depth: dict from relative path without suffix to file."""
    found = {}
    for key, file in _walk(place):
        stem, end = posixpath.splitext(key)
        if end.lower() in ends:
            if stem in found:
                raise DataError(
                    f"Two files are called {stem!r} in {place}: {found[stem].name} and "
                    f"{file.name}. Remove one"
                )
            found[stem] = file
    return found


def _walk(place, prefix=""):
    """Yields `(relative path, file)` for all files below `place`; paths in NFC."""
    for name, file in place.files().items():
        yield unicodedata.normalize("NFC", prefix + name), file
    for name in place.folders():
        yield from _walk(place / name, f"{prefix}{name}/")


def _check_kinds(missing, place, images=False, reads_arrays=True):
    """Raises a DataError if partners are missing because their files are of an unsupported kind."""
    kinds = collections.Counter()
    for key, _ in _walk(place):
        stem, end = posixpath.splitext(key)
        kind = _OTHER_ENDS.get(end.lower())
        if kind and (kind in ("JPEG", "GIF", "WebP") or any(map(stem.startswith, missing))):
            kinds[kind] += 1
    if not kinds:
        return
    (kind, count), *_ = kinds.most_common(1)
    if images:
        raise DataError(
            f"{place} must hold images as JPEG, PNG, BMP, TIFF, WebP or GIF. It holds {count} "
            f"{kind} files, which are not read. Convert them"
            + (
                f", or say how many channels they have: {option('channels')}"
                * (kind == "NumPy" and reads_arrays)
            )
        )
    why = "JPEG changes their values" if kind == "JPEG" else f"{kind} is not read"
    out = "Save them as PNG again, from where they were drawn"
    if kind == "JPEG":
        out += f"; for two classes, black and white, there is {option('masks', 'binary')}"
    elif kind in ("GIF", "WebP"):
        out = "Convert them to PNG without loss"
    files = f"{count} such file{'s' if count > 1 else ''}"
    error = NoMasksError if kind in ("JSON", "XML", "text") else DataError
    raise error(f"{place} must hold PNG masks. {why}; there are {files}. {out}")


def _masks_beside(place):
    """Returns True if the folder also holds its images' masks: `x_mask.png` for `x.jpg`."""
    stems = {posixpath.splitext(name)[0] for name in place.files()}
    return any((name := _MASK_NAME.match(stem)) and name[1] in stems for stem in stems)


def _without_common_end(images, labels):
    """Strips the suffix that all label names share, such as `_mask` in `x_mask.png` for `x.jpg`."""
    if not images or not labels or images.keys() & labels.keys():
        return labels
    first = min(labels)
    for length in range(len(first) - 1, 0, -1):
        end = first[length:]
        if first[:length] in images and all(key.endswith(end) for key in labels):
            return {key[: -len(end)]: file for key, file in labels.items()}
    return labels
