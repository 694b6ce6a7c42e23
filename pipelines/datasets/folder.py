"""Any folder of images and masks, with a table of its classes.

Found without being told, below the source (upper and lower case are not told apart):

    images/train/ labels/train/     or   train/images/ train/labels/   or   train/ train_labels/
    images/ labels/                 with list files train.txt, val.txt, ... or with ratios

Instead of `images` and `labels` there may be the other names of `IMAGE_FOLDERS`, `LABEL_FOLDERS`.
"""

import hashlib
import pathlib
import posixpath

from pipelines.datasets.class_table import ClassTable
from pipelines.datasets.dataset import (
    IGNORE_LABEL,
    Found,
    pair_files,
    pair_listed,
    read_list,
    shorten,
    wrong_layout,
)
from pipelines.datasets.label_files import INDEX_MASK, ColorMask, Recoded, is_color_picture
from pipelines.errors import DataError
from pipelines.sources import open_source

CLASS_FILES = ("classes.json", "classes.csv", "class_dict.csv")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
LABEL_FOLDERS = (
    "labels", "label", "masks", "mask", "annotations", "annotation", "annots", "annot", "gt",
    "segmentationclass", "segmentationclassraw",
)  # fmt: skip
MASKS = ("auto", "index", "colors")
UNKNOWN = ("error", "ignore")
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_LIST_FOLDERS = ("", "splits", "lists", "ImageSets", "ImageSets/Segmentation")
_IMAGE_ENDS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_LABEL_ENDS = (".png", ".bmp", ".tif", ".tiff")
_MAX_DEPTH = 3
_EXPECTED = (
    "images/ and labels/ (with train/ and val/ in both, or list files), or train/images/ and "
    "train/labels/, or train/ and train_labels/"
)


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
):
    """Lists the examples of each split.

    Args:
        source: as for `pipelines.sources.open_source`.
        classes: path of the class table, see `class_table`; default: one of `CLASS_FILES` in the
            source.
        images, labels: str, folders in the source, both or none; default: found as in the module's
            description.
        split: dict from split to its ratio, or to its list file: a path, or a file in the source.
            A line of it names an image, with or without folder and suffix; more columns are left
            out. Only for data that is not divided by folders. Default: list files that are found.
        masks: str, `index`: masks hold values; `colors`: they hold colours; `auto`: what the first
            mask looks like, where a palette counts as index.
        unknown: str, what happens to values and colours that are not in the table: `error` or
            `ignore`.
        seed: int, chooses the images where ratios divide them. An image that is added or removed
            moves few others.

    Returns:
        `Found`.

    Raises:
        DataError: if classes or files cannot be found or used, or an option is out of range.
    """
    for name, value, choices in (("masks", masks, MASKS), ("unknown", unknown, UNKNOWN)):
        if value not in choices:
            raise DataError(f"`{name}` must be one of {', '.join(choices)}. Received: {value!r}")
    if (images is None) != (labels is None):
        raise DataError("Give both `images` and `labels`, or neither")
    source = open_source(source)
    table = _read_table(source, classes)
    places = _divided(*_given(source, images, labels)) if images else _search(source)
    files = {}
    for name, (image_place, label_place) in places.items():
        found = _list(image_place, _IMAGE_ENDS), _list(label_place, _LABEL_ENDS)
        if found[0] and not found[1] and _list(label_place, (".jpg", ".jpeg")):
            raise DataError(f"{label_place} must hold PNG masks. JPEG changes their values")
        files[name] = (found[0], _without_common_end(*found), image_place)
    reader = _reader(table, files, masks, unknown)
    if None not in places:
        if split:
            raise DataError(
                f"{source.name} is divided into folders already: {', '.join(places)}. Leave out "
                "`split`"
            )
        splits = {
            name: pair_files(image_files, label_files, place, decode=reader)
            for name, (image_files, label_files, place) in files.items()
        }
    else:
        splits = _divide(source, *files[None], split, seed, reader)
    return Found(table.taxonomy(), splits)


def _read_table(source, classes):
    if classes is not None:
        path = pathlib.Path(classes).expanduser()
        try:
            return ClassTable(path.read_bytes(), path)
        except OSError as error:
            raise DataError(f"The class table {path} cannot be read: {error.strerror}") from None
    for name in CLASS_FILES:
        if place := source.find(name):
            return ClassTable(place.file(name).read_bytes(), place / name)
    raise DataError(
        f"A class table is needed: {', '.join(CLASS_FILES)} in {source.name}, or --classes FILE"
    )


def _given(source, images, labels):
    places = []
    for folder in (images, labels):
        place = source.find(folder.strip("/"))
        if place is None:
            raise wrong_layout(source, f"{folder}/")
        places.append(place / folder.strip("/"))
    return places


def _search(source):
    """Finds the folders.

    Returns:
        dict from split to `(image place, label place)`; the key is None for data that is not
        divided.

    Raises:
        DataError: if there are none.
    """
    level = source.tops()
    for _ in range(_MAX_DEPTH + 1):
        found = {root: places for root in level if (places := _look(root))}
        # What is unpacked comes before archives.
        found = {r: p for r, p in found.items() if not r.in_archive} or found
        if len(found) > 1:
            raise DataError(
                f"The data must be in one place. It could be {' or '.join(map(str, found))}. Give "
                "one of them as source"
            )
        if found:
            return next(iter(found.values()))
        level = [root / name for root in level for name in root.folders()]
    raise wrong_layout(source, _EXPECTED)


def _look(root):
    """Finds the folders in one place; None if they are not there."""
    here = {name.lower(): name for name in root.folders()}
    if pair := _pair(root, here):
        return _divided(*pair)
    found = {}
    for name, split in _SPLITS.items():
        if name not in here:
            continue
        inside = root / here[name]
        pair = _pair(inside, {folder.lower(): folder for folder in inside.folders()})
        if not pair:
            beside = [name + joint + end for end in LABEL_FOLDERS for joint in ("", "_", "-")]
            beside = next((here[other] for other in beside if other in here), None)
            pair = (inside, root / beside) if beside else None
        if pair:
            found[split] = pair
    return found or None


def _pair(root, here):
    """The folders of images and of labels in one place; None if one is missing."""
    pair = [next((n for n in names if n in here), None) for names in (IMAGE_FOLDERS, LABEL_FOLDERS)]
    return [root / here[name] for name in pair] if all(pair) else None


def _divided(images, labels):
    """Divides by the folders below, if they are called after splits."""
    below = [
        {_SPLITS[name.lower()]: name for name in place.folders() if name.lower() in _SPLITS}
        for place in (images, labels)
    ]
    if not any(below):
        return {None: (images, labels)}
    if below[0].keys() != below[1].keys():
        found = "; ".join(", ".join(names.values()) or "nothing" for names in below)
        raise DataError(f"{images} and {labels} must be divided in the same way. Found: {found}")
    return {split: (images / below[0][split], labels / below[1][split]) for split in below[0]}


def _list(place, ends, prefix=""):
    """dict from the path below a place, without its end, to the file; all folders below count."""
    found = {}
    for name, file in place.files().items():
        stem, end = posixpath.splitext(name)
        if end.lower() in ends:
            if prefix + stem in found:
                raise DataError(f"Two images are called {stem!r} in {place}. Remove one")
            found[prefix + stem] = file
    for name in place.folders():
        found.update(_list(place / name, ends, f"{prefix}{name}/"))
    return found


def _without_common_end(images, labels):
    """Takes off what all labels' names have more than their images': `x_mask.png` for `x.jpg`."""
    if not images or not labels or images.keys() & labels.keys():
        return labels
    first = min(labels)
    for length in range(len(first) - 1, 0, -1):
        end = first[length:]
        if first[:length] in images and all(key.endswith(end) for key in labels):
            return {key[: -len(end)]: file for key, file in labels.items()}
    return labels


def _reader(table, files, masks, unknown):
    """How the masks are read."""
    outside = IGNORE_LABEL if unknown == "ignore" else None
    if masks == "auto":
        first = next((labels[min(labels)] for _, labels, _ in files.values() if labels), None)
        try:
            masks = "colors" if first and is_color_picture(first.read_bytes()) else "index"
        except DataError as error:
            raise DataError(f"{first}: {error}") from None
    if masks == "colors":
        if not table.has_colors:
            raise DataError(f"{table.name} must give every class a color: the masks hold colours")
        colors, labels = zip(*((row.color, row.label) for row in table.rows), strict=True)
        return ColorMask(colors, labels, outside)
    values = {IGNORE_LABEL: IGNORE_LABEL} | {row.value: row.label for row in table.rows}
    numbers = tuple(values.get(value, -1) for value in range(max(values) + 1))
    return Recoded(INDEX_MASK, "the class table", numbers, outside)


def _divide(source, images, labels, place, split, seed, reader):
    """Divides by list files or by ratios."""
    lists = split or _find_lists(source)
    if not lists:
        raise DataError(
            f"{place} is not divided into splits. Give ratios (--split train=0.8 --split val=0.2) "
            "or list files (--split train=train.txt --split val=val.txt)"
        )
    ratios = {name: value for name, value in lists.items() if isinstance(value, (int, float))}
    if not ratios:
        splits = {}
        for name, value in lists.items():
            file = _list_file(source, value)
            names = [_match(line, images, file) for line in read_list(file)]
            splits[name] = pair_listed(names, images, labels, file, decode=reader)
        return splits
    if len(ratios) < len(lists):
        raise DataError("`split` takes ratios for all splits, or list files for all")
    if min(ratios.values()) <= 0 or abs(sum(ratios.values()) - 1) > 1e-6:
        raise DataError(
            f"The ratios of the splits must be positive and sum to 1. Received: {ratios}"
        )
    examples = pair_files(images, labels, place, decode=reader)
    order = sorted(examples, key=lambda e: hashlib.sha256(f"{seed}/{e.id}".encode()).digest())
    splits, total, start = {}, 0, 0
    for name, ratio in ratios.items():
        total += ratio
        stop = round(total * len(order))
        splits[name] = sorted(order[start:stop], key=lambda e: e.id)
        start = stop
        if not splits[name]:
            raise DataError(f"{len(order)} images are too few for a split of {ratio:g}: {name}")
    return splits


def _find_lists(source):
    for folder in _LIST_FOLDERS:
        names = {posixpath.join(folder, f"{name}.txt"): split for name, split in _SPLITS.items()}
        found = {split: path for path, split in names.items() if source.find(path)}
        if found:
            return found
    return {}


def _list_file(source, value):
    path = pathlib.Path(value).expanduser()
    if path.is_file():
        return path
    if place := source.find(str(value)):
        return place.file(str(value))
    raise DataError(f"The list file {value} is neither there nor in {source.name}")


def _match(line, images, file):
    """The id of the image that a line names."""
    for text in (line, line.replace(",", " ").split()[0]):
        stem, end = posixpath.splitext(text)
        parts = (stem if end.lower() in _IMAGE_ENDS else text).split("/")
        for start in range(len(parts)):
            if "/".join(parts[start:]) in images:
                return "/".join(parts[start:])
        ends = [key for key in images if key.endswith("/" + "/".join(parts))]
        if len(ends) == 1:
            return ends[0]
        if ends:
            raise DataError(f"{file}: {text!r} could be any of {shorten(ends)}")
    raise DataError(f"{file} names what has no image file: {line}")
