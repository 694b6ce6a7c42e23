"""Shards to batches.

Sample number n of the endless stream is image n of a permutation of epoch n // num_images, with
all its random numbers drawn from (seed, n). A record is read where the manifest says it begins.
So the stream has no state: it can start at any step without touching what went before, and it is
shuffled over the whole split without a buffer.
"""

import os

import numpy as np
import tensorflow as tf

from pipelines import augment
from pipelines.errors import DataError
from pipelines.records import FEATURES, read_manifest

_READ_BUFFER = 1 << 18  # Bytes; one record needs no more look-ahead.


def training_dataset(
    folder,
    split,
    *,
    batch_size,
    crop_size,
    seed,
    start_step=0,
    scale_range=(0.5, 2.0),
    flip=True,
    color_jitter=None,
    worker=0,
    num_workers=1,
    num_replicas=1,
    num_parallel_calls=tf.data.AUTOTUNE,
):
    """Endless batches of random crops.

    The scale and the crop are chosen from the stored size before anything is decoded; of a JPEG
    only the blocks under the crop are decoded, and only the crop is resized. Images that are
    smaller than the crop once scaled are padded at the bottom and the right.

    Args:
        folder: prepared data, see `pipelines.records`.
        split: str.
        batch_size: int, images in a global batch.
        crop_size: `(height, width)`, pixels.
        seed: int. The same arguments give the same stream, on any number of cores.
        start_step: int, number of the first batch.
        scale_range: `(least, most)`, uniform.
        flip: bool, mirror half of the crops.
        color_jitter: dict of strengths `brightness`, `contrast`, `saturation`, `hue`, or None.
        worker: int, number of this machine: it reads its part of each global batch, and no more.
        num_workers: int, machines that divide each global batch.
        num_replicas: int, parts of a global batch, as many on each machine, that come one after the
            other as batches of their own.
        num_parallel_calls: int, images that are worked on at the same time; the stream does not
            depend on it.

    Returns:
        `tf.data.Dataset` of `{"image": uint8 (batch, height, width, 3), "label": uint8 (batch,
        height, width)}`, 255 = ignored; `batch` is `batch_size / num_replicas`.

    Raises:
        DataError: if the data is missing or incomplete.
        ValueError: if an argument is out of range, or a number does not divide the next.
        tf.errors.InvalidArgumentError: from the iterator, if a record is corrupt; names the shard.
    """
    crop_size = tuple(crop_size)
    if min(batch_size, *crop_size) < 1 or start_step < 0:
        raise ValueError(
            "`batch_size` and `crop_size` must be 1 or more and `start_step` 0 or more. Received: "
            f"{batch_size=}, {crop_size=}, {start_step=}"
        )
    if not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(f"`scale_range` must be 0 < least <= most. Received: {scale_range}")
    if batch_size % num_replicas or num_replicas % num_workers:
        raise ValueError(
            "`num_workers` must divide `num_replicas`, and that `batch_size`. Received: "
            f"{num_workers=}, {num_replicas=}, {batch_size=}"
        )
    records = _Records(folder, split)
    share = batch_size // num_workers

    def load(count):
        number = count // share * batch_size + worker * share + count % share
        example = records.read(shuffled_index(seed, number, records.count))
        numbers = tf.random.stateless_uniform((8,), tf.stack([seed, number]))
        size = tf.stack([example["height"], example["width"]])
        first, extent, shape = augment.draw_window(numbers, size, crop_size, scale_range)
        image = augment.resize_image(_decode_window(example["image"], first, extent), shape)
        labels = tf.io.decode_png(example["label"], channels=1)[..., 0]
        labels = augment.resize_labels(labels, first, extent, shape)
        if color_jitter:
            image = augment.jitter_colors(image, numbers[3:7], color_jitter)
        image = augment.to_uint8(image)
        if flip:
            image, labels = tf.cond(
                numbers[7] < 0.5, lambda: augment.mirror(image, labels), lambda: (image, labels)
            )
        image, labels = augment.pad_to(image, labels, crop_size)
        return {"image": image, "label": labels}

    seed = tf.constant(seed, "int64")
    dataset = tf.data.Dataset.counter(tf.constant(start_step * share, "int64"))
    dataset = dataset.map(load, num_parallel_calls=num_parallel_calls)
    dataset = dataset.batch(batch_size // num_replicas, drop_remainder=True)
    return _with_options(dataset).prefetch(tf.data.AUTOTUNE)


def shuffled_index(seed, number, count):
    """Chooses the image of a sample: a permutation of the images in each epoch.

    Args:
        seed: int64 scalar.
        number: int64 scalar, of the sample, counted from 0 through all epochs.
        count: int, number of images.

    Returns:
        int64 scalar in `[0, count)`.
    """
    epoch, position = number // count, number % count
    # The op uses only the low 8 bits of each of its three seeds. With seed and epoch themselves, as
    # `tf.random.experimental.index_shuffle` takes them, the order would come back after 256 epochs.
    # So the seeds are random numbers, drawn with negative numbers apart from those of the samples.
    # Its usual 4 rounds mix a few images unevenly.
    words = tf.random.stateless_uniform(
        (3,), tf.stack([seed, -1 - epoch]), minval=None, maxval=None, dtype="int32"
    )
    return tf.raw_ops.RandomIndexShuffle(
        index=position, seed=words, max_index=tf.constant(count - 1, "int64"), rounds=8
    )


def evaluation_dataset(folder, split, *, batch_size=1, numbers=None):
    """All images of a split once, whole and in order.

    Args:
        folder: prepared data.
        split: str.
        batch_size: int, where all images have one size; else batches hold one image, because
            padding would change what a network sees.
        numbers: list of int, which images to give; default: all.

    Returns:
        `tf.data.Dataset` of `{"image": uint8 (batch, height, width, 3), "label": uint8 (batch,
        height, width), "id": string (batch,)}`; the last batch may be smaller.

    Raises:
        DataError: if the data is missing or incomplete.
        ValueError: if `batch_size` is not positive.
        tf.errors.InvalidArgumentError: from the iterator, if a record is corrupt; names the shard.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be 1 or more. Received: {batch_size}")
    records = _Records(folder, split)
    size = records.split.image_size

    def load(number):
        example = records.read(number)
        image = tf.io.decode_image(example["image"], channels=3, expand_animations=False)
        labels = tf.io.decode_png(example["label"], channels=1)[..., 0]
        image.set_shape((*(size or (None, None)), 3))
        labels.set_shape(size or (None, None))
        return {"image": image, "label": labels, "id": example["id"]}

    if numbers is None:
        numbers = np.arange(records.count)
    dataset = tf.data.Dataset.from_tensor_slices(np.asarray(numbers, "int64"))
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size if size else 1)
    return _with_options(dataset).prefetch(tf.data.AUTOTUNE)


class _Records:
    """Random access to the records of a split."""

    def __init__(self, folder, split):
        manifest = read_manifest(folder)
        self.split = manifest.split(split)
        self.count = self.split.num_images
        if not self.count:
            raise DataError(f"Split {split!r} of {folder} holds no images. Prepare it again")
        files, places, offsets = [], [], []
        for number, shard in enumerate(self.split.shards):
            files.append(os.path.join(folder, shard.file))
            places += [number] * len(shard.offsets)
            offsets += shard.offsets
        self._files = tf.constant(files)
        self._places = tf.constant(places, "int32")
        self._offsets = tf.constant(offsets, "int64")

    def read(self, index):
        """Reads and parses a record; its checksum is checked.

        Args:
            index: int64 scalar in [0, count).

        Returns:
            dict: `image`, `label`, `id` strings; `height`, `width` int32.
        """
        file, offset = self._files[self._places[index]], self._offsets[index]
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=file[None],
            compression_type="",
            buffer_size=_READ_BUFFER,
            byte_offsets=offset[None],
        )
        # TensorFlow's own error does not name the file. So a record that cannot be read becomes
        # an empty one, which does not pass the check.
        dataset = tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string))
        dataset = dataset.take(1).ignore_errors()
        record = dataset.concatenate(tf.data.Dataset.from_tensors("")).take(1).get_single_element()
        problem = tf.strings.join(
            ["The shard ", file, " is corrupt or gone, at byte ", tf.strings.as_string(offset)]
        )
        advice = "Prepare the data again, with --overwrite"
        with tf.control_dependencies([tf.debugging.Assert(record != "", [problem, advice])]):
            example = tf.io.parse_single_example(tf.identity(record), FEATURES)
        for name in ("height", "width"):
            example[name] = tf.cast(example[name], "int32")
        return example


def _decode_window(content, first, extent):
    """Decodes a part of a JPEG, or a PNG whole to cut the part out; uint8."""

    def from_jpeg():
        return tf.io.decode_and_crop_jpeg(content, tf.concat([first, extent], axis=0), channels=3)

    def from_png():
        return tf.slice(
            tf.io.decode_png(content, channels=3),
            tf.concat([first, [0]], axis=0),
            tf.concat([extent, [3]], axis=0),
        )

    return tf.cond(tf.io.is_jpeg(content), from_jpeg, from_png)


def _with_options(dataset):
    options = tf.data.Options()
    options.deterministic = True
    # The global batch is split among replicas; every worker reads the same stream.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)
