"""The manifest of prepared data: the content of a folder of records. Read without TensorFlow.

The folder is any path of `tf.io.gfile`: local, gs://, s3://; see `pipelines.records`.
"""

import dataclasses
import difflib
import errno
import hashlib
import json
import os

from kseg.classes import Classes
from kseg.errors import option
from kseg.json_text import parse_json
from kseg.pixel_format import PixelFormat
from pipelines import datasets, paths
from pipelines.datasets.dataset import IGNORE_LABEL
from pipelines.errors import DataError

FORMAT_VERSION = 4
# Images with a pixel format; earlier versions of kseg refuse these.
CHANNELS_VERSION = 5
# Format 3 had no orientations: a missing one is read as 1, see `pipelines.encoding`.
_READ_VERSIONS = (3, FORMAT_VERSION, CHANNELS_VERSION)
MANIFEST = "manifest.json"


def again():
    """Returns advice on how to replace damaged data, for the end of an error message."""
    return f"Prepare the data again, with {option('overwrite', True)}"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records.

    Attributes:
        file: str, name in the folder.
        key: str, a hash of its sources; its records contain it too.
        bytes: int, its size.
        sha256: str, of the whole file.
        offsets: list of int, the offset of each record in bytes.
        classes: list of lists of int, the classes that occur in each image.
    """

    file: str
    key: str
    bytes: int
    sha256: str
    offsets: list[int]
    classes: list[list[int]]


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a data set, for training or evaluation.

    Attributes:
        num_images: int.
        image_size: `[height, width]` if all images have that size, else None.
        pixels: list of int, pixels of each class, then of the ignored ones.
        images: list of int, images in which each class occurs, then those with ignored pixels.
        shards: list of `Shard`.
        content: str, a hash of all images and labels as they are stored, in order, whatever files
            they were made from and how many shards they fill; None in manifests of earlier
            versions.
    """

    num_images: int
    image_size: list[int] | None
    pixels: list[int]
    images: list[int]
    shards: list[Shard]
    content: str | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a folder of records.

    Attributes:
        dataset: str, the name of its data set.
        class_names: list of str.
        palette: list of `[red, green, blue]`.
        categories: dict from the name of a category to the labels of its classes.
        groups: dict from the name of a group to the labels of its classes.
        options: dict, the options of its preparation.
        fingerprint: str, a hash of everything that it was made from.
        splits: dict from name to `Split`.
        value_range: `[low, high]`, the values of images of more than 8 bits a channel that became 0
            and 255, as declared or found; None if there is no such image.
        folder: str, the folder that it was read from.
        format: int, the version of kseg's record format.
        pixels: dict, as of `kseg.pixel_format.PixelFormat.to_dict`; None: images are 8-bit RGB.
    """

    dataset: str
    class_names: list[str]
    palette: list[list[int]]
    categories: dict[str, list[int]]
    groups: dict[str, list[int]]
    options: dict
    fingerprint: str
    splits: dict[str, Split]
    folder: str
    format: int = FORMAT_VERSION
    value_range: list[float] | None = None
    pixels: dict | None = None

    @property
    def pixel_format(self):
        """`kseg.pixel_format.PixelFormat` of the images; None: 8-bit RGB."""
        return PixelFormat.from_dict(self.pixels)

    @property
    def num_classes(self):
        """Number of classes."""
        return len(self.class_names)

    def classes(self, split=None):
        """Describes the classes for training, evaluation and export.

        Args:
            split: the training split, as `union` takes it, whose images and pixels of each class
                are included; None: they are not.

        Returns:
            `kseg.classes.Classes`.

        Raises:
            DataError: if a split is unknown.
        """
        images = pixels = None
        if split is not None:
            counts = self.union(split)
            # The last entries are those of the ignored pixels.
            images, pixels = counts.images[:-1], counts.pixels[:-1]
        return Classes(self.class_names, self.palette, images, self.categories, self.groups, pixels)

    def split(self, name):
        """Returns a split by name.

        Raises:
            DataError: if the name is unknown.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.folder} has no split {name!r}. It has: {', '.join(self.splits)}. Name "
                f"one of them by {option('split')}, data.train_split or data.eval_split"
            )
        return self.splits[name]

    def union(self, splits):
        """Returns several splits as one: the images of the first, then those of the next.

        Args:
            splits: str; list of str; or dict from str to float > 0, how often an epoch shows each
                image of that split.

        Returns:
            `Split`. `pixels` are those that an epoch shows, rounded; `images` are those that exist.

        Raises:
            DataError: if a name is unknown.
        """
        ratios = split_ratios(splits)
        parts = [self.split(name) for name in ratios]
        sizes = [part.image_size for part in parts]
        pixels = zip(*(part.pixels for part in parts), strict=True)
        return Split(
            num_images=sum(part.num_images for part in parts),
            image_size=sizes[0] if all(size == sizes[0] for size in sizes) else None,
            pixels=[
                round(sum(n * ratio for n, ratio in zip(counts, ratios.values(), strict=True)))
                for counts in pixels
            ],
            images=[sum(counts) for counts in zip(*(part.images for part in parts), strict=True)],
            shards=[shard for part in parts for shard in part.shards],
        )


def split_ratios(splits):
    """Reads the forms in which training splits are given.

    Args:
        splits: as for `Manifest.union`.

    Returns:
        dict from name to float, how often an epoch shows each image.
    """
    if isinstance(splits, str):
        splits = [splits]
    return dict(splits) if isinstance(splits, dict) else dict.fromkeys(splits, 1.0)


def exists(folder):
    """Returns True if a folder holds a prepared data set, intact or damaged."""
    return paths.exists(paths.join(folder, MANIFEST))


def read_manifest(folder):
    """Reads a manifest and checks that its shards exist in full size.

    Args:
        folder: as given to `write`.

    Returns:
        `Manifest`.

    Raises:
        DataError: if the folder is no prepared data set, or a shard is missing or truncated.
    """
    manifest = parse_manifest(folder)
    for split in manifest.splits.values():
        for shard in split.shards:
            file = paths.join(folder, shard.file)
            try:
                size = paths.size(file)
            except FileNotFoundError:
                raise DataError(f"The shard {file} is missing. {again()}") from None
            if paths.is_local(file) and not os.path.isfile(file):
                raise DataError(f"The shard {file} is not a regular file. {again()}")
            if size != shard.bytes:
                raise DataError(
                    f"The shard {file} must have {shard.bytes} bytes and has {size}. {again()}"
                )
    return manifest


def find_lost_shard(folder):
    """Describes which shard of a folder cannot be read any more, in a line; None if all can.

    No shard is opened, which might block: only kind, size and permission are checked.
    """
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    for split in manifest.splits.values():
        for shard in split.shards:
            file = paths.join(folder, shard.file)
            if paths.is_local(file) and not os.access(file, os.R_OK):
                return f"{file}: {os.strerror(errno.EACCES)}"
    return None


def _prepared_beside(folder):
    """Finds prepared data with a similar name in the same folder.

    Args:
        folder: path without prepared data.

    Returns:
        str, path, or None.
    """
    parent, name = os.path.split(str(folder).rstrip("/"))
    if not paths.is_local(folder) or not os.path.isdir(parent or "."):
        return None
    prepared = [
        other
        for other in os.listdir(parent or ".")
        if os.path.isfile(os.path.join(parent, other, MANIFEST))
    ]
    near = difflib.get_close_matches(name, prepared, n=1)
    return os.path.join(parent, near[0]) if near else None


def parse_manifest(folder):
    """Reads a manifest without checking its shards."""
    path = paths.join(folder, MANIFEST)
    try:
        content = paths.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        name = os.path.basename(str(folder))
        where, source, output = "", "<download>", str(folder)
        if name not in datasets.DATASETS:
            if near := _prepared_beside(folder):
                raise DataError(
                    f"{folder} holds no prepared data (no {MANIFEST}). Did you mean {near}?"
                ) from None
            if paths.is_local(folder) and os.path.isdir(folder) and os.listdir(folder):
                where = "If it holds your images and masks: "
                source, output, name = output, os.path.join("data", name or "mine"), "folder"
            else:
                name = "<data set>"
        elif homepage := datasets.describe(name).get("homepage"):
            where = f"Download it from {homepage}, then: "
        options = [] if name == "synthetic" else [option("source", source)]
        options.append(option("output", output))
        raise DataError(
            f"{folder} holds no prepared data (no {MANIFEST}). {where or 'Prepare it: '}kseg "
            f"prepare {name} {' '.join(options)}"
        ) from None
    try:
        values = parse_json(content)
        version = values.pop("format")
        if version not in _READ_VERSIONS:
            raise DataError(
                f"{path} has format {version!r:.40}, this version reads "
                f"{', '.join(map(str, _READ_VERSIONS[:-1]))} and {_READ_VERSIONS[-1]}. {again()}"
            )
        for derived in ("num_classes", "ignore_label"):
            values.pop(derived)
        if values.pop("checksum") != hash_of(values):
            raise DataError(f"{path} was changed after it was written. {again()}")
        splits = {
            name: Split(**{**split, "shards": [Shard(**shard) for shard in split["shards"]]})
            for name, split in values.pop("splits").items()
        }
        # Manifests of earlier versions have a declared range among the options.
        values.setdefault("value_range", values["options"].get("range"))
        manifest = Manifest(**values, splits=splits, folder=str(folder), format=version)
        if (manifest.pixel_format is not None) != (version == CHANNELS_VERSION):
            raise ValueError(f"format {version} with pixels {manifest.pixels}")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({error}). {again()}") from None


def write_manifest(manifest):
    """Writes a manifest into its folder, under a checksum.

    Raises:
        OSError: if it cannot be written.
    """
    values = dataclasses.asdict(manifest)
    folder, version = values.pop("folder"), values.pop("format")
    if values["pixels"] is None:
        del values["pixels"]  # As earlier versions write it.
    values = {
        "format": version,
        "checksum": hash_of(values),
        "num_classes": manifest.num_classes,
        "ignore_label": IGNORE_LABEL,
        **values,
    }
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    paths.write_bytes(paths.join(folder, MANIFEST), f"{{\n{lines}\n}}\n".encode())


def hash_of(values):
    """Computes the SHA-256 of JSON-able values, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def file_sha256(path):
    """Computes the SHA-256 of a file, as hexadecimal digits.

    Raises:
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    for block in paths.read_blocks(path):
        digest.update(block)
    return digest.hexdigest()
