"""An example's image and label, read and checked before they become a record."""

import cv2
import numpy as np
import tensorflow as tf

from pipelines.datasets.dataset import FileExample
from pipelines.errors import DataError


def read_checked(example, taxonomy):
    """Reads an example.

    Args:
        example: has an `id` and `read()`, which gives the bytes of the image (JPEG or PNG) and of
            the label PNG.
        taxonomy: `Taxonomy`.

    Returns:
        `(image, labels)`: the bytes of the image, and uint8 `(height, width)` of labels 0..N-1,
        255 = ignored.

    Raises:
        DataError: naming the file, if it cannot be read or decoded, if the sizes differ, or if
            there are values outside the label map.
    """
    image_name = label_name = example.id
    if isinstance(example, FileExample):
        image_name, label_name = example.image, example.label
    try:
        image, label = example.read()
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from None
    try:
        if image[:3] == b"\xff\xd8\xff":
            shape = tf.io.decode_jpeg(image, channels=3).shape
        elif image[:4] == b"\x89PNG":
            shape = tf.io.decode_png(image, channels=3).shape
        else:
            raise DataError(f"{image_name}: an image must be a JPEG or a PNG file")
    except tf.errors.InvalidArgumentError:
        raise DataError(f"{image_name}: the image cannot be decoded") from None
    # OpenCV raises on no bytes at all, and gives None for others that it cannot read.
    values = cv2.imdecode(np.frombuffer(label, "uint8"), cv2.IMREAD_UNCHANGED) if label else None
    if values is None:
        raise DataError(f"{label_name}: the label cannot be decoded")
    if values.ndim != 2 or values.dtype != np.uint8:
        raise DataError(
            f"{label_name}: a label must have one channel of 8 bits, this has "
            f"{1 if values.ndim == 2 else values.shape[2]} of {8 * values.itemsize}"
        )
    if tuple(shape[:2]) != values.shape:
        raise DataError(
            f"{label_name}: a label must have the size of its image, {tuple(shape[:2])} (height, "
            f"width), and has {values.shape}"
        )
    try:
        return image, taxonomy.map_labels(values)
    except DataError as error:
        raise DataError(f"{label_name}: {error}") from None
