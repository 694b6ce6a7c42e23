"""TFRecord shards with a manifest: write, read, verify.

    <folder>/manifest.json                   counts, classes, checksums, offsets of all records
             train-00000-of-00008.tfrecord   records as `pipelines.encoding` writes them

The folder is any path of `tf.io.gfile`: local, gs://, s3://. Every byte is under a checksum: the
manifest holds its own, and those of the shards; a record its own. A record also tells which shard
it is of and its number there, so that shards that were exchanged are noticed as they are read. The
manifest is written last: without it there is no data set.

A shard is written as `.unfinished/<shard>.tmp`, described in `.unfinished/<shard>.json`, and then
renamed into place. So a run that was killed is continued by the next one, shard by shard.

A data set that replaces another is written beside it, under names that are free
(`train-00000-of-00008-2.tfrecord`): the old one stays whole until the new manifest takes the place
of the old one, in one step. Then its shards are deleted. `.unfinished/replaced.json` lists them, so
that a later run deletes what a killed one could not.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import os
import re
import sys
import uuid

import numpy as np

from kseg.errors import option
from kseg.json_text import parse_json
from kseg.pixel_depth import FULL_RANGE
from kseg.progress import Progress
from pipelines import paths
from pipelines.datasets.dataset import IGNORE_LABEL
from pipelines.datasets.label_files import count_values
from pipelines.errors import DataError
from pipelines.examples import read_checked
from pipelines.manifest import (
    FORMAT_VERSION,
    Manifest,
    Shard,
    Split,
    exists,
    file_sha256,
    hash_of,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from pipelines.pictures import check_range

_UNFINISHED = ".unfinished"
_IMAGES_PER_SHARD = 128
_KEPT_SPLITS = ("val", "test")
_PROBLEMS_FILE = "unusable_files.txt"
_REPLACED_FILE = "replaced.json"
_SHOWN_PROBLEMS = 5
_JPEG = b"\xff\xd8\xff"
# A record is framed by its length (8 bytes), the length's CRC (4) and the content's CRC (4).
FRAME_HEAD, FRAME_TAIL = 12, 4


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
        overwrite: bool, replace what another run wrote, which stays as it is until the new data set
            is complete; there must be space for both.
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
            new that looks finished is left then.
        OSError, tf.errors.OpError: if the folder cannot be written.
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
    fingerprint = hash_of([name, dataclasses.asdict(taxonomy), [job.key for job in jobs]])

    paths.make_folder(folder)
    with _locked(folder):
        _delete_replaced(folder)
        if exists(folder) and not overwrite:
            manifest = read_manifest(folder)
            if manifest.format != FORMAT_VERSION:
                raise DataError(
                    f"{folder} was prepared by an earlier version of kseg (format "
                    f"{manifest.format}). It can be used as it is. Use {option('overwrite', True)} "
                    f"to prepare it again, or another {option('output')}"
                )
            if manifest.fingerprint != fingerprint:
                raise DataError(
                    f"{folder} holds {manifest.dataset!r}, made from other files or with other "
                    f"options. Use {option('overwrite', True)} to replace it, or another "
                    f"{option('output')}"
                )
            paths.remove(paths.join(folder, _UNFINISHED))
            if progress:
                print(f"{folder} is complete already: nothing to do", file=sys.stderr)
            return manifest
        workers = workers or _available_cores()
        shards = _write_shards(folder, jobs, workers, overwrite, progress, distribute)
        _check_labels(splits, shards.values())
        described = {}
        for split in splits:
            own = [shards[job.file] for job in jobs if job.split == split]
            sizes = {tuple(size) for shard in own for size in shard["sizes"]}
            described[split] = Split(
                num_images=sum(len(shard["offsets"]) for shard in own),
                image_size=list(sizes.pop()) if len(sizes) == 1 else None,
                pixels=np.sum([shard["pixels"] for shard in own], axis=0).tolist(),
                images=np.sum([shard["images"] for shard in own], axis=0).tolist(),
                shards=[
                    Shard(**{f.name: shard[f.name] for f in dataclasses.fields(Shard)})
                    for shard in own
                ],
                content=hash_of([record for shard in own for record in shard["stored"]]),
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
            value_range=_value_range(value_range, shards.values()),
            folder=folder,
        )
        write_manifest(manifest)
        _delete_replaced(folder)
        paths.remove(paths.join(folder, _UNFINISHED))
        if describe:
            contents = {split: [] for split in splits}
            for job in jobs:
                contents[job.split] += shards[job.file]["contents"]
            describe(manifest, contents)
    return manifest


def _available_cores():
    """Cores that this process may use; macOS and Windows know only how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Job:
    """A shard to be written.

    Attributes:
        file: str, the name that its key knows.
        target: str, name of the file to write: another one where `file` is taken.
    """

    def __init__(self, split, file, examples, taxonomy, quality, reading):
        self.split = split
        self.file = self.target = file
        self.examples = examples
        self.taxonomy = taxonomy
        self.quality = quality
        self.reading = reading
        contents = [[example.id, example.fingerprint] for example in examples]
        taxonomy = dataclasses.asdict(taxonomy)
        self.key = hash_of([FORMAT_VERSION, file, taxonomy, quality, reading, contents])[:16]


class _Work:
    """The state that the threads that write shards share.

    Attributes:
        meter: `kseg.progress.Progress`.
        problems: list of str, what is wrong with examples. All are found in one go.
        stopped: bool, nothing more is to be written.
    """

    def __init__(self, meter):
        self.meter = meter
        self.problems = []
        self.stopped = False


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
    total = sum(len(job.examples) for job in left)
    if distribute:
        with Progress("writing on the runner", shown=progress):
            distribute(functools.partial(_write_alone, folder), left)
        problems = []
        for job in left:
            finished[job.file], of_job = _read_alone(folder, job)
            problems += of_job
    else:
        with Progress("reading, checking, writing", total, shown=progress) as meter:
            written, problems = _write_in_threads(folder, left, workers, meter)
        finished |= written
    if problems:
        problems = sorted(problems)
        path = paths.join(folder, _PROBLEMS_FILE)
        paths.write_bytes(path, "".join(f"{problem}\n" for problem in problems).encode())
        shown = _shortened(problems)
        if len(problems) > _SHOWN_PROBLEMS:
            shown += f". All {len(problems)} are listed in {path}"
        raise DataError(
            f"Unusable files: {shown}. Mend them or leave them out ({option('skip')}), and run "
            "again"
        )
    return finished


def _shortened(problems):
    """A few problems for a message; what is wrong with several files is said once.

    Args:
        problems: list of str, `<file>: <what is wrong>`.

    Returns:
        str.
    """
    files_with = {}
    for problem in problems:
        file, separator, what = problem.partition(": ")
        files_with.setdefault(separator + what, []).append(file)
    shown, left = [], _SHOWN_PROBLEMS
    for what, names in files_with.items():
        if left > 0:
            some = names[:left]
            more = f" and {len(names) - len(some)} more" if len(names) > len(some) else ""
            shown.append(", ".join(some) + more + what)
            left -= len(some)
    rest = sum(map(len, list(files_with.values())[len(shown) :]))
    return "; ".join([*shown, *([f"and {rest} more"] if rest else [])])


def _write_in_threads(folder, jobs, workers, meter):
    """Writes shards.

    Returns:
        `(shards, problems)`: a dict from file name to what `_write_shard` gives, and list of str.
    """
    work = _Work(meter)
    shards = {}
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = {job.file: pool.submit(_write_shard, folder, job, work) for job in jobs}
        try:
            for file, future in futures.items():
                shards[file] = future.result()
        except BaseException:
            work.stopped = True
            pool.shutdown(cancel_futures=True)
            raise
    return shards, work.problems


def _value_range(declared, shards):
    """The range of deep images for the manifest: as declared, or as all of them were found."""
    if declared is not None:
        return list(declared)
    # Without a declared range no other is read, see `pipelines.pictures`.
    return list(FULL_RANGE) if any(shard.get("deep") for shard in shards) else None


def _check_labels(splits, shards):
    """Refuses data of which nothing is labeled, though there are label files."""
    examples = [example for part in splits.values() for example in part]
    if any(sum(shard["pixels"][:-1]) for shard in shards) or not examples:
        return
    if all(getattr(example, "label", example) is None for example in examples):
        return
    raise DataError(
        f"All pixels of all {len(examples)} labels are ignored: nothing can be learned or scored. "
        "Look at the values of the masks and of the class table; 255 is ignored unless a row has it"
    )


def _clear(folder, jobs, overwrite):
    """Removes what earlier runs left unfinished, except shards that are wanted; gives those.

    A complete data set, which is to be replaced, stays. Chooses the files of the other jobs.
    """
    unfinished = paths.join(folder, _UNFINISHED)
    wanted = {job.file: job for job in jobs}
    in_use = _shard_files(folder)
    paths.remove(paths.join(folder, _PROBLEMS_FILE))
    finished = {}
    # Listed, not matched: a pattern would read brackets in the folder's name.
    left = paths.list_folder(unfinished)
    for path in [paths.join(unfinished, name) for name in left if name.endswith(".tfrecord.json")]:
        name = os.path.basename(path).removesuffix(".json")
        shard, job = _read_description(path), wanted.get(name)
        file = shard.get("file")
        if not isinstance(file, str) or _numbered(name, 1) != _numbered(file, 1):
            file = name
        known = job is not None and job.key == shard.get("key") and file not in in_use
        if known and _is_sound(paths.join(folder, file), shard, thoroughly=overwrite):
            finished[name] = shard
            continue
        if file not in in_use:
            paths.remove(paths.join(folder, file))
        paths.remove(path)
    for name in left:
        if name.endswith((".tmp", ".problems")):
            paths.remove(paths.join(unfinished, name))
    existing = set(paths.list_folder(folder))
    missing = [job for job in jobs if job.file not in finished]
    foreign = [job.file for job in missing if job.file in existing]
    if foreign and not overwrite:
        raise DataError(
            f"{folder} holds files that another program wrote, such as {foreign[0]}. Use another "
            f"{option('output')}, or {option('overwrite', True)}"
        )
    paths.make_folder(unfinished)
    for job in missing:
        names = (_numbered(job.file, number) for number in itertools.count(1))
        job.target = next(name for name in names if name not in existing)
    if replaced := sorted({*in_use, *foreign}):
        content = json.dumps(replaced).encode()
        paths.write_bytes(paths.join(unfinished, _REPLACED_FILE), content)
    return finished


def _shard_files(folder):
    """Names of the shards of the data set in a folder; set of str, empty if there is none."""
    try:
        splits = parse_manifest(folder).splits.values()
    except (DataError, OSError):
        return set()
    return {shard.file for split in splits for shard in split.shards}


def _numbered(file, number):
    """The name of a shard with a number, which replaces one that it has; 1 is not written."""
    stem = re.sub(r"(-of-\d{5})(-\d+)?\.tfrecord$", r"\1", file)
    return f"{stem}.tfrecord" if number == 1 else f"{stem}-{number}.tfrecord"


def _is_sound(path, shard, *, thoroughly):
    """Returns True if a shard exists in full size; `thoroughly`: with the right checksum."""
    try:
        if paths.size(path) != shard["bytes"]:
            return False
        return not thoroughly or file_sha256(path) == shard["sha256"]
    except (FileNotFoundError, KeyError):
        return False


def _delete_replaced(folder):
    """Deletes the shards of a data set that another one has taken the place of."""
    path = paths.join(folder, _UNFINISHED, _REPLACED_FILE)
    try:
        replaced = set(parse_json(paths.read_bytes(path)))
    except FileNotFoundError:
        return
    except (ValueError, TypeError):
        replaced = set()
    in_use = _shard_files(folder)
    if in_use and not replaced & in_use:  # Else the new manifest was never written.
        for name in replaced:
            if isinstance(name, str) and os.path.basename(name) == name:
                paths.remove(paths.join(folder, name))
    paths.remove(path)


def _read_description(path):
    """Reads the description of a finished shard; empty if the file is damaged."""
    try:
        shard = parse_json(paths.read_bytes(path))
    except ValueError:
        return {}
    return shard if isinstance(shard, dict) else {}


def _write_shard(folder, job, work):
    """Writes one shard; gives what the manifest needs of it as a dict, None if it failed."""
    import tensorflow as tf  # Here: what is complete, or wrong, is found without it.

    # Two processes may be at the same shard: a runner repeats what seems to hang.
    unfinished = paths.join(folder, _UNFINISHED, f"{job.file}.{uuid.uuid4().hex}.tmp")
    target = paths.join(folder, job.target)
    try:
        shard = _write_records(unfinished, job, work)
        if shard is not None:
            described = json.dumps(shard).encode()
            paths.write_bytes(paths.join(folder, _UNFINISHED, f"{job.file}.json"), described)
            paths.rename(unfinished, target)
        return shard
    except tf.errors.OpError as error:
        message = error.message.replace(unfinished, target)
        raise type(error)(error.node_def, error.op, message) from error
    finally:
        paths.remove(unfinished)  # A full disk needs the space.


def _write_records(path, job, work):
    """Writes the records of a shard; gives its description, None if an example is unusable."""
    import tensorflow as tf

    offsets, position, sizes, classes, failed = [], 0, set(), [], False
    contents, stored, deep = [], [], False
    pixels = np.zeros(len(job.taxonomy.class_names) + 1, "int64")
    images = np.zeros_like(pixels)
    with tf.io.TFRecordWriter(path) as writer:
        for number, example in enumerate(job.examples):
            if work.stopped:
                break
            try:
                record, labels, digest, code, is_deep = _encode(example, job, number)
            except DataError as error:
                work.problems.append(str(error))  # The others are looked at, too.
                failed = True
                continue
            writer.write(record)
            offsets.append(position)
            position += FRAME_HEAD + len(record) + FRAME_TAIL
            counts = count_values(labels)
            counts = np.append(counts[: len(pixels) - 1], counts[IGNORE_LABEL])
            sizes.add(labels.shape)
            classes.append(classes_in(labels))
            contents.append([example.id, *labels.shape, digest])
            stored.append(code)
            deep |= is_deep
            pixels += counts
            images += counts > 0
            work.meter.advance()
    if failed or work.stopped:
        return None
    return {
        "file": job.target,
        "key": job.key,
        "bytes": position,
        "sha256": file_sha256(path),
        "offsets": offsets,
        "classes": classes,
        "sizes": sorted(sizes),
        "pixels": pixels.tolist(),
        "images": images.tolist(),
        "contents": contents,
        "stored": stored,
        "deep": deep,
    }


def _write_alone(folder, job):
    """Writes one shard in any process; what came of it is left in files, for `_read_alone`."""
    work = _Work(Progress("writing", shown=False))
    _write_shard(folder, job, work)
    if work.problems:
        path = paths.join(folder, _UNFINISHED, f"{job.file}.problems")
        paths.write_bytes(path, json.dumps(work.problems).encode())


def _read_alone(folder, job):
    """Returns `(shard, problems)`, as `_write_alone` left them; the shard is None if it failed.

    Raises:
        DataError: if there is neither.
    """
    stored = []
    for kind in ("json", "problems"):
        path = paths.join(folder, _UNFINISHED, f"{job.file}.{kind}")
        stored.append(parse_json(paths.read_bytes(path)) if paths.exists(path) else None)
    if stored == [None, None]:
        raise DataError(f"The shard {job.file} was not written. Look at the log of its runner")
    if stored[1]:
        paths.remove(path)
    return stored[0], stored[1] or []


def _encode(example, job, number):
    """Checks an example.

    Returns:
        `(record, labels, digest, stored, deep)`: labels uint8 `(height, width)`; `digest` is of
        the picture, `stored` of image and labels as the record holds them; `deep` tells if the
        image's file has more than 8 bits a channel.
    """
    from pipelines.encoding import encode_jpeg, encode_record

    found = read_checked(example, job.taxonomy, **job.reading)
    image, orientation = found.image, found.orientation
    if job.quality and not image.startswith(_JPEG):
        image, orientation = encode_jpeg(found.pixels, job.quality), 1
    origin = {"id": example.id, "shard": job.key, "index": number}
    record = encode_record(image, found.labels, orientation=orientation, **origin)
    stored = hashlib.sha256(image)
    stored.update(json.dumps([example.id, orientation, found.labels.shape]).encode())
    stored.update(np.ascontiguousarray(found.labels).data)
    return record, found.labels, found.digest, stored.hexdigest(), found.deep


def classes_in(labels):
    """The classes that occur, ascending; list of int."""
    counts = count_values(labels)
    return np.flatnonzero(counts[:IGNORE_LABEL]).tolist()
