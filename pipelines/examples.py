"""Reading and checking of an example's image and label before they become a record."""

import hashlib
import typing

import cv2
import numpy as np

from kseg.errors import option
from pipelines import channel_files, pictures, tiles
from pipelines.datasets.annotated import DrawnExample
from pipelines.datasets.class_map import RelabeledExample
from pipelines.datasets.dataset import IGNORE_LABEL, FileExample
from pipelines.datasets.label_files import INDEX_MASK
from pipelines.errors import DataError

# Orientation of the mask of an image with an EXIF tag: like the upright or the stored image.
TURNED_MASKS = ("upright", "stored")


class Checked(typing.NamedTuple):
    """A checked example, ready to become a record.

    Attributes:
        image: bytes, JPEG or PNG; or `pixels`, where `channels` was given.
        orientation: int, 1 to 8 as in EXIF, to be applied to `image`.
        pixels: uint8 RGB `(height, width, 3)`, or the file's values `(height, width, channels)`,
            upright.
        labels: uint8 `(height, width)`, labels 0..N-1, 255 = ignored.
        digest: str, a hash of the decoded pixels: identical pictures have the same digest,
            whatever the compression of their files.
        deep: bool, whether the image file has more than 8 bits per channel.
        empty: bool `(height, width)`, the pixels without data, which are ignored; None: there are
            none.
    """

    image: bytes
    orientation: int
    pixels: np.ndarray
    labels: np.ndarray
    digest: str
    deep: bool
    empty: np.ndarray | None = None


class NothingLabeledError(Exception):
    """A tile of a large image in which all pixels are ignored; it is left out."""


def read_checked(
    example, taxonomy, *, value_range=None, turned_masks=None, channels=None, dtype=None
):
    """Reads and checks an example.

    The returned labels are aligned with the upright image. If an EXIF tag turns the image, the
    mask's orientation follows from its own tag or from its size; if both orientations fit the size,
    `turned_masks` is needed.

    Args:
        example: has an `id` and a `read()` that returns the bytes of the image and of the label; a
            label of None ignores all pixels. May have a `decode` from the label's bytes to an array
            of values; without one, the label is a single-channel PNG. A `DrawnExample` draws its
            labels, a `RelabeledExample` translates those of another example, a `TileExample` is a
            part of files.
        taxonomy: `Taxonomy`.
        value_range: as for `pipelines.pictures.read`.
        turned_masks: one of `TURNED_MASKS`, or None.
        channels, dtype: as for `pipelines.channel_files.read`, which then reads the image; None: it
            becomes 8-bit RGB.

    Returns:
        `Checked`.

    Raises:
        DataError: if a file, which the message names, cannot be read or decoded, if the sizes
            differ, if there are values outside the label map, or if `value_range` or `turned_masks`
            is needed.
        NothingLabeledError: if all pixels of a tile are ignored.
    """
    reading = {"value_range": value_range, "channels": channels, "dtype": dtype}
    if isinstance(example, RelabeledExample):
        found = read_checked(
            example.example, example.taxonomy, turned_masks=turned_masks, **reading
        )
        table = np.full(256, IGNORE_LABEL, "uint8")
        table[: len(example.table)] = example.table
        found = found._replace(labels=cv2.LUT(found.labels, table))
        if tiles.is_tile(example):
            _check_labeled(found.labels)
        return found
    if isinstance(example, tiles.TileExample):
        return _read_tile(example, taxonomy, **reading)
    image_name = label_name = example.id
    if isinstance(example, (FileExample, DrawnExample)):
        image_name, label_name = example.image, example.label or example.image
    try:
        content, label = example.read()
    except OSError as error:
        # Errors of other libraries have a text only.
        where, reason = error.filename or image_name, error.strerror or " ".join(str(error).split())
        raise DataError(f"{where}: {reason}") from None
    try:
        if channels is None:
            picture = pictures.read(content, value_range)
        else:
            picture = channel_files.read(content, channels, dtype, value_range)
    except pictures.TooLargeError as error:
        raise DataError(f"{image_name}: {error.in_preparation()}") from None
    except DataError as error:
        raise DataError(f"{image_name}: {error}") from None
    if label is None:
        labels = np.full(picture.pixels.shape[:2], IGNORE_LABEL, "uint8")
        return _checked(picture, labels, channels)
    try:
        if isinstance(example, DrawnExample):
            values = example.draw(picture.pixels.shape[:2])
        else:
            values = getattr(example, "decode", INDEX_MASK)(label)
        values = _turn_mask(values, pictures.orientation(label), picture, turned_masks)
        return _checked(picture, taxonomy.map_labels(values), channels)
    except DataError as error:
        raise DataError(f"{label_name}: {error}") from None


def _turn_mask(values, own, picture, turned_masks):
    """Turns a mask upright, by its own orientation tag or that of its image.

    Args:
        values: array `(height, width)`, as stored.
        own: int, the orientation of the mask's file.
        picture: `pipelines.pictures.Picture`.
        turned_masks: as for `read_checked`.

    Returns:
        array of the size of `picture.pixels`.
    """
    upright = picture.pixels.shape[:2]
    if own != 1:
        values = pictures.turn(values, own)
    elif picture.orientation != 1:
        fitting = [
            way
            for way, size in zip(TURNED_MASKS, (upright, picture.stored_size), strict=True)
            if values.shape == size
        ]
        if len(fitting) == 2 and turned_masks is None:
            raise DataError(
                f"the image is turned by its EXIF tag (orientation {picture.orientation}), and the "
                "mask's size fits both ways. Say how masks were drawn: "
                f"{option('turned_masks', 'upright')} (as viewers show the image) or "
                f"{option('turned_masks', 'stored')} (as its pixels are stored)"
            )
        if fitting and turned_masks not in (None, *fitting):
            raise DataError(
                f"{option('turned_masks', turned_masks)} does not fit a mask of {values.shape} "
                f"(height, width): its image has {picture.stored_size} as it is stored and "
                f"{upright} upright. Leave the option out, or leave out the image "
                f"({option('skip')})"
            )
        if fitting == ["stored"] or (fitting and turned_masks == "stored"):
            values = pictures.turn(values, picture.orientation)
    if values.shape != upright:
        raise DataError(
            f"a label must have the size of its image, {upright} (height, width), and has "
            f"{values.shape}"
        )
    return values


def _checked(picture, labels, channels):
    image, orientation = picture.content, picture.orientation
    if channels is not None:
        image, orientation = picture.pixels, 1
    elif image is None:
        pixels = cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2BGR)
        image, orientation = cv2.imencode(".png", pixels)[1].tobytes(), 1
    if picture.empty is not None:
        labels = np.where(picture.empty, np.uint8(IGNORE_LABEL), labels)
    found = digest(picture.pixels)
    return Checked(image, orientation, picture.pixels, labels, found, picture.deep, picture.empty)


def _read_tile(example, taxonomy, *, value_range, channels, dtype):
    """Reads and checks a `TileExample`, as `read_checked`."""
    name = example.label
    try:
        labels = example.read_labels(taxonomy)
        _check_labeled(labels)  # Saves the reading of the image.
        name = example.image
        pixels, empty, found = example.read_image(value_range, channels)
        if dtype is not None:
            channel_files.check_dtype(found, dtype)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
    picture = pictures.Picture(pixels, 1, None, found != "uint8", empty)
    checked = _checked(picture, labels, channels)
    _check_labeled(checked.labels)
    return checked


def _check_labeled(labels):
    if (labels == IGNORE_LABEL).all():
        raise NothingLabeledError


def digest(pixels):
    """Computes the hash of a decoded image, as str.

    Args:
        pixels: array.
    """
    head = str(pixels.shape).encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).data).hexdigest()[:32]
