"""An example's image and label, read and checked before they become a record."""

import hashlib
import typing

import cv2
import numpy as np
import tensorflow as tf

from pipelines.datasets.dataset import IGNORE_LABEL, FileExample
from pipelines.datasets.label_files import INDEX_MASK
from pipelines.errors import DataError


class Checked(typing.NamedTuple):
    """An example that can become a record.

    Attributes:
        image: bytes, JPEG or PNG.
        labels: uint8 `(height, width)` of labels 0..N-1, 255 = ignored.
        digest: str, a hash of the decoded image: equal pictures have equal ones, however their
            files were compressed.
    """

    image: bytes
    labels: np.ndarray
    digest: str


def read_checked(example, taxonomy):
    """Reads an example.

    Args:
        example: has an `id` and `read()`, which gives the bytes of the image and of the label; no
            label (None) ignores all pixels. May have `decode`, from the label's bytes to an array
            of values; without, the label is a PNG of one channel.
        taxonomy: `Taxonomy`.

    Returns:
        `Checked`.

    Raises:
        DataError: naming the file, if it cannot be read or decoded, if the sizes differ, or if
            there are values outside the label map.
    """
    image_name = label_name = example.id
    if isinstance(example, FileExample):
        image_name, label_name = example.image, example.label
    try:
        content, label = example.read()
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from None
    image, pixels = _decode_image(content, image_name)
    if label is None:
        return Checked(image, np.full(pixels.shape[:2], IGNORE_LABEL, "uint8"), digest(pixels))
    try:
        values = getattr(example, "decode", INDEX_MASK)(label)
        if pixels.shape[:2] != values.shape:
            raise DataError(
                f"a label must have the size of its image, {pixels.shape[:2]} (height, width), "
                f"and has {values.shape}"
            )
        return Checked(image, taxonomy.map_labels(values), digest(pixels))
    except DataError as error:
        raise DataError(f"{label_name}: {error}") from None


def digest(pixels):
    """A hash of a decoded image, as str.

    Args:
        pixels: uint8 array.
    """
    head = str(pixels.shape).encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).data).hexdigest()[:32]


def _decode_image(content, name):
    """Gives `(bytes of a JPEG or PNG, pixels)`; other kinds of pictures become PNG."""
    try:
        if content[:3] == b"\xff\xd8\xff":
            return content, tf.io.decode_jpeg(content, channels=3).numpy()
        if content[:4] == b"\x89PNG":
            return content, tf.io.decode_png(content, channels=3).numpy()
    except tf.errors.InvalidArgumentError:
        raise DataError(f"{name}: the image cannot be decoded") from None
    picture = cv2.imdecode(np.frombuffer(content, "uint8"), cv2.IMREAD_COLOR) if content else None
    if picture is None:
        raise DataError(f"{name}: an image must be a JPEG, PNG, BMP, TIFF or WebP file")
    return cv2.imencode(".png", picture)[1].tobytes(), np.ascontiguousarray(picture[..., ::-1])
