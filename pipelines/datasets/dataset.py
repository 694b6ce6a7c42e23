"""What a data set is to the writer of records: examples, classes, a label map."""

import dataclasses
import importlib.resources
import json
import pathlib

import numpy as np

from pipelines.errors import DataError

IGNORE_LABEL = 255
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """The classes of a data set and how its label files write them.

    Attributes:
        class_names: list of str, in the order of the labels 0..N-1.
        palette: list of `[red, green, blue]`.
        label_map: dict from the value in a label file to a label, 255 = ignored. Any other value
            is a fault of the file.
        categories: dict from the name of a category to the labels of its classes. A category is
            scored as if they were one class (Cityscapes).
        groups: dict from the name of a group to the labels of its classes. A group is scored by
            the mean over them (CaDIS).
    """

    class_names: list[str]
    palette: list[list[int]]
    label_map: dict[int, int]
    categories: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    groups: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, name):
        """Reads `<name>.json` beside this module."""
        text = importlib.resources.files(__package__).joinpath(f"{name}.json").read_text()
        facts = json.loads(text)
        return cls(
            class_names=[c["name"] for c in facts["classes"]],
            palette=[c["color"] for c in facts["classes"]],
            label_map={int(k): v for k, v in facts["label_map"].items()},
            categories=facts.get("categories", {}),
            groups=facts.get("groups", {}),
        )

    def map_labels(self, values):
        """Translates the values of a label file.

        Args:
            values: uint8 array.

        Returns:
            uint8 array of labels, 255 = ignored.

        Raises:
            DataError: if there are values outside the label map.
        """
        table = np.zeros(256, "uint8")
        known = np.zeros(256, bool)
        for value, label in self.label_map.items():
            table[value], known[value] = label, True
        counts = np.bincount(values.reshape(-1), minlength=256)
        strange = np.flatnonzero((counts > 0) & ~known)
        if len(strange):
            found = ", ".join(f"{value} ({counts[value]} pixels)" for value in strange[:5])
            raise DataError(f"label values must be among {_ranges(self.label_map)}; found {found}")
        return table[values]


@dataclasses.dataclass(frozen=True)
class FileExample:
    """An image file and its label file.

    Attributes:
        id: str, unique in its split.
        image: `pathlib.Path` of a JPEG or PNG.
        label: `pathlib.Path` of a single-channel 8-bit PNG.
    """

    id: str
    image: pathlib.Path
    label: pathlib.Path

    @property
    def fingerprint(self):
        """Names, sizes and times of change of both files."""
        states = [(path, path.stat()) for path in (self.image, self.label)]
        return [[path.name, state.st_size, state.st_mtime_ns] for path, state in states]

    def read(self):
        """The bytes of both files, as they are."""
        return self.image.read_bytes(), self.label.read_bytes()


def find_splits(source, name, folders):
    """Lists the examples of each split that is there.

    Args:
        source: the data set's folder, or the one that holds it under its usual name.
        name: str, that usual name; upper and lower case are not told apart.
        folders: dict from split to `(image folder, label folder)`, below the data set's folder.

    Returns:
        dict from split to list of `FileExample`.

    Raises:
        DataError: if there is no split or half of one, or a file lacks its partner.
    """
    source = pathlib.Path(source)
    if not source.is_dir():
        found = "It is a file" if source.exists() else "It does not exist"
        raise DataError(f"{source} must be a folder with {_describe(folders)}. {found}")
    inside = [path for path in sorted(source.iterdir()) if path.is_dir()]
    splits = {}
    for root in [source, *(path for path in inside if path.name.lower() == name.lower())]:
        for split, (images, labels) in folders.items():
            there = [(root / folder).is_dir() for folder in (images, labels)]
            if all(there):
                splits[split] = pair_files(root / images, root / labels)
            elif any(there):
                missing = labels if there[0] else images
                raise DataError(
                    f"{root} must have both {images}/ and {labels}/. {missing}/ is missing"
                )
        if splits:
            return splits
    names = [path.name + ("/" if path.is_dir() else "") for path in sorted(source.iterdir())]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    raise DataError(
        f"{source} must be a folder with {_describe(folders)}. It holds "
        f"{', '.join(names[:6]) or 'nothing'}{more}"
    )


def _ranges(values):
    """Writes whole numbers as `0..11, 255`."""
    text, first = [], None
    for value in sorted(values):
        if first is None:
            first = value
        if value + 1 not in values:
            text.append(f"{first}..{value}" if value > first else str(value))
            first = None
    return ", ".join(text)


def _describe(folders):
    return ", or ".join(f"{images}/ and {labels}/" for images, labels in folders.values())


def pair_files(images, labels):
    """Pairs the images of one folder with the labels of another by their stems.

    Args:
        images: `pathlib.Path`, folder of JPEG or PNG files.
        labels: `pathlib.Path`, folder of PNG files.

    Returns:
        list of `FileExample`, sorted by id.

    Raises:
        DataError: if a file has no partner, or two images share a stem, or there is none.
    """
    found = {}
    for path in sorted(images.iterdir()):
        if path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise DataError(f"Two images are called {path.stem!r} in {images}. Remove one")
            found[path.stem] = path
    partners = {path.stem: path for path in labels.glob("[!.]*.png")}
    lonely = [str(found[s]) for s in sorted(found.keys() - partners.keys())]
    lonely += [str(partners[s]) for s in sorted(partners.keys() - found.keys())]
    if lonely:
        more = f" and {len(lonely) - 3} more" if len(lonely) > 3 else ""
        raise DataError(
            f"Every image needs a label file of the same name, and the reverse. Without partner: "
            f"{', '.join(lonely[:3])}{more}"
        )
    if not found:
        raise DataError(f"There are no images in {images}")
    return [FileExample(stem, found[stem], partners[stem]) for stem in sorted(found)]
