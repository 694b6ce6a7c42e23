"""Interface between data sets and the record writer: examples, classes and a label map."""

import dataclasses
import functools
import importlib.resources
import json
import pathlib
import typing
import unicodedata

import cv2
import numpy as np

from kseg.classes import Classes, check_num_classes
from pipelines.datasets.label_files import INDEX_MASK, count_values
from pipelines.datasets.text_files import decode_text
from pipelines.errors import DataError
from pipelines.sources import Member, fingerprint, open_source

IGNORE_LABEL = 255
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """The classes of a data set and their encoding in its label files.

    Attributes:
        class_names: list of str, in the order of the labels 0..N-1.
        palette: list of `[red, green, blue]`.
        label_map: dict from the value in a label file to a label, 255 = ignored. Any other value
            in a file is an error.
        categories: dict from the name of a category to the labels of its classes. A category is
            scored as if its classes were one (Cityscapes).
        groups: dict from the name of a group to the labels of its classes. A group is scored by
            the mean over its classes (CaDIS).

    Raises:
        UserError: unless there are 1 to `kseg.classes.MAX_CLASSES` classes.
    """

    class_names: list[str]
    palette: list[list[int]]
    label_map: dict[int, int]
    categories: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    groups: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_num_classes(len(self.class_names))

    @classmethod
    def load(cls, name):
        """Reads `<name>.json` in this module's folder."""
        return cls.from_facts(facts(name))

    @classmethod
    def from_facts(cls, values):
        """Reads the keys `classes` and `label_map` and, if present, `categories` and `groups`."""
        return cls(
            class_names=[c["name"] for c in values["classes"]],
            palette=[c["color"] for c in values["classes"]],
            label_map=as_label_map(values["label_map"]),
            categories=values.get("categories", {}),
            groups=values.get("groups", {}),
        )

    def classes(self):
        """Describes the classes without their values in label files: `kseg.classes.Classes`."""
        return Classes(
            self.class_names, self.palette, categories=self.categories, groups=self.groups
        )

    def map_labels(self, values):
        """Translates the values of a label file.

        Args:
            values: uint8 or uint16 array.

        Returns:
            uint8 array of labels, 255 = ignored.

        Raises:
            DataError: if there are values outside the label map.
        """
        size = 1 << 8 * values.itemsize
        table = np.zeros(size, "uint8")
        unknown = np.ones(size, "uint8")
        for value, label in self.label_map.items():
            table[value], unknown[value] = label, 0
        if _look_up(unknown, values).any():
            counts = count_values(values)
            others = np.flatnonzero((counts > 0) & (unknown > 0))[:5]
            listed = ", ".join(f"{value} ({counts[value]} pixels)" for value in others)
            raise DataError(f"label values must be among {_ranges(self.label_map)}; found {listed}")
        return _look_up(table, values)


class Found(typing.NamedTuple):
    """The result of a data set's `find`.

    Attributes:
        taxonomy: `Taxonomy`.
        splits: dict from split to list of examples.
        notes: list of str, assumptions made, as lines for the user.
    """

    taxonomy: Taxonomy
    splits: dict[str, list]
    notes: list[str] = []  # noqa: RUF012 (never changed)


@dataclasses.dataclass(frozen=True)
class FileExample:
    """An image file and its label file.

    Attributes:
        id: str, unique in its split.
        image: file with a JPEG or PNG: a `pathlib.Path` or a `Member` of an archive.
        label: file with the label; None where all pixels are ignored.
        decode: from the bytes of `label` to an array of values, one of `label_files`.
    """

    id: str
    image: pathlib.Path | Member
    label: pathlib.Path | Member | None
    decode: typing.Callable = INDEX_MASK

    @property
    def fingerprint(self):
        """Names, sizes and modification times of both files, and the reader of the label."""
        files = [file for file in (self.image, self.label) if file is not None]
        return [*map(fingerprint, files), repr(self.decode)]

    def read(self):
        """Returns the bytes of both files, unchanged; None for a missing label."""
        return self.image.read_bytes(), None if self.label is None else self.label.read_bytes()


@functools.cache
def facts(name):
    """Returns the content of `<name>.json` in this module's folder."""
    return json.loads(importlib.resources.files(__package__).joinpath(f"{name}.json").read_text())


def as_label_map(values):
    """Returns a label map read from JSON, with its keys converted to int."""
    return {int(value): label for value, label in values.items()}


def find_splits(
    source, folders, *, expected=None, image_end=IMAGE_SUFFIXES, label_end=(".png",), **arguments
):
    """Lists the examples of each split that is present.

    Args:
        source: as for `open_source`.
        folders: dict from split to `(image folder, label folder)`, relative to the data
            set's folder, which may be a few levels below the source.
        expected: str, the expected layout in words, for messages; default: all of `folders`.
        image_end, label_end: tuples of str, as for `list_files`.
        **arguments: as for `pair_files`.

    Returns:
        dict from split to list of `FileExample`.

    Raises:
        DataError: if there is no split, a split lacks images or labels, or a file has no partner.
    """
    source = open_source(source)
    parents = {split: _find_pair(source, *pair) for split, pair in folders.items()}
    if not any(parents.values()):
        pairs = ", or ".join(f"{images}/ and {labels}/" for images, labels in folders.values())
        raise wrong_layout(source, expected or pairs)
    roots = [image_parent for image_parent, _ in filter(None, parents.values())]
    splits = {}
    for split, (images, labels) in folders.items():
        if parents[split]:
            image_parent, label_parent = parents[split]
            splits[split] = pair_files(
                list_files(image_parent / images, image_end),
                list_files(label_parent / labels, label_end),
                image_parent / images,
                **arguments,
            )
        elif half := next((root for root in roots if root.has(images)), None):
            raise _half(half, images, labels, labels)
    return splits


def _find_pair(source, images, labels):
    """Returns the parents of both folders, or None if there is no label folder.

    The label folder is searched for first: many other data sets keep images in `train/`, too.
    """
    if whole := source.find(images, labels):
        return whole, whole
    label_parent = source.find(labels)
    if label_parent is None:
        return None
    image_parent = source.find(images)
    if image_parent is None:
        raise _half(label_parent, images, labels, images)
    return image_parent, label_parent


def _half(folder, images, labels, missing):
    return DataError(f"{folder} must have both {images}/ and {labels}/. {missing}/ is missing")


def wrong_layout(source, expected, kind=DataError):
    """Returns the error for a source with an unexpected layout.

    Args:
        source: `Source`.
        expected: str, the required content.
        kind: class of the error.

    Returns:
        `kind`.
    """
    return kind(
        f"{source.name} must be a folder, or a zip or tar file, with {expected}. It holds "
        f"{source.describe()}"
    )


def list_files(root, ends):
    """Lists the files with given endings in a folder and its immediate subfolders.

    Args:
        root: `SourceFolder`.
        ends: tuple of str, endings in lower case; the rest of a file's name is its id.

    Returns:
        dict from id to file.

    Raises:
        DataError: if two files have the same id.
    """
    files = {}
    for folder in [root, *(root / name for name in root.folders())]:
        for name, file in folder.files().items():
            end = next((end for end in ends if name.lower().endswith(end)), None)
            if end is None:
                continue
            key = unicodedata.normalize("NFC", name[: -len(end)])
            if key in files:
                raise DataError(f"Two images are called {key!r} in {root}. Remove one")
            files[key] = file
    return files


def pair_files(images, labels, where, *, decode=INDEX_MASK):
    """Pairs images with labels.

    Args:
        images, labels: dicts from id to file.
        where: the folder of the images, for error messages.
        decode: as for `FileExample`.

    Returns:
        list of `FileExample`, sorted by id.

    Raises:
        DataError: if a file has no partner, or there are no files.
    """
    unmatched = [str(images[key]) for key in sorted(images.keys() - labels.keys())]
    unmatched += [str(labels[key]) for key in sorted(labels.keys() - images.keys())]
    if unmatched:
        raise DataError(
            "Every image needs a label file of the same name, and the reverse. Without partner: "
            f"{shorten(unmatched)}. Add what is missing, or move these elsewhere"
        )
    if not images:
        raise DataError(f"There are no images in {where}")
    return [FileExample(key, images[key], labels[key], decode) for key in sorted(images)]


def pair_listed(names, images, labels, where, *, decode=INDEX_MASK):
    """Pairs the images and labels that a list names; unlisted ones are left out.

    Args:
        names: list of str, ids.
        images, labels: dicts from id to file.
        where: the list file, for error messages.
        decode: as for `FileExample`.

    Returns:
        list of `FileExample`, sorted by id.

    Raises:
        DataError: as `check_listed`.
    """
    check_listed(names, images, labels, where)
    return [FileExample(name, images[name], labels[name], decode) for name in sorted(names)]


def check_listed(names, images, labels, where):
    """Checks the names of a list.

    Args:
        names: list of str, ids.
        images, labels: dicts with the ids as keys.
        where: the list file, for error messages.

    Raises:
        DataError: if the list is empty, or a name is listed twice or lacks an image or a label.
    """
    twice = sorted({name for name in names if names.count(name) > 1}) if _has_twins(names) else []
    if twice:
        raise DataError(f"{where} must name an image once. Named twice: {shorten(twice)}")
    for files, kind in ((images, "image"), (labels, "label")):
        missing = sorted(set(names) - files.keys())
        if missing:
            raise DataError(f"{where} names what has no {kind} file: {shorten(missing)}")
    if not names:
        raise DataError(f"{where} names no image")


def read_list(file):
    """Returns the non-empty lines of a list file, stripped of surrounding whitespace.

    Raises:
        DataError: if it is not a text file.
    """
    text, _ = decode_text(file.read_bytes(), file)  # A misread name matches no file.
    return [line.strip() for line in text.splitlines() if line.strip()]


def shorten(names, shown=3):
    """Formats the first few names and the number of the others."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _look_up(table, values):
    """Returns `table[values]`; uses OpenCV for 8-bit values, where it is faster."""
    return cv2.LUT(values, table) if values.itemsize == 1 and values.ndim == 2 else table[values]


def _has_twins(names):
    return len(set(names)) < len(names)


def _ranges(values):
    """Formats integers as ranges, such as `0..11, 255`."""
    text, first = [], None
    for value in sorted(values):
        if first is None:
            first = value
        if value + 1 not in values:
            text.append(f"{first}..{value}" if value > first else str(value))
            first = None
    return ", ".join(text)
