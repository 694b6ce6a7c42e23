"""The shared part of the importers of annotation files: images, classes, splits, examples.

The areas of an image are drawn in the order of its file. `overlap` decides which of two overlapping
areas is visible. Pixels outside all areas get the class `unlabeled`, or are ignored.
"""

import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import posixpath
import re
import typing
import unicodedata

from kseg.errors import option
from kseg.json_text import parse_json
from pipelines.datasets.areas import rasterize
from pipelines.datasets.class_map import IGNORE, ClassMap, clean_name, new_taxonomy
from pipelines.datasets.dataset import IGNORE_LABEL, Found, check_listed, shorten
from pipelines.datasets.splits import ARRAY_ENDS, IMAGE_ENDS, check_split, divide, split_of
from pipelines.errors import DataError
from pipelines.sources import Member, fingerprint, open_source

OPTIONS = ("class_map", "unlabeled", "overlap", "split", "seed")  # Options of all importers.
OVERLAPS = ("later", "smaller")
_MAX_DEPTH = 8
_HEAD = 1 << 16
_LARGEST = 1 << 53  # Up to it a float represents all integers exactly.


class AnnotatedImage(typing.NamedTuple):
    """An image and its areas, labeled by class name.

    Attributes:
        id: str.
        file: the image file.
        annotations: file from which the areas were read, or None.
        size: `(height, width)` stated by the annotations; None if they state none.
        areas: list of `(class name, area)`; a name of None means that the pixels are ignored.
        split: str or None.
        mask: picture file whose segments the areas are (panoptic data), or None.
        below: int, number of areas at the beginning of the list that lie below all others.
    """

    id: str
    file: pathlib.Path | Member
    annotations: pathlib.Path | Member | None
    size: tuple | None
    areas: list
    split: str | None = None
    mask: pathlib.Path | Member | None = None
    below: int = 0


@dataclasses.dataclass(frozen=True)
class DrawnExample:
    """An image whose labels are drawn from areas.

    Attributes:
        id: str.
        image: file.
        label: file of the annotations, or None.
        size: `(height, width)` of the annotations; None: the upright image's size.
        areas: list of `(label, area)`.
        unlabeled: int, the label of pixels outside all areas.
        overlap: str, see `pipelines.datasets.areas.rasterize`.
        mask: picture file whose segments the areas are (panoptic data), or None.
        below: int, see `AnnotatedImage`.
    """

    id: str
    image: pathlib.Path | Member
    label: pathlib.Path | Member | None
    size: tuple | None
    areas: list = dataclasses.field(repr=False)
    unlabeled: int
    overlap: str
    mask: pathlib.Path | Member | None = None
    below: int = 0

    @property
    def fingerprint(self):
        """Names, sizes and modification times of the files, and the drawing parameters."""
        files = [file for file in (self.image, self.label, self.mask) if file is not None]
        labels = hashlib.sha256(repr([label for label, _ in self.areas]).encode()).hexdigest()[:16]
        return [*map(fingerprint, files), self.size, labels, self.unlabeled, self.overlap]

    def read(self):
        """Returns the image's bytes; labels are drawn by `draw`."""
        return self.image.read_bytes(), b""

    def draw(self, upright):
        """Draws the labels.

        Args:
            upright: `(height, width)` of the upright image.

        Returns:
            uint8 `(height, width)`.

        Raises:
            DataError: if an area cannot be drawn, or the annotations are of another size.
        """
        upright = tuple(upright)
        size = self.size or upright
        if size not in (upright, upright[::-1]):  # A wrong size may exceed the memory.
            raise DataError(
                f"a label must have the size of its image, {upright} (height, width), and has "
                f"{size}"
            )
        return rasterize(
            self.areas, size, unlabeled=self.unlabeled, overlap=self.overlap, below=self.below
        )


class Files:
    """All files of a source, by name; files on disk take precedence over those in archives.

    A member of an archive is left out if the archive was unpacked: into its own folder, or into a
    folder of its name.

    Args:
        source: as for `pipelines.sources.open_source`.
    """

    def __init__(self, source):
        self.source = open_source(source)
        self.name = self.source.name
        self._images = collections.defaultdict(list)
        self._folded = collections.defaultdict(list)  # By names in lower case.
        self._named, self._partial = {}, []
        self.all = []
        self._on_disk = set()
        for top in self.source.tops():  # Folders on disk first.
            start = len(self.all)
            self._walk(top, "", 0)
            if not top.in_archive:
                name = unicodedata.normalize("NFC", top.tree.path.resolve().name)
                paths = [path for path, _ in self.all[start:]]
                self._on_disk.update(paths, (f"{name}/{path}" for path in paths))

    def _walk(self, place, prefix, depth):
        for name, file in place.files().items():
            path = unicodedata.normalize("NFC", prefix + name)
            if isinstance(file, Member) and not self._on_disk.isdisjoint(
                (path, f"{_stem(file.archive.path.name)}/{path}")
            ):
                continue
            self.all.append((path, file))
            if path.lower().endswith(IMAGE_ENDS + ARRAY_ENDS):
                name = posixpath.basename(path)
                self._images[name].append((path, file))
                self._folded[name.casefold()].append((path, file))
        if depth < _MAX_DEPTH:
            for name in place.folders():
                self._walk(place / name, f"{prefix}{name}/", depth + 1)

    def with_end(self, *ends):
        """Lists `(path, file)` of files with one of the lower-case endings, sorted by path."""
        return sorted(
            ((path, file) for path, file in self.all if path.lower().endswith(ends)),
            key=lambda item: item[0],
        )

    def given(self, annotations):
        """Returns the annotation files named by the user.

        Args:
            annotations: dict from split to a path, on disk or in the source.

        Returns:
            list of `(split, path, file)`.

        Raises:
            DataError: if one is missing.
        """
        if (
            not isinstance(annotations, dict)
            or not all(isinstance(split, str) and split for split in annotations)
            or not all(isinstance(name, (str, pathlib.PurePath)) for name in annotations.values())
        ):
            raise DataError(
                f"{option('annotations')} must give the file of each split, such as "
                f"{option('annotations', {'train': 'train.json', 'val': 'val.json'})}. Received: "
                f"{annotations!r}"
            )
        found = []
        for split, name in annotations.items():
            name = unicodedata.normalize("NFC", str(name).replace("\\", "/"))
            inside = [item for item in self.all if f"/{item[0]}".endswith(f"/{name}")]
            path = pathlib.Path(os.path.expanduser(name))
            if os.path.isfile(path):  # Unlike `is_file`, no error for a name that is too long.
                found.append((split, name, path))
            elif inside:
                found.append((split, *min(inside, key=lambda item: (len(item[0]), item[0]))))
            else:
                raise DataError(f"The file {name} is neither there nor in {self.name}")
        return found

    def images(self):
        """Returns all picture files, as `(path, file)`, sorted by path.

        Arrays are images only where annotations name them: caches of images are arrays, too.
        """
        found = (item for items in self._images.values() for item in items)
        return sorted((i for i in found if i[0].lower().endswith(IMAGE_ENDS)), key=_first)

    def image(self, name, near="", split=None, without=(), annotated=True):
        """Finds the image that an annotation file names.

        The folders of a name need not be those of the source, unless names differ only in them:
        see `check_names`. Upper and lower case count only where both occur, as on Windows.

        Args:
            name: str, a name or path; an image whose path shares more final parts matches better.
            near: str, path of the annotation file; among equal matches, the nearest image is taken.
            split: str or None, the split of the image.
            without: paths to exclude.
            annotated: bool, False for another picture than an annotated image.

        Returns:
            `(path, file)`, or None if missing.

        Raises:
            DataError: if several images match equally well.
        """
        parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
        parts = [part for part in parts[:-1] if part not in ("", ".", "..")] + parts[-1:]
        found, fold = self._images.get(parts[-1]), str
        if not found:
            fold = str.casefold
            parts = list(map(fold, parts))
            found = self._folded.get(parts[-1], [])
        found = [item for item in found if item[0] not in without]
        chosen = self._choose(name, parts, found, near, split, fold)
        if chosen and annotated:
            self._named.setdefault(parts[-1], {}).setdefault(tuple(parts), set()).add(chosen[0])
            shared = _common(reversed(fold(chosen[0]).split("/")), reversed(parts))
            if shared < len(parts):
                in_split = [p for p, _ in found if split is not None and split_of(p) == split]
                self._partial.append((near, name, parts, shared, chosen[0], in_split))
        return chosen

    def check_names(self):
        """Checks the images that were found by the last parts of a name only.

        Raises:
            DataError: if other annotated names end in the same parts: the image is another one's.
        """
        for near, name, parts, shared, path, in_split in self._partial:
            named = self._named[parts[-1]]
            others = [
                paths
                for other, paths in named.items()
                if other != tuple(parts) and _common(reversed(other), reversed(parts)) >= shared
            ]
            alone = in_split == [path] and not any(path in paths for paths in others)
            if others and not alone:
                raise missing_images(near, [name])

    @staticmethod
    def _choose(name, parts, found, near, split, fold=str):
        if len(found) < 2:
            return found[0] if found else None
        around = near.split("/")[:-1]

        def rank(item):
            path, file = item
            own = path.split("/")
            return (
                not isinstance(file, Member),
                _common(reversed(fold(path).split("/")), reversed(parts)),
                split is not None and split_of(path) == split,
                _common(own, around),
            )

        best = max(map(rank, found))
        chosen = [item for item in found if rank(item) == best]
        if len(chosen) > 1:
            raise DataError(
                f"The image {name!r} must be in one place. It could be "
                f"{shorten([path for path, _ in chosen])}. Give the right folder as source"
            )
        return chosen[0]


def read_json(file, **options):
    """Reads a JSON file of annotations.

    Args:
        file: the file.
        **options: as for `json.loads`.

    Raises:
        DataError: if the file is empty or is not JSON.
    """
    content = file.read_bytes()
    if not content.strip():
        raise DataError(f"{file} must hold annotations, and is empty")
    try:
        return parse_json(content, **options)
    except ValueError as error:
        raise DataError(f"{file} must be JSON: {error}") from None


def head_of(file):
    """Returns the first bytes of a file, for detecting its format.

    Returns:
        `(head, whole)`: bytes, without byte order mark and, of UTF-16 and UTF-32, zeros; and
        whether they are the whole file.
    """
    if isinstance(file, Member):
        head = file.read_head(_HEAD)
    else:
        with open(file, "rb") as stream:
            head = stream.read(_HEAD)
    return plain_head(head), len(head) < _HEAD


def plain_head(content):
    """Returns the first bytes of a file's content, as in `head_of`."""
    head = content[:_HEAD]
    for mark in (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"):
        head = head.removeprefix(mark)
    return head.replace(b"\0", b"")


@contextlib.contextmanager
def located(where, owner=""):
    """Adds the location to an error; unexpected content is an error, too.

    Args:
        where: str, the file and the position in it; begins the message.
        owner: str, precedes the name of a missing entry.

    Raises:
        DataError: instead of a DataError without location, or an error caused by such content.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except KeyError as error:
        raise DataError(f"{where}: {owner}{error} is missing or wrong") from None
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: an entry is missing or wrong ({reason})") from None


def as_whole(value, what):
    """Checks a whole number of an annotation file, and returns it as int.

    Args:
        value: int, or float or text of a whole number.
        what: str, its name in messages.

    Raises:
        DataError: if it is anything else.
    """
    try:
        sound = not isinstance(value, bool) and abs(float(value)) < _LARGEST
        number = int(value) if sound else None
        if sound and number == float(value):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"{what} must be a whole number, not {_short(value)}")


def as_name(value, what):
    """Checks the name of a class, and returns it.

    Raises:
        DataError: unless it is text that is not empty.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what} must be a name, not {_short(value)}")
    return value


def hex_color(text):
    """Parses a color `#rrggbb` to `[red, green, blue]`; None for any other text."""
    text = text.strip() if isinstance(text, str) else ""
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        return None
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)]


def not_drawn(left, what):
    """Formats notes on shapes that are not drawn.

    Args:
        left: dict from kind to number.
        what: str, what is counted.

    Returns:
        list of str.
    """
    return [f"{n} {what} of kind {kind!r} are not drawn" for kind, n in sorted(left.items())]


def check_choice(name, value, choices):
    """Checks that an option's value is one of its choices.

    Raises:
        DataError: if it is not.
    """
    if value not in choices:
        raise DataError(f"{option(name)} must be one of {', '.join(choices)}. Received: {value!r}")


def assemble(
    files,
    images,
    names,
    *,
    expected,
    colors=None,
    class_map=None,
    unlabeled="background",
    overlap="later",
    split=None,
    seed=0,
    notes=(),
):
    """Builds a data set from annotated images.

    Args:
        files: `Files`.
        images: list of `AnnotatedImage`.
        names: list of str, the classes of the source, in order; None: the classes of the areas in
            alphabetical order, `unlabeled` first.
        expected: str, the required content of the source, for messages.
        colors: dict from class name to `[red, green, blue]`; may lack some.
        class_map: see `pipelines.datasets.class_map`; a path, a dict or None.
        unlabeled: str, the class of pixels outside all areas; added as the first class if the
            source has no class of that name. `ignore`: those pixels are ignored.
        overlap: str, `later` or `smaller`: which of two overlapping areas is visible.
        split: dict from split to ratio or list file, for data without splits of its own.
        seed: int, seed of the division by ratios.
        notes: list of str, lines for the user.

    Returns:
        `Found`.

    Raises:
        DataError: if an image is annotated twice, a class is not among `names`, the splits are
            missing or wrong, or an option is out of range.
    """
    check_choice("overlap", overlap, OVERLAPS)
    if not images:
        raise DataError(f"{files.name} must hold {expected}")
    as_name(unlabeled, option("unlabeled"))
    files.check_names()
    _check_twice(images)
    if names is None:
        names = sorted({name for image in images for name, _ in image.areas if name is not None})
        names.sort(key=lambda name: clean_name(name) != clean_name(unlabeled))
    names = list(dict.fromkeys(map(clean_name, names)))
    known = {None, *names}
    for image in images:
        for name, _ in image.areas:
            if name and clean_name(name) not in known:
                raise DataError(
                    f"{image.annotations}: unknown class {name!r}. The source has "
                    f"{shorten(names, 10)}"
                )
    mapping = class_map if isinstance(class_map, ClassMap) else ClassMap(class_map)
    unlabeled = clean_name(unlabeled)
    targets, more = mapping.resolve(names)
    order = mapping.order(targets)
    if unlabeled != IGNORE and unlabeled not in order:
        order = [unlabeled, *order]
    colors = {clean_name(name): color for name, color in (colors or {}).items()}
    targets = {unlabeled: unlabeled, **targets} if unlabeled in order else targets
    colors.setdefault(unlabeled, [0, 0, 0])
    taxonomy = new_taxonomy(order, targets, colors)
    labels = {name: label for label, name in enumerate(order)} | {IGNORE: IGNORE_LABEL}
    examples = []
    for image in images:
        areas = [
            (IGNORE if name is None else targets[clean_name(name)], area)
            for name, area in image.areas
        ]
        below = sum(name is not None for name, _ in areas[: image.below])
        areas = [(labels[name], area) for name, area in areas if name is not None]
        examples.append(
            DrawnExample(
                image.id,
                image.file,
                image.annotations,
                image.size,
                areas,
                labels[unlabeled],
                overlap,
                image.mask,
                below,
            )
        )
    rule = "the later area is seen" if overlap == "later" else "the area of fewer pixels is seen"
    meaning = "are ignored" if unlabeled == IGNORE else f"get the class {unlabeled!r}"
    notes = [*notes, *more, f"Where areas overlap, {rule}; pixels outside all areas {meaning}"]
    splits = split_examples(files, images, examples, split, seed)
    return Found(taxonomy, splits, notes)


def split_examples(files, images, examples, split, seed):
    """Divides examples into the splits of their images, or by list files or ratios.

    Args:
        files: `Files`.
        images: list of objects with a `split`.
        examples: list of their examples, in the same order.
        split, seed: as for `assemble`.

    Returns:
        dict from split to list of examples, sorted by id.

    Raises:
        DataError: if the splits are missing or wrong.
    """
    check_split(split)
    own = {image.split for image in images}
    divided = own != {None} and None not in own and not (split and len(own) == 1)
    _check_twins(zip(images, examples, strict=True), divided)
    if divided:
        if split:
            raise DataError(
                f"{files.name} is divided already: {', '.join(sorted(own))}. Leave out "
                f"{option('split')}"
            )
        splits = collections.defaultdict(list)
        for image, example in zip(images, examples, strict=True):
            splits[image.split].append(example)
        order = sorted(splits, key=lambda s: ("train", "val", "test", s).index(s))
        return {name: sorted(splits[name], key=lambda e: e.id) for name in order}
    if None in own and len(own) > 1 and not split:
        lonely = [str(image.annotations) for image in images if image.split is None]
        raise DataError(
            f"All images must be of a split, or none. {shorten(list(dict.fromkeys(lonely)))} is of "
            f"none. Divide them by {option('split', {'train': 0.8, 'val': 0.2})}"
        )
    by_id = {example.id: example for example in examples}
    ordered = sorted(examples, key=lambda e: e.id)

    def listed(names, file):
        check_listed(names, by_id, by_id, file)
        return [by_id[name] for name in sorted(names)]

    return divide(files.source, by_id, lambda: ordered, listed, files.name, split, seed)


def as_shape(height, width, where):
    """Checks the size stated by an annotation file and returns it as `(height, width)`.

    Raises:
        DataError: unless both are positive integers.
    """
    try:
        size = as_whole(height, "height"), as_whole(width, "width")
    except DataError:
        size = (0, 0)
    if min(size) < 1:
        raise DataError(
            f"{where}: an image must have height and width, not {_short(height)}, {_short(width)}"
        )
    return size


def missing_images(file, names):
    """Returns the error for annotated images that are missing."""
    names = sorted(map(str, names))
    return DataError(
        f"{file} names images that are missing: {shorten(names)}. Put them into the source, or "
        f"give their folder as another {option('source')}"
    )


def stem_of(path):
    """Returns a path without its suffix, in composed form (NFC), separated by `/`."""
    return unicodedata.normalize("NFC", posixpath.splitext(path.replace("\\", "/"))[0])


def _check_twins(pairs, divided):
    first = {}
    for image, example in pairs:
        other = first.setdefault((image.split if divided else None, example.id), image)
        if other is not image:
            raise DataError(
                f"Images must have names of their own. Used twice: {example.id}, of {other.file} "
                f"and of {image.file}. Rename one, in its annotations too"
            )


def _check_twice(images):
    first = {}
    for image in images:
        other = first.setdefault(str(image.file), image)
        if other is not image:
            same = str(other.annotations) == str(image.annotations)
            where = f"twice in {image.annotations}"
            if not same:
                where = f"in {other.annotations} and in {image.annotations}"
            raise DataError(
                f"The image {image.file} must be annotated once. It is annotated {where}. Remove "
                "one"
            )


def _common(parts, others):
    count = 0
    for part, other in zip(parts, others, strict=False):
        if part != other:
            break
        count += 1
    return count


def _first(item):
    return item[0]


def _short(value):
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."


def _stem(name):
    """Returns the name of an archive without its endings, such as `.tar.gz`."""
    return re.sub(r"(\.tar)?\.\w+$", "", unicodedata.normalize("NFC", name))
