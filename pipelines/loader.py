"""Loading of batches from shards.

Sample n of the endless stream is an image of the permutation of epoch n // num_images, and all its
random numbers are a function of (seed, n). Records are read at the offsets listed in the manifest.
So the stream has no state: it can start at any step without reading earlier samples, and it is
shuffled over the whole split without a buffer.

The host chooses a window, decodes and resizes only this window. Colors are distorted on the
training device (`kseg.layers.photometric`), from random numbers that are part of the batch.
"""

import math
import sys

import numpy as np
import tensorflow as tf

from pipelines import augment
from pipelines.datasets.dataset import IGNORE_LABEL
from pipelines.encoding import decode_whole
from pipelines.errors import DataError
from pipelines.manifest import again
from pipelines.sample_stream import Order, repeat_factors
from pipelines.storage import open_records

_WINDOWS = 10  # Windows tried for a crop of mixed classes, as in the public code.
_MAX_IN_A_ROW = 16  # Successive unusable images that one sample skips.


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
    rotation=0.0,
    max_class_share=1.0,
    repeat_threshold=None,
    rare_classes=(),
    rare_probability=1 / 3,
    num_draws=0,
    on_error="raise",
    max_errors=10,
    cache=None,
    service=None,
    worker=0,
    num_workers=1,
    num_replicas=1,
    num_parallel_calls=tf.data.AUTOTUNE,
):
    """Builds an endless data set of batches of random crops.

    A window is chosen from the stored size of an image before anything is decoded. Only the window
    is decoded (of a JPEG, at the smallest of the scales 1, 1/2, 1/4, 1/8 with enough pixels) and
    resized.
    Images that are smaller than the crop once scaled are padded at the bottom and the right.

    Args:
        folder: prepared data, see `pipelines.records`; any path of `tf.io.gfile`.
        split: str; list of str, splits that are one training set; or dict from str to float > 0,
            how often each image of that split occurs in an epoch (0.5: a new random half in each
            epoch).
        batch_size: int, images in a global batch.
        crop_size: `(height, width)`, pixels.
        seed: int. The same arguments give the same stream, on any number of cores.
        start_step: int, number of the first batch.
        scale_range: `(lowest, highest)`, drawn uniformly.
        flip: bool, mirror half of the crops.
        rotation: float, degrees: crops are rotated by an angle drawn uniformly from +- this.
        max_class_share: float in (0, 1]. The crop is the first of up to 10 random windows in which
            no class has a larger share of the labeled pixels, or the last one. 1 disables this.
        repeat_threshold: float or None, see `pipelines.sample_stream.repeat_factors`.
        rare_classes: list of int. Some crops are centered, as far as the border allows, on a pixel
            of one of these: first one of the classes in the image, then one of its pixels is drawn
            with equal probability. Such a crop is not drawn again for `max_class_share`.
        rare_probability: float in [0, 1], the share of these crops among images that have such a
            class. Source: nnU-Net (Isensee et al., 2021), where it is a third.
        num_draws: int, number of random numbers for each image.
        on_error: the reaction to an unusable record. `"raise"`: the iterator raises. `"skip"`:
            another image replaces it, and a line on stderr names it.
        max_errors: int, the number of records that may be skipped; beyond it the iterator raises.
        cache: None, `"memory"` or a folder, see `pipelines.storage.open_records`.
        service: address of a tf.data service (`grpc://host:port`) whose workers make the batches,
            or None. They must have access to the folder. Each sample still occurs once, but its
            step depends on which worker is faster.
        worker: int, index of this machine, which reads only its part of each global batch.
        num_workers: int, number of machines that divide each global batch.
        num_replicas: int, number of parts of a global batch, the same on each machine, which
            follow each other as separate batches.
        num_parallel_calls: int, number of images processed in parallel; the stream does not depend
            on it.

    Returns:
        `tf.data.Dataset` of `{"image": uint8 (batch, height, width, 3), "label": uint8 (batch,
        height, width)}`, 255 = ignored; images of data with a pixel format have its channels and
        dtype; and, if there are any, `"draws"`: float32 `(batch,
        num_draws)`, uniform in [0, 1); `batch` is `batch_size / num_replicas`.

    Raises:
        DataError: if the data is missing or incomplete, or cannot be cached.
        ValueError: if an argument is out of range, or a number does not divide the next.
        tf.errors.InvalidArgumentError: from the iterator, if a record is corrupt; names the shard.
    """
    crop_size = tuple(crop_size)
    _check_geometry(crop_size, scale_range, rotation, max_class_share)
    _check_stream(batch_size, start_step, num_workers, num_replicas)
    if not 0 <= rare_probability <= 1:
        raise ValueError(f"`rare_probability` must be 0 to 1. Received: {rare_probability}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` must be 'raise' or 'skip'. Received: {on_error!r}")
    if cache == "memory" and (service or on_error == "skip"):
        raise DataError(
            'data.cache "memory" reads every image before the first step, in this process: it '
            'cannot be combined with data.service or data.on_error "skip". Use a folder'
        )
    records = open_records(folder, split, cache)
    factors = None if (records.factors == 1).all() else records.factors
    if repeat_threshold is not None:
        classes = [c for shard in records.split.shards for c in shard.classes]
        factors = records.factors * repeat_factors(
            classes, records.num_classes, repeat_threshold, records.factors
        )
    rare_classes = list(rare_classes) if rare_probability else []
    wrong = [c for c in rare_classes if not 0 <= c < records.num_classes]
    if wrong:
        raise ValueError(
            f"`rare_classes` must be in [0, {records.num_classes}). Received: {rare_classes}"
        )
    order = Order(seed, records.count, factors)
    seed = tf.constant(seed, "int64")
    share = batch_size // num_workers

    def crop(example, numbers):
        return _crop(
            records,
            example,
            numbers,
            crop_size=crop_size,
            scale_range=scale_range,
            flip=flip,
            rotation=rotation,
            max_class_share=max_class_share,
            rare_classes=rare_classes,
            rare_probability=rare_probability,
        )

    # The numbers for rare crops come last, so that the others do not depend on them.
    total = _NUMBERS + num_draws + (_RARE_NUMBERS if rare_classes else 0)

    def load(count):
        number = count // share * batch_size + worker * share + count % share
        numbers = tf.random.stateless_uniform((total,), tf.stack([seed, number]))
        index = order(number)
        if on_error == "skip":

            def attempt(index):
                return records.try_map(index, lambda example: crop(example, numbers))

            (image, labels), skipped = _first_usable(attempt, index, records)
        else:
            image, labels = crop(records.read(index), numbers)
        image.set_shape((*crop_size, records.channels))
        labels.set_shape(crop_size)
        sample = {"image": image, "label": labels}
        if num_draws:
            sample["draws"] = numbers[_NUMBERS : _NUMBERS + num_draws]
        if on_error == "skip":
            sample["skipped"] = skipped
        return sample

    # Unlike a counter, a range can be divided among the workers of a service.
    dataset = tf.data.Dataset.range(start_step * share, 2**62)
    dataset = dataset.map(load, num_parallel_calls=num_parallel_calls)
    dataset = dataset.batch(batch_size // num_replicas, drop_remainder=True)
    if service:
        dataset = dataset.apply(
            tf.data.experimental.service.distribute(
                tf.data.experimental.service.ShardingPolicy.DYNAMIC, service
            )
        )
    if on_error == "skip":
        dataset = dataset.map(_FaultReport(records, max_errors))
    return _with_options(dataset).prefetch(tf.data.AUTOTUNE)


def _check_geometry(crop_size, scale_range, rotation, max_class_share):
    """Raises a ValueError for arguments of `training_dataset` that describe no crop."""
    if min(crop_size) < 1:
        raise ValueError(f"`crop_size` must be 1 or more. Received: {crop_size=}")
    if not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(f"`scale_range` must be 0 < lowest <= highest. Received: {scale_range}")
    if not 0 <= rotation <= 180 or not 0 < max_class_share <= 1:
        raise ValueError(
            "`rotation` must be 0 to 180 and `max_class_share` above 0, at most 1. Received: "
            f"{rotation=}, {max_class_share=}"
        )


def _check_stream(batch_size, start_step, num_workers, num_replicas):
    """Raises a ValueError for arguments of `training_dataset` that describe no batches."""
    if batch_size < 1 or start_step < 0:
        raise ValueError(
            "`batch_size` must be 1 or more and `start_step` 0 or more. Received: "
            f"{batch_size=}, {start_step=}"
        )
    if batch_size % num_replicas or num_replicas % num_workers:
        raise ValueError(
            "`num_workers` must divide `num_replicas`, which must divide `batch_size`. Received: "
            f"{num_workers=}, {num_replicas=}, {batch_size=}"
        )


def evaluation_dataset(folder, split, *, batch_size=1, numbers=None):
    """Builds a data set of all images of a split, complete and in order.

    Args:
        folder: prepared data; any path of `tf.io.gfile`.
        split: str.
        batch_size: int, used if all images have one size; otherwise batches hold one image, because
            padding would change the input of the network.
        numbers: list of int, the indices of the images; default: all.

    Returns:
        `tf.data.Dataset` of `{"image": uint8 (batch, height, width, 3), "label": uint8 (batch,
        height, width), "id": string (batch,)}`; the last batch may be smaller. Images of data with
        a pixel format have its channels and dtype.

    Raises:
        DataError: if the data is missing or incomplete.
        ValueError: if `batch_size` is not positive.
        tf.errors.InvalidArgumentError: from the iterator, if a record is corrupt; names the shard.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be 1 or more. Received: {batch_size}")
    records = open_records(folder, split)
    size = records.split.image_size or (None, None)

    def load(index):
        image, labels, name = decode_whole(records.read(index), records.pixels)
        image.set_shape((*size, records.channels))
        labels.set_shape(size)
        return {"image": image, "label": labels, "id": name}

    if numbers is None:
        numbers = np.arange(records.count)
    dataset = tf.data.Dataset.from_tensor_slices(np.asarray(numbers, "int64"))
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size if records.split.image_size else 1)
    return _with_options(dataset).prefetch(tf.data.AUTOTUNE)


# Random numbers of a crop: scale, mirror, angle, and (row, column) of each window tried.
_NUMBERS = 3 + 2 * _WINDOWS
_RARE_NUMBERS = 3  # Whether to center the crop on a rare class, which class, which pixel.


def _crop(
    records,
    example,
    numbers,
    *,
    crop_size,
    scale_range,
    flip,
    rotation,
    max_class_share,
    rare_classes,
    rare_probability,
):
    """Cuts a crop out of an image; see `training_dataset`.

    Returns:
        `(image, labels)`: `(*crop_size, channels)` of the dtype of the data, and uint8 `crop_size`.
    """
    size = tf.stack([example["height"], example["width"]])
    wanted, extent, shape = augment.draw_extent(numbers[0], size, crop_size, scale_range)
    positions = tf.reshape(numbers[3:_NUMBERS], (_WINDOWS, 2))
    angle = (2.0 * numbers[2] - 1.0) * (rotation * math.pi / 180.0)
    ratio = tf.constant(1) if rotation else records.window_ratio(example, extent, shape)
    if not rotation:
        extent = extent // ratio * ratio

    def random_window(attempt):
        return augment.draw_place(positions[attempt], size, extent) // ratio * ratio

    def labels_at(first):
        if not rotation:
            labels = records.decode_label_window(example, first, extent)
            return augment.resize_labels(labels, tf.zeros_like(first), extent, shape)
        box = augment.rotated_box(first, wanted, size, angle)
        labels = records.decode_label_window(example, *box[:2])[..., None]
        return augment.rotate(
            labels, first, wanted, box, angle, crop_size, [IGNORE_LABEL], "NEAREST"
        )[..., 0]

    def image_at(first):
        if not rotation:
            image = records.decode_window(example, first, extent, ratio)
            return image if tuple(scale_range) == (1, 1) else augment.resize_image(image, shape)
        box = augment.rotated_box(first, wanted, size, angle)
        image = records.decode_window(example, *box[:2], ratio)
        return augment.rotate(
            image, first, wanted, box, angle, crop_size, records.padding, "BILINEAR"
        )

    def rare_window():
        whole = records.decode_label_window(example, tf.zeros_like(size), size)
        pixel, found = augment.draw_pixel(whole, rare_classes, numbers[-2:])
        around = tf.clip_by_value(pixel - extent // 2, 0, size - extent) // ratio * ratio
        return tf.where(found, around, random_window(0)), found

    first, centered = random_window(0), tf.constant(False)
    if rare_classes:
        first, centered = tf.cond(
            numbers[-3] < rare_probability, rare_window, lambda: (first, centered)
        )
    labels = labels_at(first)
    if max_class_share < 1:
        _, first, labels = tf.while_loop(
            lambda attempt, first, labels: (
                tf.logical_not(centered)
                & (attempt < _WINDOWS)
                & (augment.largest_share(labels) > max_class_share)
            ),
            lambda attempt, first, labels: (
                attempt + 1,
                random_window(attempt),
                labels_at(random_window(attempt)),
            ),
            (1, first, labels),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([2]), tf.TensorShape([None] * 2)),
        )
    image = image_at(first)
    if flip:
        image, labels = tf.cond(
            numbers[1] < 0.5, lambda: augment.mirror(image, labels), lambda: (image, labels)
        )
    return augment.pad_to(image, labels, crop_size, records.padding)


def _first_usable(attempt, index, records):
    """Skips unusable images.

    Args:
        attempt: function from the index of an image to the `(values, usable)` of
            `Records.try_map`.
        index: int64 scalar, the first image to try; then its successors are tried.
        records: `Records`.

    Returns:
        `(values, skipped)`: the values of the first usable image; and int64 `(16,)`, the indices of
        the unusable images, padded with -1.
    """
    slots = tf.range(_MAX_IN_A_ROW)

    def step(number, usable, skipped, image, labels):
        skipped = tf.where(slots == number, (index + tf.cast(number, "int64")), skipped)
        number += 1
        (image, labels), usable = attempt((index + tf.cast(number, "int64")) % records.count)
        return number, usable, skipped, image, labels

    (image, labels), usable = attempt(index)
    limit = min(_MAX_IN_A_ROW, records.count)
    _, usable, skipped, image, labels = tf.while_loop(
        lambda number, usable, *values: tf.logical_not(usable) & (number + 1 < limit),
        step,
        (0, usable, tf.fill((_MAX_IN_A_ROW,), tf.constant(-1, "int64")), image, labels),
        shape_invariants=(
            *(tf.TensorShape([]), tf.TensorShape([]), tf.TensorShape([_MAX_IN_A_ROW])),
            *(tf.TensorShape([None] * 3), tf.TensorShape([None] * 2)),
        ),
    )
    problem = [records.fault(index), f"Nor is any of the next {limit - 1} images usable."]
    with tf.control_dependencies([_check(usable, problem)]):
        skipped = tf.where(skipped < 0, skipped, skipped % records.count)
        return (tf.identity(image), tf.identity(labels)), skipped


class _FaultReport:
    """Removes the lists of skipped images from batches, names each on stderr, and limits them."""

    def __init__(self, records, max_errors):
        self._records = records
        self._max_errors = max_errors
        with tf.device("CPU"):
            self._known = tf.Variable(tf.zeros((records.count,), tf.bool), trainable=False)

    def __call__(self, batch):
        skipped = tf.reshape(batch.pop("skipped"), (-1,))
        skipped, _ = tf.unique(tf.boolean_mask(skipped, skipped >= 0))

        def report():
            new = tf.boolean_mask(skipped, tf.logical_not(tf.gather(self._known, skipped)))
            marked = self._known.scatter_update(
                tf.IndexedSlices(tf.fill(tf.shape(skipped), True), skipped)
            )
            count = tf.math.count_nonzero(marked, dtype="int32")
            names = tf.map_fn(self._records.fault, new, fn_output_signature=tf.string)
            names = tf.strings.reduce_join(names, separator="; ")
            # Several arguments would be printed with quotes.
            line = ["skipped, ", tf.strings.as_string(count)]
            line = tf.strings.join(
                [*line, f" so far (data.max_errors: {self._max_errors}): ", names]
            )
            shown = tf.cond(
                tf.size(new) > 0, lambda: tf.print(line, output_stream=sys.stderr), tf.no_op
            )
            with tf.control_dependencies([shown]):
                problem = [names, f"These are more than data.max_errors, {self._max_errors}."]
                return tf.group(_check(count <= self._max_errors, problem))

        with tf.control_dependencies([tf.cond(tf.size(skipped) > 0, report, tf.no_op)]):
            return {name: tf.identity(value) for name, value in batch.items()}


def _check(condition, problem):
    return tf.cond(condition, tf.no_op, lambda: tf.debugging.Assert(False, [*problem, again()]))


def _with_options(dataset):
    options = tf.data.Options()
    options.deterministic = True
    # A strategy divides each global batch among its replicas: the stream itself is not sharded.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)
