"""Batches in all forms accepted by Keras, and data sets of whole batches."""

import itertools
import types
import typing

import keras
import tensorflow as tf

from kseg.layers.resizing import ceil_divide
from kseg.losses.labels import IGNORED, class_numbers, pixel_weights

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

    Raises:
        ValueError: if the fraction is out of range, or a part would be empty.
    """
    count = next(len(leaf) for leaf in keras.tree.flatten(parts) if leaf is not None)
    first = int(count * (1.0 - fraction))
    if not 0 < fraction < 1 or not 0 < first < count:
        raise ValueError(
            "`validation_split` must be between 0 and 1, and leave images for both parts. "
            f"Received: validation_split={fraction} and {count} images"
        )

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
        batch = padded_to(unpack(data[0] if len(data) == 1 else data), size)
        result = {"image": batch.images, "label": batch.labels, "sample_weight": batch.weights}
        return {name: part for name, part in result.items() if part is not None}

    return dataset.map(pad, num_parallel_calls=tf.data.AUTOTUNE) if size else dataset


def padded_to(batch, size):
    """Pads a batch for evaluation with ignored images.

    Args:
        batch: `Batch` with labels, of at most that size.
        size: int.

    Returns:
        `Batch` of that static size.
    """
    missing = size - tf.shape(batch.images)[0]
    message = "The first batch of an evaluation must be the largest"
    check = tf.debugging.assert_non_negative(missing, message=message)

    def filled(tensor, value):
        rows = [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1)
        tensor = tf.pad(tensor, rows, constant_values=tf.cast(value, tensor.dtype))
        return tf.ensure_shape(tensor, (size, *tensor.shape[1:]))

    with tf.control_dependencies([] if check is None else [check]):
        return Batch(
            filled(tf.convert_to_tensor(batch.images), 0),
            filled(tf.convert_to_tensor(batch.labels), IGNORED),
            None if batch.weights is None else filled(batch.weights, 0),
        )


def batch_size(data, *, draw=False):
    """Determines how many images every batch has.

    Args:
        data: a data set, or anything else that `fit` takes.
        draw: bool, whether to take the size of the first batch for that of all if `data` is a
            generator or a `keras.utils.PyDataset`, whose sizes Keras takes for unknown.

    Returns:
        `(data, size)`: data with the same batches, which replaces `data`, because a generator has
        advanced; and an int, or None if the size is unknown.
    """
    if isinstance(data, tf.data.Dataset):
        return data, unpack(_first_spec(data), need_labels=False).images.shape[0]
    if draw and isinstance(data, keras.utils.PyDataset):
        return data, _count(data[0])
    if draw and isinstance(data, types.GeneratorType):
        first = list(itertools.islice(data, 1))
        return _chained(first, data), _count(first[0]) if first else None
    return data, None


def without_smaller(data, size):
    """Leaves out the batches of a generator, or the last of a `keras.utils.PyDataset`, if smaller.

    Args:
        data: anything that `fit` takes.
        size: int, images of a whole batch.

    Returns:
        data of the same kind.
    """
    if isinstance(data, types.GeneratorType):
        return (batch for batch in data if _count(batch) >= size)
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        if count is not None and _count(data[count - 1]) < size:
            return _WithoutLast(data)
    return data


class _WithoutLast(keras.utils.PyDataset):
    """A `keras.utils.PyDataset` without its last batch."""

    def __init__(self, data):
        super().__init__(data.workers, data.use_multiprocessing, data.max_queue_size)
        self.data = data

    @property
    def num_batches(self):
        return self.data.num_batches - 1

    def __getitem__(self, index):
        return self.data[index]

    def on_epoch_begin(self):
        self.data.on_epoch_begin()

    def on_epoch_end(self):
        self.data.on_epoch_end()


def _chained(first, rest):
    yield from first
    yield from rest


def _count(batch):
    return len(unpack(batch, need_labels=False).images)


def with_size(batch, size):
    """Sets the static size of a batch that Keras does not know, such as those of generators.

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
