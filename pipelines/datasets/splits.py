"""Division of a data set into splits by folder and file names, list files or ratios."""

import hashlib
import math
import os
import pathlib
import posixpath
import re
import unicodedata

from kseg.errors import option
from pipelines.datasets.dataset import read_list, shorten
from pipelines.errors import DataError

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
IMAGE_ENDS = (
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif",
)  # fmt: skip
ARRAY_ENDS = (".npy",)
LABEL_ENDS = (".png", ".bmp", ".tif", ".tiff")
JPEG_ENDS = (".jpg", ".jpeg", ".jfif", ".jpe")
_LIST_FOLDERS = ("", "splits", "lists", "ImageSets", "ImageSets/Segmentation")


def split_of(path):
    """Returns the split named in a path: by a word of the file name, else of the innermost folder.

    Args:
        path: str, separated by `/`, such as `annotations/instances_val2017.json` or
            `valid/images/a.jpg`.

    Returns:
        str, `train`, `val` or `test`; None if no part of the path names a split.
    """
    for part in reversed(posixpath.splitext(path)[0].lower().split("/")):
        found = {SPLITS[word] for word in re.findall("[a-z]+", part) if word in SPLITS}
        if len(found) == 1:
            return found.pop()
    return None


def check_split(split):
    """Checks the option `split`.

    Raises:
        DataError: unless it is None, or a dict from split to a finite ratio or a list file.
    """
    if split is None:
        return
    sound = isinstance(split, dict) and all(
        isinstance(name, str)
        and name
        and not isinstance(part, bool)
        and (
            (isinstance(part, (int, float)) and math.isfinite(part))
            or (isinstance(part, (str, os.PathLike)) and str(part).strip())
        )
        for name, part in split.items()
    )
    if not sound:
        raise DataError(
            f"{option('split')} must give each split a ratio or a list file, such as "
            f"{option('split', {'train': 0.8, 'val': 0.2})}. Received: {split!r}"
        )


def divide(source, images, pair_all, pair_some, place, split, seed, labels=()):
    """Divides by list files or by ratios.

    Args:
        source: `Source`, searched for list files.
        images: dict from id to image file.
        pair_all: function without arguments that returns all examples, sorted by id.
        pair_some: function `(ids, list file)` that returns the examples with those ids.
        place: location of the images, for messages.
        split: dict from split to its ratio or list file; None: use the list files found.
        seed: int, seed of the division by ratios.
        labels: dict from id to mask file, to check list files that also name masks.

    Returns:
        dict from split to list of examples.

    Raises:
        DataError: if there are neither lists nor ratios, or one cannot be used.
    """
    lists = split or _find_lists(source)
    if not lists:
        raise DataError(
            f"{place} is not divided into splits. Give ratios "
            f"({option('split', {'train': 0.8, 'val': 0.2})}) or list files "
            f"({option('split', {'train': 'train.txt', 'val': 'val.txt'})})"
        )
    ratios = {name: value for name, value in lists.items() if isinstance(value, (int, float))}
    if not ratios:
        splits = {}
        for name, value in lists.items():
            file = _list_file(source, value)
            names = [_match(line, images, labels, file) for line in read_list(file)]
            splits[name] = pair_some(names, file)
        return splits
    if len(ratios) < len(lists):
        raise DataError(f"{option('split')} takes ratios for all splits, or list files for all")
    if min(ratios.values()) <= 0 or abs(sum(ratios.values()) - 1) > 1e-6:
        raise DataError(
            f"The ratios of the splits must be positive and sum to 1. Received: {ratios}"
        )
    examples = pair_all()
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
        found = {}
        for name, split in SPLITS.items():
            for form in (name, name.capitalize()):
                path = posixpath.join(folder, f"{form}.txt")
                if (place := source.find(path)) and place.file(path):
                    found.setdefault(split, path)
        if found:
            return found
    return {}


def _list_file(source, value):
    path = pathlib.Path(os.path.expanduser(value))
    if os.path.isfile(path):
        return path
    if (place := source.find(str(value))) and (file := place.file(str(value))):
        return file
    each = option("split", {"train": 0.8, "val": 0.2})
    hint = f". Give each split separately, as in {each}" if "=" in str(value) else ""
    raise DataError(f"The list file {value} is neither there nor in {source.name}{hint}")


def _match(line, images, labels, file):
    """Returns the id of the image that a line names; the line may have further columns.

    Raises:
        DataError: if no image or several images match, or if a further column names the mask of
            another image.
    """
    key, rest = None, ""
    # Names may contain spaces and commas: try the whole line first, then the shortest prefix that
    # names an image.
    whole = _clean(line)
    stem, end = posixpath.splitext(whole)
    listed = IMAGE_ENDS + ARRAY_ENDS
    if (stem if end.lower() in listed else whole) in images:
        return stem if end.lower() in listed else whole
    ends = [*(m.start() for m in re.finditer(r"[\s,;]+", line)), len(line)]
    for end in ends:
        key = _look_up(_clean(line[:end]), images, listed, file)
        if key is not None:
            rest = line[end:]
            break
    if key is None:
        raise DataError(f"{file} names what has no image file: {line}")
    for column in re.split(r"[\s,;]+", rest):
        text = _clean(column)
        if posixpath.splitext(text)[1].lower() in LABEL_ENDS:
            other = _look_up(text, labels, LABEL_ENDS, file)
            if other not in (None, key):
                raise DataError(
                    f"{file}: an image and its mask must have the same name. A line pairs "
                    f"{key!r} with {other!r}"
                )
    return key


def _clean(text):
    """Normalizes a path of a list file: no quotation marks, `/` as separator, NFC."""
    return unicodedata.normalize("NFC", text.strip().strip("\"'").replace("\\", "/"))


def _look_up(text, files, ends, file):
    """Finds the id of the file that a path, perhaps without suffix and folders, names; or None."""
    stem, end = posixpath.splitext(text)
    parts = (stem if end.lower() in ends else text).split("/")
    for start in range(len(parts)):
        if "/".join(parts[start:]) in files:
            return "/".join(parts[start:])
    found = [key for key in files if key.endswith("/" + "/".join(parts))]
    if len(found) > 1:
        raise DataError(f"{file}: {text!r} could be any of {shorten(found)}")
    return found[0] if found else None
