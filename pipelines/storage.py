"""Random access to the records of a split: in place, from memory, or from a local copy."""

import functools
import os
import re
import sys

import numpy as np
import tensorflow as tf

from kseg import files, waiting
from pipelines import augment, encoding, paths
from pipelines.errors import DataError
from pipelines.manifest import again, file_sha256, find_lost_shard, read_manifest, split_ratios

_READ_BUFFER = 1 << 16  # Bytes; reading a single record needs no more look-ahead.
_COPY_BLOCK = 1 << 22
_FAULT = r"The shard .+? is corrupt, gone or another one, at byte \d+ \(image \d+\)"


class Records:
    """The records of a split, read from its shards on demand.

    Args:
        folder: prepared data, see `pipelines.records`.
        split: as for `pipelines.manifest.Manifest.union`.
        cache: path of a local folder or None. The split's shards are copied there once, verified,
            and read from there.

    Attributes:
        split: `pipelines.manifest.Split`.
        factors: float64 array `(count,)`, how often each image occurs in an epoch; all 1 unless
            several splits are combined in different ratios.
        count: int, number of images.
        num_classes: int.
        pixels: `kseg.pixel_format.PixelFormat` of the images; None: 8-bit RGB.

    Raises:
        DataError: if the data is missing or incomplete, or a copy does not match the manifest.
    """

    def __init__(self, folder, split, *, cache=None):
        manifest = read_manifest(folder)
        waiting.set_source(
            functools.partial(find_lost_shard, folder), functools.partial(explain, folder)
        )
        self.split = manifest.union(split)
        ratios = split_ratios(split)
        self.factors = np.repeat(
            np.fromiter(ratios.values(), "float64"), [manifest.split(n).num_images for n in ratios]
        )
        self.count = self.split.num_images
        self.num_classes = manifest.num_classes
        self.pixels = manifest.pixel_format
        if not self.count:
            raise DataError(f"Split {split!r} of {folder} holds no images. Prepare it again")
        shards = self.split.shards
        files = [os.path.join(str(folder), shard.file) for shard in shards]
        if cache is not None:
            files = [_copy(file, shard, cache) for file, shard in zip(files, shards, strict=True)]
        counts = [len(shard.offsets) for shard in shards]
        self._files = tf.constant(files)
        self._keys = tf.constant([shard.key for shard in shards])
        self._shards = tf.constant(np.repeat(np.arange(len(shards)), counts), "int32")
        self._numbers = tf.constant(np.concatenate([np.arange(n) for n in counts]), "int32")
        self._offsets = tf.constant([at for shard in shards for at in shard.offsets], "int64")

    decode_label_window = staticmethod(encoding.decode_label_window)

    @property
    def channels(self):
        """Number of channels of the images."""
        return 3 if self.pixels is None else self.pixels.channels

    @property
    def padding(self):
        """The pixel beyond the border of an image, one number for each channel."""
        return augment.PAD_COLOR if self.pixels is None else self.pixels.padding

    def decode_window(self, example, first, extent, ratio):
        """Decodes a part of the image: see `pipelines.encoding.decode_window`."""
        return encoding.decode_window(example, first, extent, ratio, self.pixels)

    def window_ratio(self, example, extent, shape):
        """Computes the reduction for decoding; see `pipelines.encoding.window_ratio`."""
        return encoding.window_ratio(example, extent, shape, self.pixels)

    def read(self, index):
        """Reads a record and verifies its checksum and that it is the requested one.

        Args:
            index: int64 scalar in `[0, count)`.

        Returns:
            dict, see `pipelines.encoding.parse_record`.

        Raises:
            tf.errors.InvalidArgumentError: if the record is unreadable or wrong; names the shard.
        """
        # TensorFlow's own error does not name the file. Therefore an unreadable record is replaced
        # by an empty one, which fails the check below.
        nothing = tf.data.Dataset.from_tensors("")
        dataset = self._open(index).ignore_errors().concatenate(nothing).take(1)
        record = dataset.get_single_element()
        with tf.control_dependencies([self._check(record != "", index)]):
            example = encoding.parse_record(tf.identity(record), self.pixels)
        with tf.control_dependencies([self._check(self._is(example, index), index)]):
            return {name: tf.identity(value) for name, value in example.items()}

    def try_map(self, index, function):
        """Applies a function to a record and tolerates failure; slower than `read`.

        Args:
            index: int64 scalar in `[0, count)`.
            function: maps an example, as returned by `pipelines.encoding.parse_record`, to a tuple
                of tensors of known rank.

        Returns:
            `(values, usable)`: the tuple and True; or empty tensors and False if the record cannot
            be read or `function` failed on it. Static shapes are unknown.
        """

        def compute(record):
            example = encoding.parse_record(record, self.pixels)
            with tf.control_dependencies([self._check(self._is(example, index), index)]):
                example = {name: tf.identity(value) for name, value in example.items()}
            return *function(example), True

        # A graph cannot catch an error: instead, a failing element is dropped from a data set and
        # an empty one takes its place.
        dataset = self._open(index).map(compute).ignore_errors()
        *specs, _ = dataset.element_spec
        blank = tuple(tf.zeros([0] * spec.shape.rank, spec.dtype) for spec in specs)
        blank = tf.data.Dataset.from_tensors((*blank, False))
        *values, usable = dataset.concatenate(blank).take(1).get_single_element()
        return tuple(values), usable

    def fault(self, index):
        """Describes an unusable record: its shard, byte offset and index.

        Args:
            index: int64 scalar in `[0, count)`.

        Returns:
            string scalar.
        """
        parts = ["The shard ", self._files[self._shards[index]]]
        # Must match `_FAULT`.
        parts += [" is corrupt, gone or another one, at byte "]
        parts += [tf.strings.as_string(self._offsets[index])]
        return tf.strings.join([*parts, " (image ", tf.strings.as_string(index), ")"])

    def _open(self, index):
        """Opens one record as a data set; `ignore_errors`: empty if the record is unreadable."""

        def open_shard(file, offset):
            variant = tf.raw_ops.TFRecordDatasetV2(
                filenames=file[None],
                compression_type="",
                buffer_size=_READ_BUFFER,
                byte_offsets=offset[None],
            )
            spec = tf.TensorSpec((), tf.string)
            return tf.data.experimental.from_variant(variant, spec).take(1).get_single_element()

        # Not the shard's data set itself: if a file cannot be opened, that retries for every
        # requested element, so `ignore_errors` would loop forever. Here an error consumes the only
        # element.
        file = self._files[self._shards[index]]
        return tf.data.Dataset.from_tensors((file, self._offsets[index])).map(open_shard)

    def _is(self, example, index):
        """Returns True if an example's shard key and number match the index."""
        key, number = self._keys[self._shards[index]], self._numbers[index]
        return (example["shard"] == key) & (example["index"] == number)

    def _check(self, condition, index):
        problem = [self.fault(index), again()]
        return tf.cond(condition, tf.no_op, lambda: tf.debugging.Assert(False, problem))


class MemoryRecords(Records):
    """The records of a split, decoded once and held in memory, 4 bytes per pixel of 8-bit RGB.

    Args:
        folder, split: as for `Records`.

    Raises:
        DataError: as `Records`, or if a record is unusable.
    """

    def __init__(self, folder, split):
        super().__init__(folder, split)
        decoded = tf.data.Dataset.range(self.count).map(
            lambda index: encoding.decode_whole(
                super(MemoryRecords, self).read(index), self.pixels
            )[:2],
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        examples = [(x.numpy(), y.numpy()) for x, y in waiting.each_batch(decoded)]
        sizes = np.array([labels.shape for _, labels in examples])
        offsets = np.cumsum([0, *(labels.size for _, labels in examples)])[:-1]
        self._sizes = tf.constant(sizes, "int32")
        self._places = tf.constant(offsets, "int64")
        # Keep in host memory, whatever device the network is trained on.
        with tf.device("CPU"):
            self._values = tf.constant(
                np.concatenate([x.reshape(-1, x.shape[-1]) for x, _ in examples])
            )
            self._labels = tf.constant(np.concatenate([x.reshape(-1) for _, x in examples]))

    def read(self, index):
        """Returns an image's size and offset, which the other methods need."""
        height, width = self._sizes[index, 0], self._sizes[index, 1]
        return {"height": height, "width": width, "place": self._places[index]}

    def decode_window(self, example, first, extent, ratio):
        """Equivalent of `pipelines.encoding.decode_window` for a ratio of 1."""
        return self._window(self._values, example, first, extent)

    def decode_label_window(self, example, first, extent):
        """Equivalent of `pipelines.encoding.decode_label_window`."""
        return self._window(self._labels, example, first, extent)

    def window_ratio(self, example, extent, shape):
        """Returns 1: decoded images are not reduced."""
        return tf.constant(1)

    def _window(self, values, example, first, extent):
        height, width = example["height"], example["width"]
        rest = values.shape[1:]
        whole = tf.slice(
            values,
            tf.concat([example["place"][None], [0] * len(rest)], axis=0),
            tf.concat([tf.cast(height * width, "int64")[None], rest], axis=0),
        )
        whole = tf.reshape(whole, (height, width, *rest))
        return tf.slice(
            whole,
            tf.concat([first, [0] * len(rest)], axis=0),
            tf.concat([extent, rest], axis=0),
        )


def open_records(folder, split, cache=None):
    """Opens the records of a split.

    Args:
        folder, split: as for `Records`.
        cache: None; `"memory"` for `MemoryRecords`; or the path of a local folder, see `Records`.

    Returns:
        `Records`.

    Raises:
        DataError: as `Records` and `MemoryRecords`.
    """
    if cache == "memory":
        return MemoryRecords(folder, split)
    return Records(folder, split, cache=cache)


def explain(folder, error):
    """Turns an error raised by a graph that reads records into one that names the shard.

    Args:
        folder: prepared data.
        error: exception raised by the iterator of a `tf.data` dataset.

    Returns:
        `DataError`; None if the error is about something else.
    """
    faults = list(dict.fromkeys(re.findall(_FAULT, str(error))))
    if not faults:
        return None
    limit = re.findall(r"These are more than data\.max_errors, \d+", str(error))[:1]
    # A problem of the file itself says more than an unreadable record.
    if not limit and (lost := find_lost_shard(folder)):
        return DataError(lost)
    return DataError(". ".join([*faults, *limit, again()]))


def _copy(file, shard, cache):
    """Copies a shard into the cache unless it is already there; returns the copy's path."""
    copy = os.path.join(cache, f"{shard.key}-{shard.sha256[:16]}.tfrecord")
    if os.path.exists(copy) and os.path.getsize(copy) == shard.bytes:
        return copy
    # If several processes copy at once, the last one wins: all copies are identical.
    try:
        with files.replace_file(copy) as new:
            print(f"copying {file} to {cache}", file=sys.stderr, flush=True)
            with open(new, "wb") as target:
                for block in paths.read_blocks(file, _COPY_BLOCK):
                    target.write(block)
            if file_sha256(new) != shard.sha256:
                raise DataError(
                    f"The shard {file} is corrupt: its checksum is not that of the manifest. "
                    f"{again()}"
                )
    except OSError as error:
        where = error.filename or cache
        raise DataError(
            f"data.cache must be a folder that can be written. {where}: {error.strerror or error}"
        ) from None
    return copy
