"""TFRecord shards with a manifest: write, read, verify.

    <folder>/manifest.json                   counts, classes, checksums, offsets of all records
             train-00000-of-00008.tfrecord   records as `pipelines.encoding` writes them

The folder is any path of `tf.io.gfile`: local, gs://, s3://. Every byte is under a checksum: the
manifest holds its own, and those of the shards; a record its own. A record also tells which shard
it is of and its number there, so that shards that were exchanged are noticed as they are read. The
manifest is written last: without it there is no data set.

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
import sys
import threading
import time
import uuid

import numpy as np
import tensorflow as tf

from pipelines import datasets, paths
from pipelines.datasets.dataset import IGNORE_LABEL
from pipelines.datasets.label_files import count_values
from pipelines.encoding import (
    decode_image,
    decode_labels,
    encode_jpeg,
    encode_record,
    parse_record,
)
from pipelines.errors import DataError
from pipelines.examples import read_checked
from pipelines.pictures import check_range

FORMAT_VERSION = 4
# Format 3 had no orientations: a missing one is read as 1, see `pipelines.encoding`.
_READ_VERSIONS = (3, FORMAT_VERSION)
MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished"
_IMAGES_PER_SHARD = 128
_KEPT_SPLITS = ("val", "test")
_PROBLEMS_FILE = "unusable_files.txt"
_SHOWN_PROBLEMS = 5
_AGAIN = "Prepare the data again, with --overwrite"
# A record is framed by its length (8 bytes), the length's CRC (4) and the content's CRC (4).
_FRAME_HEAD, _FRAME_TAIL = 12, 4


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records.

    Attributes:
        file: str, name in the folder.
        key: str, a hash of what it was made from; its records hold it too.
        bytes: int, its size.
        sha256: str, of the whole file.
        offsets: list of int, where each record begins.
        classes: list of lists of int, the classes that occur in each image.
    """

    file: str
    key: str
    bytes: int
    sha256: str
    offsets: list[int]
    classes: list[list[int]]


@dataclasses.dataclass(frozen=True)
class Split:
    """The part of a data set that is trained or evaluated on.

    Attributes:
        num_images: int.
        image_size: `[height, width]` if all images have that size, else None.
        pixels: list of int, pixels of each class, then of the ignored ones.
        images: list of int, images in which each class occurs, then those with ignored pixels.
        shards: list of `Shard`.
        content: str, a hash of all images and labels as they are stored, in order, whatever files
            they were made from and how many shards they fill; None in manifests of earlier
            versions.
    """

    num_images: int
    image_size: list[int] | None
    pixels: list[int]
    images: list[int]
    shards: list[Shard]
    content: str | None = None


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
        format: int, the version of kseg's record format.
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
    format: int = FORMAT_VERSION

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
    image_format="original",
    quality=95,
    value_range=None,
    turned_masks=None,
    num_shards=None,
    workers=None,
    overwrite=False,
    progress=True,
    describe=None,
    distribute=None,
):
    """Writes a data set as records, or finds that this was done before.

    Args:
        folder: where to, a path of `tf.io.gfile`; made if missing. Files in it that are not of a
            data set are left alone.
        name: str, the data set's name.
        taxonomy: `Taxonomy`.
        splits: dict from split to a list of examples. Each has an `id`, a `fingerprint` (what
            its content depends on, as JSON can hold it), and `read()`, which gives the bytes of
            the image and of the label PNG.
        options: dict that JSON can hold, stored in the manifest.
        image_format: `"original"`: images are stored as they are, bit for bit. `"jpeg"`: those that
            are no JPEGs are stored as such, with what makes windows of them cheap to decode; but
            not those of `val` and `test`, whose scores are to be those of the originals.
        quality: int, 1 to 100, of the JPEGs.
        value_range, turned_masks: as for `pipelines.examples.read_checked`.
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
        DataError: if the folder holds other data, if examples are unusable (the first few are
            named, all in the folder's `unusable_files.txt`), or if all pixels are ignored. Nothing
            that looks finished is left then.
        ValueError: if `image_format` or `quality` is none of these.
    """
    if image_format not in ("original", "jpeg") or not 1 <= quality <= 100:
        raise ValueError(
            "`image_format` must be 'original' or 'jpeg', and `quality` 1 to 100. Received: "
            f"{image_format=}, {quality=}"
        )
    check_range(value_range)
    folder = str(folder)
    jobs = []
    reading = {"value_range": value_range, "turned_masks": turned_masks}
    reading = {name: value for name, value in reading.items() if value is not None}
    for split, examples in splits.items():
        if len({example.id for example in examples}) < len(examples):
            raise DataError(f"The ids of split {split!r} must be unique")
        stored_quality = quality if image_format == "jpeg" and split not in _KEPT_SPLITS else None
        count = num_shards or -(-len(examples) // _IMAGES_PER_SHARD)
        count = max(1, min(count, len(examples)))
        for i, part in enumerate(np.array_split(np.arange(len(examples)), count)):
            file = f"{split}-{i:05d}-of-{count:05d}.tfrecord"
            part = [examples[j] for j in part]
            jobs.append(_Job(split, file, part, taxonomy, stored_quality, reading))
    fingerprint = _hash([name, dataclasses.asdict(taxonomy), [job.key for job in jobs]])

    try:
        tf.io.gfile.makedirs(folder)
    except tf.errors.OpError as error:
        raise DataError(f"{folder} must be a folder that can be written: {error.message}") from None
    with _locked(folder):
        if exists(folder) and not overwrite:
            manifest = read_manifest(folder)
            if manifest.format != FORMAT_VERSION:
                raise DataError(
                    f"{folder} was prepared by an earlier version of kseg (format "
                    f"{manifest.format}). It can be used as it is. Use --overwrite to prepare it "
                    "again, or another --output"
                )
            if manifest.fingerprint != fingerprint:
                raise DataError(
                    f"{folder} holds {manifest.dataset!r}, made from other files or with other "
                    "options. Use --overwrite to replace it, or another --output"
                )
            if progress:
                print(f"{folder} is complete already: nothing to do", file=sys.stderr)
            return manifest
        workers = workers or _available_cores()
        shards = _write_shards(folder, jobs, workers, overwrite, progress, distribute)
        _check_labels(splits, shards.values())
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
                content=_hash([record for shard in mine for record in shard["stored"]]),
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
            folder=folder,
        )
        _write_manifest(manifest)
        tf.io.gfile.rmtree(_join(folder, _UNFINISHED))
        if describe:
            contents = {split: [] for split in splits}
            for job in jobs:
                contents[job.split] += shards[job.file]["contents"]
            describe(manifest, contents)
    return manifest


def exists(folder):
    """Whether a folder holds a prepared data set, sound or not."""
    return tf.io.gfile.exists(_join(folder, MANIFEST))


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
            file = _join(folder, shard.file)
            try:
                size = tf.io.gfile.stat(file).length
            except tf.errors.NotFoundError:
                raise DataError(f"The shard {file} is missing. {_AGAIN}") from None
            if size != shard.bytes:
                raise DataError(
                    f"The shard {file} must have {shard.bytes} bytes and has {size}. {_AGAIN}"
                )
    return manifest


def find_lost_shard(folder):
    """Says which shard of a folder cannot be read any more, as a line; None if all are there.

    Nothing is opened, which might block: only sizes are looked at.
    """
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return str(error)
    except tf.errors.OpError as error:
        return " ".join(error.message.split())
    for split in manifest.splits.values():
        for shard in split.shards:
            file = _join(folder, shard.file)
            if paths.is_local(file) and not os.path.isfile(file):
                return f"The shard {file} is no file any more. {_AGAIN}"
    return None


def _parse_manifest(folder):
    """Reads a manifest without a look at its shards."""
    path = _join(folder, MANIFEST)
    try:
        content = _read(path)
    except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError):
        name = os.path.basename(str(folder))
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
        values = json.loads(content)
        version = values.pop("format")
        if version not in _READ_VERSIONS:
            raise DataError(
                f"{path} has format {version}, this version reads "
                f"{' and '.join(map(str, _READ_VERSIONS))}. {_AGAIN}"
            )
        for derived in ("num_classes", "ignore_label"):
            values.pop(derived)
        if values.pop("checksum") != _hash(values):
            raise DataError(f"{path} was changed after it was written. {_AGAIN}")
        splits = {
            name: Split(**{**split, "shards": [Shard(**shard) for shard in split["shards"]]})
            for name, split in values.pop("splits").items()
        }
        return Manifest(**values, splits=splits, folder=str(folder), format=version)
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
            file = _join(folder, shard.file)
            try:
                problem = _find_problem(file, shard, manifest.num_classes, meter)
            except tf.errors.OpError as error:
                problem = error.message
            if problem:
                raise DataError(f"The shard {file} is corrupt: {problem}. {_AGAIN}")
    meter.close()
    return manifest


def _find_problem(file, shard, num_classes, meter):
    """Says what is wrong with a shard; None if nothing is."""
    if file_sha256(file) != shard.sha256:
        return "its checksum is not that of the manifest"
    offsets, position = [], 0
    for number, record in enumerate(tf.data.TFRecordDataset(file)):
        example = parse_record(record)
        name = example["id"].numpy().decode()
        if example["shard"] != shard.key or example["index"] != number:
            return f"record {name!r} belongs elsewhere"
        try:
            image, labels = decode_image(example), decode_labels(example).numpy()
        except tf.errors.OpError as error:
            return f"record {name!r} cannot be decoded: {error.message}"
        size = (int(example["height"]), int(example["width"]))
        if not tuple(image.shape[:2]) == labels.shape == size:
            return f"the sizes in record {name!r} differ"
        if (labels[labels != IGNORE_LABEL] >= num_classes).any():
            return f"record {name!r} has labels beyond the classes"
        if shard.classes[number] != _classes_in(labels):
            return f"the classes in record {name!r} are not those of the manifest"
        offsets.append(position)
        position += _FRAME_HEAD + len(record.numpy()) + _FRAME_TAIL
        meter.advance()
    if offsets != shard.offsets:
        return "its records are not where the manifest says"
    return None


def _available_cores():
    """Cores that this process may use; macOS and Windows know only how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Job:
    """A shard to be written."""

    def __init__(self, split, file, examples, taxonomy, quality, reading):
        self.split = split
        self.file = file
        self.examples = examples
        self.taxonomy = taxonomy
        self.quality = quality
        self.reading = reading
        contents = [[example.id, example.fingerprint] for example in examples]
        taxonomy = dataclasses.asdict(taxonomy)
        self.key = _hash([FORMAT_VERSION, file, taxonomy, quality, reading, contents])[:16]


@contextlib.contextmanager
def _locked(folder):
    """Keeps other processes from writing to a local folder at the same time; they wait."""
    if not os.path.isdir(folder):
        yield
        return
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
        problems = sorted(meter.problems)
        path = _join(folder, _PROBLEMS_FILE)
        paths.write_bytes(path, "".join(f"{problem}\n" for problem in problems).encode())
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        if len(problems) > _SHOWN_PROBLEMS:
            shown += (
                f"; and {len(problems) - _SHOWN_PROBLEMS} more. All {len(problems)} are listed in "
                f"{path}"
            )
        raise DataError(
            f"Unusable files: {shown}. Mend them or leave them out (--skip), and run again"
        )
    return finished


def _check_labels(splits, shards):
    """Refuses data of which nothing is labelled, though there are label files."""
    examples = [example for found in splits.values() for example in found]
    if any(sum(shard["pixels"][:-1]) for shard in shards) or not examples:
        return
    if all(getattr(example, "label", example) is None for example in examples):
        return
    raise DataError(
        f"All pixels of all {len(examples)} labels are ignored: nothing can be learned or scored. "
        "Look at the values of the masks and of the class table; 255 is ignored unless a row has it"
    )


def _clear(folder, jobs, overwrite):
    """Removes what earlier runs left, except finished shards that are wanted; gives those."""
    unfinished = _join(folder, _UNFINISHED)
    wanted = {job.file: job for job in jobs}
    if overwrite:
        with contextlib.suppress(DataError):
            for split in _parse_manifest(folder).splits.values():
                for shard in split.shards:
                    _remove(_join(folder, shard.file))
        _remove(_join(folder, MANIFEST))
    _remove(_join(folder, _PROBLEMS_FILE))
    finished = {}
    # Listed, not matched: a pattern would read brackets in the folder's name.
    left = tf.io.gfile.listdir(unfinished) if tf.io.gfile.exists(unfinished) else []
    for path in [_join(unfinished, name) for name in left if name.endswith(".json")]:
        name = os.path.basename(path).removesuffix(".json")
        shard = _read_description(path)
        file, job = _join(folder, name), wanted.get(name)
        known = job is not None and job.key == shard.get("key") and not overwrite
        if known and tf.io.gfile.exists(file) and tf.io.gfile.stat(file).length == shard["bytes"]:
            finished[name] = shard
        else:
            _remove(file)
            _remove(path)
    for name in left:
        if name.endswith((".tmp", ".problems")):
            _remove(_join(unfinished, name))
    strange = [
        job.file
        for job in jobs
        if job.file not in finished and tf.io.gfile.exists(_join(folder, job.file))
    ]
    if strange and not overwrite:
        raise DataError(
            f"{folder} holds files that another program wrote, such as {strange[0]}. Use another "
            "--output, or --overwrite"
        )
    tf.io.gfile.makedirs(unfinished)
    return finished


def _read_description(path):
    """What is known of a finished shard; empty if the file is damaged."""
    try:
        shard = json.loads(_read(path))
    except ValueError:
        return {}
    return shard if isinstance(shard, dict) else {}


def _write_shard(folder, job, meter):
    """Writes one shard; gives what the manifest needs of it as a dict, None if it failed."""
    # Two processes may be at the same shard: a runner repeats what seems to hang.
    unfinished = _join(folder, _UNFINISHED, f"{job.file}.{uuid.uuid4().hex}.tmp")
    offsets, position, sizes, classes, failed = [], 0, set(), [], False
    contents, stored = [], []
    pixels = np.zeros(len(job.taxonomy.class_names) + 1, "int64")
    images = np.zeros_like(pixels)
    with tf.io.TFRecordWriter(unfinished) as writer:
        for number, example in enumerate(job.examples):
            if meter.stopped:
                break
            try:
                record, labels, digest, code = _encode(example, job, number)
            except DataError as error:
                meter.report(str(error))
                failed = True
                continue
            writer.write(record)
            offsets.append(position)
            position += _FRAME_HEAD + len(record) + _FRAME_TAIL
            counts = count_values(labels)
            counts = np.append(counts[: len(pixels) - 1], counts[IGNORE_LABEL])
            sizes.add(labels.shape)
            classes.append(_classes_in(labels))
            contents.append([example.id, *labels.shape, digest])
            stored.append(code)
            pixels += counts
            images += counts > 0
            meter.advance()
    if failed or meter.stopped:
        _remove(unfinished)
        return None
    shard = {
        "file": job.file,
        "key": job.key,
        "bytes": position,
        "sha256": file_sha256(unfinished),
        "offsets": offsets,
        "classes": classes,
        "sizes": sorted(sizes),
        "pixels": pixels.tolist(),
        "images": images.tolist(),
        "contents": contents,
        "stored": stored,
    }
    described = json.dumps(shard).encode()
    paths.write_bytes(_join(folder, _UNFINISHED, f"{job.file}.json"), described)
    tf.io.gfile.rename(unfinished, _join(folder, job.file), overwrite=True)
    return shard


def _write_alone(folder, job):
    """Writes one shard in any process; what came of it is left in files, for `_read_alone`."""
    meter = _Progress(len(job.examples), False)
    _write_shard(folder, job, meter)
    if meter.problems:
        path = _join(folder, _UNFINISHED, f"{job.file}.problems")
        paths.write_bytes(path, json.dumps(meter.problems).encode())


def _read_alone(folder, job):
    """Gives `(shard, problems)`, as `_write_alone` left them; the shard is None if it failed.

    Raises:
        DataError: if there is neither.
    """
    found = []
    for kind in ("json", "problems"):
        path = _join(folder, _UNFINISHED, f"{job.file}.{kind}")
        found.append(json.loads(_read(path)) if tf.io.gfile.exists(path) else None)
    if found == [None, None]:
        raise DataError(f"The shard {job.file} was not written. Look at the log of its runner")
    if found[1]:
        _remove(path)
    return found[0], found[1] or []


def _encode(example, job, number):
    """Checks an example.

    Returns:
        `(record, labels, digest, stored)`: labels uint8 `(height, width)`; `digest` is of the
        picture, `stored` of image and labels as the record holds them.
    """
    found = read_checked(example, job.taxonomy, **job.reading)
    image, orientation = found.image, found.orientation
    if job.quality and not tf.io.is_jpeg(image):
        image, orientation = encode_jpeg(found.pixels, job.quality), 1
    place = {"id": example.id, "shard": job.key, "index": number}
    record = encode_record(image, found.labels, orientation=orientation, **place)
    stored = hashlib.sha256(image)
    stored.update(json.dumps([example.id, orientation, found.labels.shape]).encode())
    stored.update(np.ascontiguousarray(found.labels).data)
    return record, found.labels, found.digest, stored.hexdigest()


def _classes_in(labels):
    """The classes that occur, ascending; list of int."""
    counts = count_values(labels)
    return np.flatnonzero(counts[:IGNORE_LABEL]).tolist()


def _join(*parts):
    return os.path.join(*map(str, parts))


def _remove(path):
    """Removes a file, which may be missing."""
    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(path)


def _read(path):
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def file_sha256(path):
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _hash(values):
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _write_manifest(manifest):
    values = dataclasses.asdict(manifest)
    folder, version = values.pop("folder"), values.pop("format")
    values = {
        "format": version,
        "checksum": _hash(values),
        "num_classes": manifest.num_classes,
        "ignore_label": IGNORE_LABEL,
        **values,
    }
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    paths.write_bytes(_join(folder, MANIFEST), f"{{\n{lines}\n}}\n".encode())


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
        """Notes a problem. The work goes on, so that all are found at once."""
        self.problems.append(problem)

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
