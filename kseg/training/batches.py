"""Batches in all forms accepted by Keras, and data sets of whole batches."""

import typing

import keras
import tensorflow as tf

from kseg.layers.resizing import ceil_divide
from kseg.losses.labels import class_numbers, pixel_weights

IGNORED = 255
_FORMS = 'Batches must be dicts {"image", "label"}, (image, label) or (image, label, sample_weight)'


class Batch(typing.NamedTuple):
    """A batch.

    Attributes:
        images: tensor `(batch, height, width, channels)`.
        labels: int32 tensor `(batch, height, width)`, or None.
        weights: float32 tensor of the shape of the labels, or None.
        draws: float32 tensor `(batch, draws)` for a distortion, or None.
    """

    images: typing.Any
    labels: typing.Any = None
    weights: typing.Any = None
    draws: typing.Any = None


def unpack(data, *, need_labels=True):
    """Converts a batch to a `Batch`.

    Args:
        data: dict with `image`, `label` and optionally `sample_weight` and `draws`; or `(image,)`,
            `(image, label)` or `(image, label, sample_weight)`, where `image` may be such a dict.
            Labels `(batch, height, width)` or `(batch, height, width, 1)`; sample weights as in
            `kseg.losses.labels.pixel_weights`.
        need_labels: bool, whether labels are required.

    Returns:
        `Batch`.

    Raises:
        ValueError: if `data` has another form.
    """
    parts = data if isinstance(data, tuple | list) else (data,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"{_FORMS}. Received: {type(data).__name__} of {len(parts)}")
    images, labels, weights = (*parts, None, None)[:3]
    draws = None
    if isinstance(images, dict):
        if "image" not in images or (need_labels and labels is None and "label" not in images):
            raise ValueError(f"{_FORMS}. Received: a dict of {sorted(images)}")
        labels = images.get("label") if labels is None else labels
        weights = images.get("sample_weight") if weights is None else weights
        draws, images = images.get("draws"), images["image"]
    if isinstance(labels, dict):
        labels = labels.get("label")
    if labels is None and need_labels:
        raise ValueError(f"{_FORMS}. Received: images without labels")
    if labels is not None:
        labels = class_numbers(labels)
    if weights is not None and labels is not None:
        weights = pixel_weights(weights, labels)
    return Batch(images, labels, weights, draws)


def are_arrays(x):
    """Returns True for arrays or nests of arrays as data for `fit` or `evaluate`, not data sets."""
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(hasattr(leaf, "shape") for leaf in leaves)


def dataset_of_arrays(x, y, sample_weight, batch_size, *, shuffle=False, whole=False):
    """Builds a data set of batches from arrays.

    Args:
        x, y, sample_weight: arrays as Keras takes them, the latter two may be None.
        batch_size: int or None: 32, as in Keras. A batch is never larger than the data.
        shuffle: bool, whether to reshuffle in each epoch.
        whole: bool, whether to drop a smaller last batch, so that all batches have a static size.

    Returns:
        `tf.data.Dataset` of `(x, y)`, or `(x, y, sample_weight)`.
    """
    parts = tuple(part for part in (x, y, sample_weight) if part is not None)
    arrays = keras.tree.map_structure(tf.convert_to_tensor, parts)
    count = int(keras.tree.flatten(arrays)[0].shape[0])
    numbers = tf.data.Dataset.range(count)
    if shuffle:
        numbers = numbers.shuffle(count)
    batches = numbers.batch(min(batch_size or 32, count), drop_remainder=whole)
    return batches.map(
        lambda rows: keras.tree.map_structure(lambda array: tf.gather(array, rows), arrays)
    ).prefetch(tf.data.AUTOTUNE)


def split_arrays(parts, fraction):
    """Splits arrays like Keras' `validation_split`: the last part is for validation.

    Args:
        parts: nest of arrays or None.
        fraction: float in (0, 1).

    Returns:
        `(training, validation)`, nests of that structure.
    """
    count = next(len(leaf) for leaf in keras.tree.flatten(parts) if leaf is not None)
    first = int(count * (1.0 - fraction))

    def take(rows):
        return keras.tree.map_structure(lambda x: None if x is None else x[rows], parts)

    return take(slice(None, first)), take(slice(first, None))


def padded(dataset, multiple):
    """Pads batches for evaluation to one static size with ignored images.

    The first batch is drawn once to learn its size, unless the data set declares one.

    Args:
        dataset: `tf.data.Dataset` of batches as `unpack` takes them.
        multiple: int, the number of replicas, by which the size must be divisible.

    Returns:
        `tf.data.Dataset` of dicts with `image`, `label` and, if there are any, `sample_weight`;
        `dataset` itself if no padding is needed.
    """
    declared = unpack(_first_spec(dataset)).images.shape[0]
    if declared is not None and declared % multiple == 0:
        return dataset
    size = declared or next((int(tf.shape(unpack(b).images)[0]) for b in dataset.take(1)), 0)
    size = ceil_divide(size, multiple) * multiple

    def pad(*data):
        batch = unpack(data[0] if len(data) == 1 else data)
        missing = size - tf.shape(batch.images)[0]
        message = "The first batch of an evaluation must be the largest"
        tf.debugging.assert_non_negative(missing, message=message)

        def filled(tensor, value):
            tensor = tf.convert_to_tensor(tensor)
            rows = [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1)
            tensor = tf.pad(tensor, rows, constant_values=tf.cast(value, tensor.dtype))
            return tf.ensure_shape(tensor, (size, *tensor.shape[1:]))

        result = {"image": filled(batch.images, 0), "label": filled(batch.labels, IGNORED)}
        if batch.weights is not None:
            result["sample_weight"] = filled(batch.weights, 0)
        return result

    return dataset.map(pad, num_parallel_calls=tf.data.AUTOTUNE) if size else dataset


def replica_size(data, num_replicas):
    """Determines the static number of images that each replica gets from every batch.

    Args:
        data: a data set, or anything else.
        num_replicas: int.

    Returns:
        int, or None if it is not static.
    """
    if not isinstance(data, tf.data.Dataset):
        return None
    size = unpack(_first_spec(data), need_labels=False).images.shape[0]
    return size // num_replicas if size and size % num_replicas == 0 else None


def with_size(batch, size):
    """Sets the static size of a batch.

    Keras loses it with `steps_per_execution` on several replicas.

    Args:
        batch: `Batch`.
        size: int, its size, or None: unknown.

    Returns:
        `Batch`.
    """
    if size is None or batch.images.shape[0] is not None:
        return batch
    return Batch(*(None if x is None else tf.ensure_shape(x, (size, *x.shape[1:])) for x in batch))


def _first_spec(dataset):
    """Returns a batch of symbolic tensors with the shapes and dtypes of a data set."""
    return keras.tree.map_structure(
        lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name), dataset.element_spec
    )
