"""TFRecord shards with a manifest: write, read, verify.

    <folder>/manifest.json                   counts, classes, checksums, offsets of all records
             train-00000-of-00008.tfrecord   image, label, id, height, width

A record holds the image's bytes as they were stored (JPEG or PNG) and the label as a single-channel
PNG of labels 0..N-1, 255 = ignored. The manifest is written last: without it there is no data set.

A shard is written as `.unfinished/<shard>.tmp`, described in `.unfinished/<shard>.json`, and then
renamed into place. So a run that was killed is continued by the next one, shard by shard.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
import threading
import time
import uuid

import cv2
import numpy as np
import tensorflow as tf

from pipelines import datasets
from pipelines.datasets.dataset import IGNORE_LABEL
from pipelines.errors import DataError
from pipelines.examples import read_checked

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished"
_IMAGES_PER_SHARD = 128
_MAX_PROBLEMS = 5
_AGAIN = "Prepare the data again, with --overwrite"
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
        images: list of int, images in which each class occurs, then those with ignored pixels.
        shards: list of `Shard`.
    """

    num_images: int
    image_size: list[int] | None
    pixels: list[int]
    images: list[int]
    shards: list[Shard]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of records holds.

    Attributes:
        dataset: str, the name of its data set.
        class_names: list of str.
        palette: list of `[red, green, blue]`.
        categories: dict from the name of a category to the labels of its classes.
        groups: dict from the name of a group to the labels of its classes.
        options: dict, how it was made.
        fingerprint: str, a hash of everything that it was made from.
        splits: dict from name to `Split`.
        folder: str, where it was read.
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
    describe=None,
    distribute=None,
):
    """Writes a data set as records, or finds that this was done before.

    Args:
        folder: where to; made if missing. Files in it that are not of a data set are left alone.
        name: str, the data set's name.
        taxonomy: `Taxonomy`.
        splits: dict from split to a list of examples. Each has an `id`, a `fingerprint` (what
            its content depends on, as JSON can hold it), and `read()`, which gives the bytes of
            the image (JPEG or PNG) and of the label PNG.
        options: dict that JSON can hold, stored in the manifest.
        num_shards: int, files for each split; default: about 128 images a file.
        workers: int, threads (decoding and encoding run outside Python); default: all cores.
        overwrite: bool, replace what another run wrote.
        progress: bool, print progress on stderr.
        describe: function of a finished `Manifest` and of a dict from split to a list of `[id,
            height, width, digest]` of its images; called if anything was written.
        distribute: function of a function and a list of what that is to be called with, each once
            or more, in any process that can reach the folder; default: threads of this one.

    Returns:
        `Manifest`.

    Raises:
        DataError: if the folder holds other data, or examples are unusable; the first few are
            named. Nothing that looks finished is left then.
    """
    folder = pathlib.Path(folder)
    jobs = []
    for split, examples in splits.items():
        if len({example.id for example in examples}) < len(examples):
            raise DataError(f"The ids of split {split!r} must be unique")
        count = num_shards or -(-len(examples) // _IMAGES_PER_SHARD)
        count = max(1, min(count, len(examples)))
        for i, part in enumerate(np.array_split(np.arange(len(examples)), count)):
            file = f"{split}-{i:05d}-of-{count:05d}.tfrecord"
            jobs.append(_Job(split, file, [examples[j] for j in part], taxonomy))
    fingerprint = _hash([name, dataclasses.asdict(taxonomy), [job.fingerprint for job in jobs]])

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} must be a folder that can be written: {error}") from None
    with _locked(folder):
        if (folder / MANIFEST).exists() and not overwrite:
            manifest = read_manifest(folder)
            if manifest.fingerprint != fingerprint:
                raise DataError(
                    f"{folder} holds {manifest.dataset!r}, made from other files or with other "
                    "options. Use --overwrite to replace it, or another --output"
                )
            if progress:
                print(f"{folder} is complete already: nothing to do", file=sys.stderr)
            return manifest
        workers = workers or len(os.sched_getaffinity(0))
        shards = _write_shards(folder, jobs, workers, overwrite, progress, distribute)
        described = {}
        for split in splits:
            mine = [shards[job.file] for job in jobs if job.split == split]
            sizes = {tuple(size) for shard in mine for size in shard["sizes"]}
            described[split] = Split(
                num_images=sum(len(shard["offsets"]) for shard in mine),
                image_size=list(sizes.pop()) if len(sizes) == 1 else None,
                pixels=np.sum([shard["pixels"] for shard in mine], axis=0).tolist(),
                images=np.sum([shard["images"] for shard in mine], axis=0).tolist(),
                shards=[
                    Shard(**{f.name: shard[f.name] for f in dataclasses.fields(Shard)})
                    for shard in mine
                ],
            )
        manifest = Manifest(
            dataset=name,
            class_names=taxonomy.class_names,
            palette=taxonomy.palette,
            categories=taxonomy.categories,
            groups=taxonomy.groups,
            options=json.loads(json.dumps(options or {})),
            fingerprint=fingerprint,
            splits=described,
            folder=str(folder),
        )
        _write_manifest(manifest)
        shutil.rmtree(folder / _UNFINISHED)
        if describe:
            contents = {split: [] for split in splits}
            for job in jobs:
                contents[job.split] += shards[job.file]["contents"]
            describe(manifest, contents)
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
    manifest = _parse_manifest(folder)
    for split in manifest.splits.values():
        for shard in split.shards:
            file = pathlib.Path(folder) / shard.file
            if not file.exists():
                raise DataError(f"The shard {file} is missing. {_AGAIN}")
            if file.stat().st_size != shard.bytes:
                raise DataError(
                    f"The shard {file} must have {shard.bytes} bytes and has "
                    f"{file.stat().st_size}. {_AGAIN}"
                )
    return manifest


def _parse_manifest(folder):
    """Reads a manifest without a look at its shards."""
    path = pathlib.Path(folder) / MANIFEST
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        name = pathlib.Path(folder).name
        where = ""
        if name not in datasets.DATASETS:
            name = "<data set>"
        elif homepage := datasets.describe(name).get("homepage"):
            where = f"Download it from {homepage}, then: "
        source = " --source <download>" if name != "synthetic" else ""
        raise DataError(
            f"{folder} holds no prepared data (no {MANIFEST}). {where or 'Prepare it: '}python "
            f"scripts/prepare_data.py {name}{source} --output {folder}"
        ) from None
    try:
        values = json.loads(text)
        version = values.pop("format")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format {version}, this version reads {FORMAT_VERSION}. {_AGAIN}"
            )
        for derived in ("num_classes", "ignore_label"):
            values.pop(derived)
        splits = {
            name: Split(**{**split, "shards": [Shard(**shard) for shard in split["shards"]]})
            for name, split in values.pop("splits").items()
        }
        return Manifest(**values, splits=splits, folder=str(folder))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({error}). {_AGAIN}") from None


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
            try:
                problem = _find_problem(file, shard, manifest.num_classes, meter)
            except (tf.errors.OpError, OSError) as error:
                problem = str(error)
            if problem:
                raise DataError(f"The shard {file} is corrupt: {problem}. {_AGAIN}")
    meter.close()
    return manifest


def _find_problem(file, shard, num_classes, meter):
    """Says what is wrong with a shard; None if nothing is."""
    if _sha256(file) != shard.sha256:
        return "its checksum is not that of the manifest"
    offsets, position = [], 0
    for record in tf.data.TFRecordDataset(str(file)):
        example = tf.io.parse_single_example(record, FEATURES)
        labels = tf.io.decode_png(example["label"], channels=1).numpy()
        image = tf.io.decode_image(example["image"], channels=3, expand_animations=False)
        size = (int(example["height"]), int(example["width"]))
        if not image.shape[:2] == labels.shape[:2] == size:
            return f"the sizes in record {example['id'].numpy().decode()!r} differ"
        if (labels[labels != IGNORE_LABEL] >= num_classes).any():
            return f"record {example['id'].numpy().decode()!r} has labels beyond the classes"
        offsets.append(position)
        position += _FRAME_HEAD + len(record.numpy()) + _FRAME_TAIL
        meter.advance()
    if offsets != shard.offsets:
        return "its records are not where the manifest says"
    return None


FEATURES = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.string),
    "id": tf.io.FixedLenFeature([], tf.string),
    "height": tf.io.FixedLenFeature([], tf.int64),
    "width": tf.io.FixedLenFeature([], tf.int64),
}


class _Job:
    """A shard to be written."""

    def __init__(self, split, file, examples, taxonomy):
        self.split = split
        self.file = file
        self.examples = examples
        self.taxonomy = taxonomy
        self.fingerprint = _hash(
            [
                FORMAT_VERSION,
                file,
                dataclasses.asdict(taxonomy),
                [[example.id, example.fingerprint] for example in examples],
            ]
        )


@contextlib.contextmanager
def _locked(folder):
    """Keeps other processes from writing to the folder at the same time; they wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write_shards(folder, jobs, workers, overwrite, progress, distribute):
    """Writes what is missing; gives a dict from file name to what `_write_shard` gives."""
    finished = _clear(folder, jobs, overwrite)
    left = [job for job in jobs if job.file not in finished]
    meter = _Progress(sum(len(job.examples) for job in left), progress)
    if distribute:
        distribute(functools.partial(_write_alone, folder), left)
        for job in left:
            finished[job.file], problems = _read_alone(folder, job)
            meter.problems += problems
        left = []
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = {job.file: pool.submit(_write_shard, folder, job, meter) for job in left}
        try:
            for file, future in futures.items():
                finished[file] = future.result()
        except BaseException:
            meter.stopped = True
            pool.shutdown(cancel_futures=True)
            raise
    meter.close()
    if meter.problems:
        shown = "; ".join(sorted(meter.problems)[:_MAX_PROBLEMS])
        more = "; and more" if len(meter.problems) > _MAX_PROBLEMS else ""
        raise DataError(
            f"Unusable files: {shown}{more}. Mend them or leave them out (--skip), and run again"
        )
    return finished


def _clear(folder, jobs, overwrite):
    """Removes what earlier runs left, except finished shards that are wanted; gives those."""
    unfinished = folder / _UNFINISHED
    wanted = {job.file: job for job in jobs}
    if overwrite:
        with contextlib.suppress(DataError):
            for split in _parse_manifest(folder).splits.values():
                for shard in split.shards:
                    (folder / shard.file).unlink(missing_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    finished = {}
    for path in unfinished.glob("*.json"):
        shard, file = json.loads(path.read_text()), folder / path.stem
        job = wanted.get(path.stem)
        known = job is not None and job.fingerprint == shard["fingerprint"] and not overwrite
        if known and file.exists() and file.stat().st_size == shard["bytes"]:
            finished[path.stem] = shard
        else:
            file.unlink(missing_ok=True)
            path.unlink()
    for path in unfinished.glob("*.tmp"):
        path.unlink()
    strange = [
        job.file for job in jobs if job.file not in finished and (folder / job.file).exists()
    ]
    if strange and not overwrite:
        raise DataError(
            f"{folder} holds files that another program wrote, such as {strange[0]}. Use another "
            "--output, or --overwrite"
        )
    unfinished.mkdir(exist_ok=True)
    return finished


def _write_shard(folder, job, meter):
    """Writes one shard; gives what the manifest needs of it as a dict, None if it failed."""
    # Two processes may be at the same shard: a runner repeats what seems to hang.
    unfinished = folder / _UNFINISHED / f"{job.file}.{uuid.uuid4().hex}.tmp"
    offsets, position, sizes, failed = [], 0, set(), False
    contents = []
    pixels = np.zeros(len(job.taxonomy.class_names) + 1, "int64")
    images = np.zeros_like(pixels)
    with tf.io.TFRecordWriter(str(unfinished)) as writer:
        for example in job.examples:
            if meter.stopped:
                return None
            try:
                record, size, counts, digest = _encode(example, job.taxonomy)
            except DataError as error:
                meter.report(str(error))
                failed = True
                continue
            writer.write(record)
            offsets.append(position)
            position += _FRAME_HEAD + len(record) + _FRAME_TAIL
            sizes.add(size)
            contents.append([example.id, *size, digest])
            pixels += counts
            images += counts > 0
            meter.advance()
    if failed:
        return None
    shard = {
        "file": job.file,
        "bytes": position,
        "sha256": _sha256(unfinished),
        "offsets": offsets,
        "sizes": sorted(sizes),
        "pixels": pixels.tolist(),
        "images": images.tolist(),
        "contents": contents,
        "fingerprint": job.fingerprint,
    }
    _replace_text(folder / _UNFINISHED / f"{job.file}.json", json.dumps(shard))
    os.replace(unfinished, folder / job.file)
    return shard


def _write_alone(folder, job):
    """Writes one shard in any process; what came of it is left in files, for `_read_alone`."""
    meter = _Progress(len(job.examples), False)
    _write_shard(folder, job, meter)
    if meter.problems:
        path = folder / _UNFINISHED / f"{job.file}.problems"
        _replace_text(path, json.dumps(meter.problems))


def _read_alone(folder, job):
    """Gives `(shard, problems)`, as `_write_alone` left them; the shard is None if it failed.

    Raises:
        DataError: if there is neither.
    """
    found = []
    for kind in ("json", "problems"):
        path = folder / _UNFINISHED / f"{job.file}.{kind}"
        found.append(json.loads(path.read_text()) if path.exists() else None)
    if found == [None, None]:
        raise DataError(f"The shard {job.file} was not written. Look at the log of its runner")
    if found[1]:
        path.unlink()
    return found[0], found[1] or []


def _encode(example, taxonomy):
    """Checks an example; gives `(record, (height, width), pixels of each class, digest)`."""
    image, labels, digest = read_checked(example, taxonomy)
    counts = np.bincount(labels.reshape(-1), minlength=256)
    num_classes = len(taxonomy.class_names)
    counts = np.append(counts[:num_classes], counts[IGNORE_LABEL])
    png = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()
    height, width = labels.shape
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
    ).SerializeToString(deterministic=True)
    return record, (height, width), counts, digest


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


def _hash(values):
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _replace_text(path, text):
    """Writes a file in one step."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def _write_manifest(manifest):
    values = {
        "format": FORMAT_VERSION,
        "num_classes": manifest.num_classes,
        "ignore_label": IGNORE_LABEL,
        **dataclasses.asdict(manifest),
    }
    folder = pathlib.Path(values.pop("folder"))
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    _replace_text(folder / MANIFEST, f"{{\n{lines}\n}}\n")


class _Progress:
    """A line that counts images; on a terminal it is overwritten. Collects problems."""

    def __init__(self, total, shown):
        self.stopped = False
        self.problems = []
        self._total = total
        self._done = 0
        self._shown = shown
        self._start = self._last = time.monotonic()
        self._lock = threading.Lock()

    def report(self, problem):
        """Notes a problem; at the sixth the work stops."""
        self.problems.append(problem)
        self.stopped = len(self.problems) > _MAX_PROBLEMS

    def advance(self):
        with self._lock:
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
