"""The shared part of the importers of annotation files: images, classes, splits, examples.

The areas of an image are drawn in the order of its file. `overlap` decides which of two overlapping
areas is visible. Pixels outside all areas get the class `unlabeled`, or are ignored.
"""

import collections
import dataclasses
import hashlib
import pathlib
import posixpath
import typing
import unicodedata

from kseg.errors import option
from kseg.json_text import parse_json
from pipelines.datasets.areas import rasterize
from pipelines.datasets.class_map import IGNORE, ClassMap, clean_name, new_taxonomy
from pipelines.datasets.dataset import IGNORE_LABEL, Found, pair_listed, shorten
from pipelines.datasets.splits import IMAGE_ENDS, divide, split_of
from pipelines.errors import DataError
from pipelines.sources import Member, fingerprint, open_source

OVERLAPS = ("later", "smaller")
_MAX_DEPTH = 8
_HEAD = 1 << 16


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
    """

    id: str
    file: pathlib.Path | Member
    annotations: pathlib.Path | Member | None
    size: tuple | None
    areas: list
    split: str | None = None
    mask: pathlib.Path | Member | None = None


@dataclasses.dataclass(frozen=True)
class DrawnExample:
    """An image whose labels are drawn from areas.

    Attributes:
        id: str.
        image: file.
        label: file of the annotations, or None.
        size: `(height, width)` of the annotations; None: that of the upright image.
        areas: list of `(label, area)`.
        unlabeled: int, the label of pixels outside all areas.
        overlap: str, see `pipelines.datasets.areas.rasterize`.
        mask: picture file whose segments the areas are (panoptic data), or None.
    """

    id: str
    image: pathlib.Path | Member
    label: pathlib.Path | Member | None
    size: tuple | None
    areas: list = dataclasses.field(repr=False)
    unlabeled: int
    overlap: str
    mask: pathlib.Path | Member | None = None

    @property
    def fingerprint(self):
        """Names, sizes and modification times of the files, and the drawing parameters."""
        files = [file for file in (self.image, self.label, self.mask) if file is not None]
        labels = hashlib.sha256(repr([label for label, _ in self.areas]).encode()).hexdigest()[:16]
        return [*map(fingerprint, files), self.size, labels, self.unlabeled, self.overlap]

    def read(self):
        """The image's bytes; labels are drawn by `draw`."""
        return self.image.read_bytes(), b""

    def draw(self, upright):
        """Draws the labels.

        Args:
            upright: `(height, width)` of the upright image.

        Returns:
            uint8 `(height, width)`.

        Raises:
            DataError: if an area cannot be drawn.
        """
        size = self.size or tuple(upright)
        return rasterize(self.areas, size, unlabeled=self.unlabeled, overlap=self.overlap)


class Files:
    """All files of a source, by name; files on disk take precedence over those in archives.

    Args:
        source: as for `pipelines.sources.open_source`.
    """

    def __init__(self, source):
        self.source = open_source(source)
        self.name = self.source.name
        self._images = collections.defaultdict(list)
        self.all = []
        for top in self.source.tops():
            self._walk(top, "", 0)

    def _walk(self, place, prefix, depth):
        for name, file in place.files().items():
            path = unicodedata.normalize("NFC", prefix + name)
            self.all.append((path, file))
            if path.lower().endswith(IMAGE_ENDS):
                self._images[posixpath.basename(path)].append((path, file))
        if depth < _MAX_DEPTH:
            for name in place.folders():
                self._walk(place / name, f"{prefix}{name}/", depth + 1)

    def with_end(self, *ends):
        """Files with one of the lower-case endings, as `(path, file)`, sorted by path."""
        return sorted(
            ((path, file) for path, file in self.all if path.lower().endswith(ends)),
            key=lambda item: item[0],
        )

    def given(self, annotations):
        """The annotation files named by the user.

        Args:
            annotations: dict from split to a path, on disk or in the source.

        Returns:
            list of `(split, path, file)`.

        Raises:
            DataError: if one is missing.
        """
        found = []
        for split, name in annotations.items():
            name = unicodedata.normalize("NFC", str(name).replace("\\", "/"))
            inside = [item for item in self.all if f"/{item[0]}".endswith(f"/{name}")]
            path = pathlib.Path(name).expanduser()
            if path.is_file():
                found.append((split, name, path))
            elif inside:
                found.append((split, *min(inside, key=lambda item: (len(item[0]), item[0]))))
            else:
                raise DataError(f"The file {name} is neither there nor in {self.name}")
        return found

    def images(self):
        """All image files, as `(path, file)`, sorted by path."""
        return sorted((item for found in self._images.values() for item in found), key=_first)

    def image(self, name, near="", split=None, without=()):
        """Finds the image that an annotation file names.

        Args:
            name: str, a name or path; an image whose path shares more final parts matches better.
            near: str, path of the annotation file; among equal matches, the nearest image is taken.
            split: str or None, the split of the image.
            without: paths to exclude.

        Returns:
            `(path, file)`, or None if missing.

        Raises:
            DataError: if several images match equally well.
        """
        parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
        found = [item for item in self._images.get(parts[-1], []) if item[0] not in without]
        if len(found) < 2:
            return found[0] if found else None
        around = near.split("/")[:-1]

        def rank(item):
            path, file = item
            own = path.split("/")
            return (
                not isinstance(file, Member),
                _common(reversed(own), reversed(parts)),
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


def read_json(file):
    """Reads a JSON file of annotations.

    Raises:
        DataError: if the file is empty or is not JSON.
    """
    content = file.read_bytes()
    if not content.strip():
        raise DataError(f"{file} must hold annotations, and is empty")
    try:
        return parse_json(content)
    except ValueError as error:
        raise DataError(f"{file} must be JSON: {error}") from None


def head_of(file):
    """The first bytes of a file, for detecting its format."""
    if isinstance(file, Member):
        return file.read_bytes()[:_HEAD]
    with open(file, "rb") as stream:
        return stream.read(_HEAD)


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
        raise DataError(f"{files.name} holds no image with annotations")
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
            )
        )
    rule = "the later area is seen" if overlap == "later" else "the area of fewer pixels is seen"
    meaning = "ignored" if unlabeled == IGNORE else f"the class {unlabeled!r}"
    notes = [*notes, *more, f"Where areas overlap, {rule}; what no area covers is {meaning}"]
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
    own = {image.split for image in images}
    if own != {None} and None not in own:
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
    if len(by_id) < len(examples):
        twice = [key for key, n in collections.Counter(e.id for e in examples).items() if n > 1]
        raise DataError(f"Images must have names of their own. Used twice: {shorten(twice)}")
    ordered = sorted(examples, key=lambda e: e.id)
    files_by_id = {example.id: example.image for example in examples}

    def listed(names, file):
        pair_listed(names, files_by_id, files_by_id, file)  # Only for its checks.
        return [by_id[name] for name in sorted(names)]

    return divide(files.source, by_id, lambda: ordered, listed, files.name, split, seed)


def as_shape(height, width, where):
    """Checks the size stated by an annotation file and returns it as `(height, width)`.

    Raises:
        DataError: unless both are positive integers.
    """
    try:
        size = int(height), int(width)
    except (TypeError, ValueError):
        size = (0, 0)
    if min(size) < 1:
        raise DataError(f"{where}: an image must have height and width, not {height!r}, {width!r}")
    return size


def missing_images(file, names):
    """The error for annotated images that are missing."""
    names = sorted(map(str, names))
    return DataError(
        f"{file} names images that are missing: {shorten(names)}. Put them into the source, or "
        f"give their folder as another {option('source')}"
    )


def stem_of(path):
    """A path without its suffix, in composed form (NFC), separated by `/`."""
    return unicodedata.normalize("NFC", posixpath.splitext(path.replace("\\", "/"))[0])


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
