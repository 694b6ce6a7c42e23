"""TFRecord shards with a manifest: write, read, verify.

    <folder>/manifest.json                   counts, classes, checksums, offsets of all records
             train-00000-of-00008.tfrecord   image, label, id, height, width

A record holds the image's bytes as they were stored (JPEG or PNG) and the label as a single-channel
PNG of labels 0..N-1, 255 = ignored. The manifest is written last: without it there is no data set.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time

import cv2
import numpy as np
import tensorflow as tf

from pipelines.datasets.dataset import IGNORE_LABEL
from pipelines.errors import DataError

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_MAX_PROBLEMS = 5
# A record is framed by its length (8 bytes), the length's CRC (4) and the content's CRC (4).
_FRAME_HEAD, _FRAME_TAIL = 12, 4


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records.

    Attributes:
        file: str, name in the folder.
        bytes: int, its size.
        sha256: str, of the whole file.
        offsets: list of int, where each record begins.
    """

    file: str
    bytes: int
    sha256: str
    offsets: list[int]


@dataclasses.dataclass(frozen=True)
class Split:
    """The part of a data set that is trained or evaluated on.

    Attributes:
        num_images: int.
        image_size: `[height, width]` if all images have that size, else None.
        pixels: list of int, pixels of each class, then of the ignored ones.
        shards: list of `Shard`.
    """

    num_images: int
    image_size: list[int] | None
    pixels: list[int]
    shards: list[Shard]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of records holds.

    Attributes:
        dataset: str, the name of its data set.
        class_names: list of str.
        palette: list of `[red, green, blue]`.
        options: dict, how it was made.
        splits: dict from name to `Split`.
        folder: str, where it was read.
    """

    dataset: str
    class_names: list[str]
    palette: list[list[int]]
    options: dict
    splits: dict[str, Split]
    folder: str

    @property
    def num_classes(self):
        """Number of classes."""
        return len(self.class_names)

    def split(self, name):
        """A split by name.

        Raises:
            DataError: if there is none of that name.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.folder} has no split {name!r}. It has: {', '.join(self.splits)}. Set "
                "data.train_split or data.eval_split to one of them"
            )
        return self.splits[name]


def write(
    folder,
    name,
    taxonomy,
    splits,
    *,
    options=None,
    num_shards=None,
    workers=None,
    overwrite=False,
    progress=True,
):
    """Writes a data set as records.

    Args:
        folder: where to; made if missing. Other files in it are left alone.
        name: str, the data set's name.
        taxonomy: `Taxonomy`.
        splits: dict from split to a list of examples: each has an `id` and `read()`, which gives
            the bytes of the image (JPEG or PNG) and of the label PNG.
        options: dict that JSON can hold, stored in the manifest.
        num_shards: int, files for each split; default: about 128 images a file, at least 1.
        workers: int, threads (decoding and encoding run outside Python); default: all cores.
        overwrite: bool, replace a finished data set.
        progress: bool, print a progress line.

    Returns:
        `Manifest`.

    Raises:
        DataError: if the folder holds a finished data set, or examples are unusable; the first
            few are named. Nothing that looks finished is left then.
    """
    folder = pathlib.Path(folder)
    if (folder / _MANIFEST).exists() and not overwrite:
        raise DataError(
            f"{folder} holds a finished data set already. Use --overwrite to make it again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)
    for pattern in ("*-?????-of-?????.tfrecord", ".*.tfrecord.tmp"):
        for leftover in folder.glob(pattern):
            leftover.unlink()

    jobs = []
    for split, examples in splits.items():
        if len({example.id for example in examples}) < len(examples):
            raise DataError(f"The ids of split {split!r} must be unique")
        count = max(1, min(num_shards or -(-len(examples) // 128), len(examples)))
        for i, part in enumerate(np.array_split(np.arange(len(examples)), count)):
            file = f"{split}-{i:05d}-of-{count:05d}.tfrecord"
            jobs.append((split, folder / file, [examples[j] for j in part]))

    meter = _Progress(sum(len(examples) for *_, examples in jobs), progress)
    problems = []
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        futures = [
            pool.submit(_write_shard, path, examples, taxonomy, meter, problems)
            for _, path, examples in jobs
        ]
        try:
            results = [future.result() for future in futures]
        except BaseException:
            meter.stopped = True
            raise
    meter.close()
    if problems:
        more = ", ..." if len(problems) > _MAX_PROBLEMS else ""
        raise DataError(f"Unusable files: {'; '.join(sorted(problems)[:_MAX_PROBLEMS])}{more}")

    described = {}
    for split in splits:
        mine = [r for (s, *_), r in zip(jobs, results, strict=True) if s == split]
        sizes = set().union(*(sizes for _, sizes, _ in mine))
        described[split] = Split(
            num_images=sum(len(shard.offsets) for shard, *_ in mine),
            image_size=list(next(iter(sizes))) if len(sizes) == 1 else None,
            pixels=sum(pixels for *_, pixels in mine).tolist(),
            shards=[shard for shard, *_ in mine],
        )
    manifest = Manifest(
        dataset=name,
        class_names=taxonomy.class_names,
        palette=taxonomy.palette,
        options=options or {},
        splits=described,
        folder=str(folder),
    )
    _write_manifest(manifest)
    return manifest


def read_manifest(folder):
    """Reads a manifest and checks that its shards are there in full size.

    Args:
        folder: as given to `write`.

    Returns:
        `Manifest`.

    Raises:
        DataError: if the folder is no prepared data set, or a shard is missing or truncated.
    """
    path = pathlib.Path(folder) / _MANIFEST
    try:
        text = path.read_text()
    except FileNotFoundError:
        name = pathlib.Path(folder).name
        raise DataError(
            f"{folder} holds no prepared data (no {_MANIFEST}). Prepare it: python "
            f"scripts/prepare_data.py {name} --source <the unpacked download> --output {folder}"
        ) from None
    try:
        values = json.loads(text)
        version = values.pop("format")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format {version}, this version reads {FORMAT_VERSION}. Prepare the "
                "data again"
            )
        splits = {
            name: Split(**{**split, "shards": [Shard(**shard) for shard in split["shards"]]})
            for name, split in values.pop("splits").items()
        }
        manifest = Manifest(**values, splits=splits, folder=str(folder))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({error}). Prepare the data again") from None
    for split in manifest.splits.values():
        for shard in split.shards:
            file = path.parent / shard.file
            if not file.exists():
                raise DataError(f"The shard {file} is missing. Prepare the data again")
            if file.stat().st_size != shard.bytes:
                raise DataError(
                    f"The shard {file} must have {shard.bytes} bytes and has "
                    f"{file.stat().st_size}. Prepare the data again"
                )
    return manifest


def verify(folder, *, progress=True):
    """Checks every byte: checksums, records, images, labels.

    Args:
        folder: as given to `write`.
        progress: bool, print a progress line.

    Returns:
        `Manifest`.

    Raises:
        DataError: naming the shard (and record) that is wrong.
    """
    manifest = read_manifest(folder)
    total = sum(split.num_images for split in manifest.splits.values())
    meter = _Progress(total, progress)
    for split in manifest.splits.values():
        for shard in split.shards:
            file = pathlib.Path(folder) / shard.file
            if _sha256(file) != shard.sha256:
                raise DataError(
                    f"The shard {file} is corrupt: its checksum is not that of the manifest. "
                    "Prepare the data again"
                )
            count = 0
            for record in tf.data.TFRecordDataset(str(file)):
                example = tf.io.parse_single_example(record, FEATURES)
                label = tf.io.decode_png(example["label"], channels=1).numpy()
                image = tf.io.decode_image(example["image"], channels=3, expand_animations=False)
                fits = image.shape[:2] == label.shape[:2] == (example["height"], example["width"])
                if not fits or (label[label != IGNORE_LABEL] >= manifest.num_classes).any():
                    raise DataError(
                        f"Record {example['id'].numpy().decode()!r} of {file} is inconsistent. "
                        "Prepare the data again"
                    )
                count += 1
                meter.advance()
            if count != len(shard.offsets):
                raise DataError(
                    f"The shard {file} must have {len(shard.offsets)} records and has {count}. "
                    "Prepare the data again"
                )
    meter.close()
    return manifest


FEATURES = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.string),
    "id": tf.io.FixedLenFeature([], tf.string),
    "height": tf.io.FixedLenFeature([], tf.int64),
    "width": tf.io.FixedLenFeature([], tf.int64),
}


def _write_shard(path, examples, taxonomy, meter, problems):
    """Writes one shard; gives `(Shard, sizes of its images, pixels of each class)`."""
    unfinished = path.with_name(f".{path.name}.tmp")
    offsets, position, sizes = [], 0, set()
    pixels = np.zeros(len(taxonomy.class_names) + 1, "int64")
    with tf.io.TFRecordWriter(str(unfinished)) as writer:
        for example in examples:
            if meter.stopped or len(problems) > _MAX_PROBLEMS:
                break
            try:
                record, size, counts = _encode(example, taxonomy)
            except DataError as error:
                problems.append(str(error))
                continue
            writer.write(record)
            offsets.append(position)
            position += _FRAME_HEAD + len(record) + _FRAME_TAIL
            sizes.add(size)
            pixels += counts
            meter.advance()
    if problems or meter.stopped:
        unfinished.unlink()
        return Shard(path.name, 0, "", offsets), sizes, pixels
    shard = Shard(path.name, position, _sha256(unfinished), offsets)
    os.replace(unfinished, path)
    return shard, sizes, pixels


def _encode(example, taxonomy):
    """Checks an example; gives `(record, (height, width), pixels of each class)`."""
    image_name = getattr(example, "image", example.id)
    label_name = getattr(example, "label", example.id)
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
    values = cv2.imdecode(np.frombuffer(label, "uint8"), cv2.IMREAD_UNCHANGED)
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
        labels = taxonomy.map_labels(values)
    except DataError as error:
        raise DataError(f"{label_name}: {error}") from None
    counts = np.bincount(labels.reshape(-1), minlength=256)
    num_classes = len(taxonomy.class_names)
    counts = np.append(counts[:num_classes], counts[IGNORE_LABEL])
    png = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()
    height, width = values.shape
    record = tf.train.Example(
        features=tf.train.Features(
            feature={
                "image": _bytes(image),
                "label": _bytes(png),
                "id": _bytes(example.id.encode()),
                "height": _int(height),
                "width": _int(width),
            }
        )
    ).SerializeToString()
    return record, (height, width), counts


def _bytes(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_manifest(manifest):
    values = {"format": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    folder = pathlib.Path(values.pop("folder"))
    unfinished = folder / f".{_MANIFEST}.tmp"
    unfinished.write_text(json.dumps(values) + "\n")
    os.replace(unfinished, folder / _MANIFEST)


class _Progress:
    """A line that counts images; on a terminal it is overwritten."""

    def __init__(self, total, shown):
        self.stopped = False
        self._total = total
        self._done = 0
        self._shown = shown
        self._start = self._last = time.monotonic()

    def advance(self):
        self._done += 1
        now = time.monotonic()
        if self._shown and sys.stderr.isatty() and now - self._last > 0.2:
            self._last = now
            print(f"\r{self._text()}", end="", file=sys.stderr, flush=True)

    def close(self):
        if self._shown:
            head = "\r" if sys.stderr.isatty() else ""
            print(f"{head}{self._text()}", file=sys.stderr, flush=True)

    def _text(self):
        seconds = max(time.monotonic() - self._start, 1e-9)
        return f"{self._done}/{self._total} images, {self._done / seconds:.0f} a second"
