"""Writing of TFRecord shards and their manifest.

    <folder>/manifest.json                   counts, classes, checksums, offsets of all records
             train-00000-of-00008.tfrecord   records as `pipelines.encoding` writes them

The folder is any path that `tf.io.gfile` accepts: local, gs://, s3://. Checksums cover every byte:
the manifest holds its own and those of the shards, and each record has one. A record also stores
its shard's key and its index in the shard, so that swapped shards are detected on reading. The
manifest is written last: without it there is no data set.

A shard is written to `.unfinished/<shard>.tmp`, described in `.unfinished/<shard>.json`, and then
renamed into place. If a run is killed, the next one resumes from the finished shards.

A data set that replaces another is written beside it, under unused names
(`train-00000-of-00008-2.tfrecord`): the old one stays complete until the new manifest atomically
replaces the old manifest. Then the old shards are deleted. `.unfinished/replaced.json` lists them,
so that the next run can delete what a killed run left behind.
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
from pipelines import channel_files, paths, tiles
from pipelines.channel_statistics import measure, merge, pixel_format_of
from pipelines.datasets.dataset import IGNORE_LABEL
from pipelines.datasets.label_files import count_values
from pipelines.errors import DataError
from pipelines.examples import NothingLabeledError, read_checked
from pipelines.manifest import (
    CHANNELS_VERSION,
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
_EVALUATION_SPLITS = ("val", "test")
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
    channels=None,
    num_shards=None,
    workers=None,
    overwrite=False,
    progress=True,
    describe=None,
    distribute=None,
):
    """Writes a data set as records, unless an earlier run has already done so.

    Args:
        folder: output folder, a path that `tf.io.gfile` accepts; created if missing. Files in it
            that do not belong to a data set are left alone.
        name: str, the data set's name.
        taxonomy: `Taxonomy`.
        splits: dict from split to a list of examples. Each has an `id`, a `fingerprint`
            (JSON-serializable, everything that its content depends on) and a `read()` that returns
            the bytes of the image and of the label PNG. A `pipelines.tiles.TileExample` in which
            all pixels are ignored is left out.
        options: JSON-serializable dict, stored in the manifest, with the result of
            `pipelines.tiles.describe` as `tiles`.
        image_format: `"original"` stores images unchanged, bit for bit. `"jpeg"` converts images
            in other formats to JPEGs that are cheap to decode in windows, except in `val` and
            `test`, which are scored on the original images.
        quality: int, 1 to 100, JPEG quality.
        value_range, turned_masks: as for `pipelines.examples.read_checked`.
        channels: int, number of channels of the images, whose values are stored unchanged, with
            their statistics in the manifest; None: images are stored as 8-bit RGB.
        num_shards: int, files per split; default: about 128 images per file.
        workers: int, threads (decoding and encoding run outside Python); default: all cores.
        overwrite: bool, replace an existing data set. It is kept until the new one is complete, so
            there must be space for both.
        progress: bool, print progress on stderr.
        describe: function called after writing, with the finished `Manifest` and a dict from split
            to a list of `[id, height, width, digest]`, one per image; not called if nothing was
            written.
        distribute: function `(function, items)` that calls `function` on each item at least once,
            in any process that can access the folder; default: threads of this process.

    Returns:
        `Manifest`.

    Raises:
        DataError: if the folder holds other data, if examples are unusable (the message names the
            first few, the folder's `unusable_files.txt` all of them), or if all pixels are ignored.
            No new manifest is written then.
        OSError, tf.errors.OpError: if the folder cannot be written.
        ValueError: if `image_format` or `quality` is not one of the values above.
    """
    if image_format not in ("original", "jpeg") or not 1 <= quality <= 100:
        raise ValueError(
            "`image_format` must be 'original' or 'jpeg', and `quality` 1 to 100. Received: "
            f"{image_format=}, {quality=}"
        )
    check_range(value_range)
    folder = str(folder)
    reading = {"value_range": value_range, "turned_masks": turned_masks, "channels": channels}
    if channels is not None:
        if image_format != "original":
            raise DataError(
                f"{option('image_format', image_format)} converts images to 8-bit RGB, and "
                f"{option('channels', channels)} keeps their values. Leave out one of them"
            )
        examples = itertools.chain(*_training_first(splits).values())
        reading["dtype"] = channel_files.find_dtype(examples, channels)
    reading = {name: value for name, value in reading.items() if value is not None}
    jpeg_quality = quality if image_format == "jpeg" else None
    jobs = _divide_into_shards(splits, taxonomy, jpeg_quality, reading, num_shards)
    fingerprint = hash_of([name, dataclasses.asdict(taxonomy), [job.key for job in jobs]])

    paths.make_folder(folder)
    with _locked(folder):
        _delete_replaced(folder)
        if exists(folder) and not overwrite:
            manifest = _read_finished(folder, fingerprint)
            paths.remove(paths.join(folder, _UNFINISHED))
            if progress:
                print(f"{folder} is complete already: nothing to do", file=sys.stderr)
            return manifest
        workers = workers or available_cores()
        shards = _write_shards(folder, jobs, workers, overwrite, progress, distribute)
        _check_labels(splits, shards.values())
        left_out = {split: set() for split in splits}
        for job in jobs:
            left_out[job.split].update(shards[job.file].get("left_out", ()))
        _check_left_out(splits, left_out)
        cut = tiles.describe(splits, left_out)
        options = {**(options or {}), **({} if cut is None else {"tiles": cut})}
        manifest = Manifest(
            dataset=name,
            class_names=taxonomy.class_names,
            palette=taxonomy.palette,
            categories=taxonomy.categories,
            groups=taxonomy.groups,
            options=json.loads(json.dumps(options)),
            fingerprint=fingerprint,
            splits={
                split: _describe_split([shards[job.file] for job in jobs if job.split == split])
                for split in splits
            },
            value_range=None if channels else _value_range(value_range, shards.values()),
            folder=folder,
            **_pixels(jobs, shards, reading),
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


def _divide_into_shards(splits, taxonomy, jpeg_quality, reading, num_shards):
    """Divides the examples of each split into shards of about equal size.

    Args:
        splits, taxonomy, num_shards: as for `write`.
        jpeg_quality: int, quality of JPEGs that replace other formats in training splits; None:
            images are stored unchanged.
        reading: dict, arguments of `pipelines.examples.read_checked`.

    Returns:
        list of `_Job`.

    Raises:
        DataError: if two examples of a split have the same id.
    """
    jobs = []
    for split, examples in splits.items():
        if len({example.id for example in examples}) < len(examples):
            raise DataError(f"The ids of split {split!r} must be unique")
        quality = None if split in _EVALUATION_SPLITS else jpeg_quality
        count = num_shards or -(-len(examples) // _IMAGES_PER_SHARD)
        count = max(1, min(count, len(examples)))
        for i, part in enumerate(np.array_split(np.arange(len(examples)), count)):
            file = f"{split}-{i:05d}-of-{count:05d}.tfrecord"
            part = [examples[j] for j in part]
            jobs.append(_Job(split, file, part, taxonomy, quality, reading))
    return jobs


def _read_finished(folder, fingerprint):
    """Reads the manifest of a complete data set.

    Raises:
        DataError: if it has another fingerprint, or was written by an earlier version.
    """
    manifest = read_manifest(folder)
    if manifest.format < FORMAT_VERSION:
        raise DataError(
            f"{folder} was prepared by an earlier version of kseg (format {manifest.format}). It "
            f"can be used as it is. Use {option('overwrite', True)} to prepare it again, or "
            f"another {option('output')}"
        )
    if manifest.fingerprint != fingerprint:
        raise DataError(
            f"{folder} holds {manifest.dataset!r}, made from other files or with other options. "
            f"Use {option('overwrite', True)} to replace it, or another {option('output')}"
        )
    return manifest


def _describe_split(shards):
    """Builds the manifest's entry of a split from the descriptions of its shards."""
    sizes = {tuple(size) for shard in shards for size in shard["sizes"]}
    return Split(
        num_images=sum(len(shard["offsets"]) for shard in shards),
        image_size=list(sizes.pop()) if len(sizes) == 1 else None,
        pixels=np.sum([shard["pixels"] for shard in shards], axis=0).tolist(),
        images=np.sum([shard["images"] for shard in shards], axis=0).tolist(),
        shards=[
            Shard(**{f.name: shard[f.name] for f in dataclasses.fields(Shard)}) for shard in shards
        ],
        content=hash_of([record for shard in shards for record in shard["stored"]]),
    )


def _training_first(splits):
    """Orders splits so that those with training images come first."""
    training = {n: part for n, part in splits.items() if n not in _EVALUATION_SPLITS and part}
    return {**training, **splits}


def _pixels(jobs, shards, reading):
    """Returns `format` and `pixels` of the manifest as a dict; empty for 8-bit RGB."""
    if reading.get("channels") is None:
        return {}
    found = {
        split: merge(shards[job.file]["statistics"] for job in jobs if job.split == split)
        for split in dict.fromkeys(job.split for job in jobs)
    }
    training = merge(s for name, s in found.items() if name not in _EVALUATION_SPLITS)
    everything = merge(found.values())
    if everything is None:
        raise DataError("There are no images")
    pixels = pixel_format_of(
        training or everything, everything, reading["dtype"], reading.get("value_range")
    )
    return {"format": CHANNELS_VERSION, "pixels": pixels.to_dict()}


def available_cores():
    """Returns the number of cores that this process may use; on macOS and Windows, of all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Job:
    """A shard to be written.

    Attributes:
        file: str, the file name that is part of the job's key.
        target: str, name of the file to write; differs from `file` if that name is taken.
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
        version = CHANNELS_VERSION if "channels" in reading else FORMAT_VERSION
        self.key = hash_of([version, file, taxonomy, quality, reading, contents])[:16]


class _Work:
    """The state shared by the threads that write shards.

    Attributes:
        meter: `kseg.progress.Progress`.
        problems: list of str, the problems of all unusable examples, collected in a single run.
        stopped: bool, tells the threads to stop writing.
    """

    def __init__(self, meter):
        self.meter = meter
        self.problems = []
        self.stopped = False

    def report(self, problem, example):
        """Adds a problem to the list; of the tiles of a file only the first one."""
        file = problem.partition(": ")[0]
        if not tiles.is_tile(example) or not any(p.startswith(f"{file}: ") for p in self.problems):
            self.problems.append(problem)


@contextlib.contextmanager
def _locked(folder):
    """Locks a local folder against other writing processes, which wait for the lock."""
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
    """Writes the missing shards; returns a dict from file name to `_write_shard`'s result."""
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
            f"Unusable files: {shown}. Fix them or leave them out ({option('skip')}), and run again"
        )
    return finished


def _shortened(problems):
    """Formats the first few problems for an error message, grouped by problem.

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
            shown.append((", ".join(some) + more + what).split(". "))
            left -= len(some)
    # Advice at the end of all messages is given only once.
    from_the_end = zip(*(sentences[:0:-1] for sentences in shown), strict=False)
    common = list(itertools.takewhile(lambda same: len(set(same)) == 1, from_the_end))[::-1]
    shown = [". ".join(sentences[: len(sentences) - len(common)]) for sentences in shown]
    rest = sum(map(len, list(files_with.values())[len(shown) :]))
    listed = "; ".join([*shown, *([f"and {rest} more"] if rest else [])])
    return ". ".join([listed, *(same[0] for same in common)])


def _write_in_threads(folder, jobs, workers, meter):
    """Writes shards.

    Returns:
        `(shards, problems)`: dict from file name to the result of `_write_shard`; list of str.
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
    """Returns the range of deep images for the manifest; None without range or deep images."""
    if declared is not None:
        return list(declared)
    # Without a declared range, only the full range is accepted, see `pipelines.pictures`.
    return list(FULL_RANGE) if any(shard.get("deep") for shard in shards) else None


def _check_labels(splits, shards):
    """Raises a DataError if there are label files but every pixel is ignored."""
    examples = [example for part in splits.values() for example in part]
    if any(sum(shard["pixels"][:-1]) for shard in shards) or not examples:
        return
    if all(getattr(example, "label", example) is None for example in examples):
        return
    raise DataError(
        f"All pixels of all {len(examples)} labels are ignored: nothing can be learned or scored. "
        "Look at the values of the masks and of the class table; 255 is ignored unless a row has it"
    )


def _check_left_out(splits, left_out):
    """Raises a DataError if all tiles of a split are left out."""
    for split, examples in splits.items():
        if examples and len(left_out[split]) == len(examples):
            raise DataError(
                f"All pixels of all {len(examples)} tiles of the split {split!r} are ignored. "
                f"Divide the images in another way ({option('split')})"
            )


def _clear(folder, jobs, overwrite):
    """Removes what earlier runs left unfinished and returns the finished shards that are reused.

    Keeps a complete data set that will be replaced. Chooses target files for the other jobs.
    """
    unfinished = paths.join(folder, _UNFINISHED)
    wanted = {job.file: job for job in jobs}
    in_use = _shard_files(folder)
    paths.remove(paths.join(folder, _PROBLEMS_FILE))
    finished = {}
    # Listed, not globbed: a pattern would interpret brackets in the folder's name.
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
    """Returns the names of the shards of the data set in a folder, a set; empty without one."""
    try:
        splits = parse_manifest(folder).splits.values()
    except (DataError, OSError):
        return set()
    return {shard.file for split in splits for shard in split.shards}


def _numbered(file, number):
    """Returns a shard's file name with its number set or replaced; 1 is omitted from the name."""
    stem = re.sub(r"(-of-\d{5})(-\d+)?\.tfrecord$", r"\1", file)
    return f"{stem}.tfrecord" if number == 1 else f"{stem}-{number}.tfrecord"


def _is_sound(path, shard, *, thoroughly):
    """Returns True if a shard has its full size and, if `thoroughly`, the right checksum."""
    try:
        if paths.size(path) != shard["bytes"]:
            return False
        return not thoroughly or file_sha256(path) == shard["sha256"]
    except (FileNotFoundError, KeyError):
        return False


def _delete_replaced(folder):
    """Deletes the shards of a data set that has been replaced by another."""
    path = paths.join(folder, _UNFINISHED, _REPLACED_FILE)
    try:
        replaced = set(parse_json(paths.read_bytes(path)))
    except FileNotFoundError:
        return
    except (ValueError, TypeError):
        replaced = set()
    in_use = _shard_files(folder)
    if in_use and not replaced & in_use:  # Otherwise the new manifest was never written.
        for name in replaced:
            if isinstance(name, str) and os.path.basename(name) == name:
                paths.remove(paths.join(folder, name))
    paths.remove(path)


def _read_description(path):
    """Reads the description of a finished shard; returns an empty dict if it is damaged."""
    try:
        shard = parse_json(paths.read_bytes(path))
    except ValueError:
        return {}
    return shard if isinstance(shard, dict) else {}


def _write_shard(folder, job, work):
    """Writes one shard and returns its description as a dict, or None if it failed."""
    import tensorflow as tf  # Imported here: complete or wrong data is detected without it.

    # Two processes may write the same shard: a runner restarts a task that seems to hang.
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
    """Writes a shard's records; returns its description, or None if an example is unusable."""
    import tensorflow as tf

    offsets, position, sizes, classes, failed = [], 0, set(), [], False
    contents, stored, deep, statistics, left_out = [], [], False, None, []
    pixels = np.zeros(len(job.taxonomy.class_names) + 1, "int64")
    images = np.zeros_like(pixels)
    with tf.io.TFRecordWriter(path) as writer:
        for example in job.examples:
            if work.stopped:
                break
            try:
                record, labels, digest, code, is_deep, measured = _encode(
                    example, job, len(offsets)
                )
            except NothingLabeledError:
                left_out.append(example.id)
                work.meter.advance()
                continue
            except DataError as error:
                work.report(str(error), example)  # Continue, to report all problems.
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
            statistics = merge([statistics, measured])
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
        "statistics": statistics,
        "left_out": left_out,
    }


def _write_alone(folder, job):
    """Writes one shard in any process and leaves the outcome in files, for `_read_alone`."""
    work = _Work(Progress("writing", shown=False))
    _write_shard(folder, job, work)
    if work.problems:
        path = paths.join(folder, _UNFINISHED, f"{job.file}.problems")
        paths.write_bytes(path, json.dumps(work.problems).encode())


def _read_alone(folder, job):
    """Returns `(shard, problems)` as left by `_write_alone`; the shard is None if it failed.

    Raises:
        DataError: if `_write_alone` left neither.
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
    """Checks an example and encodes it as a record.

    Returns:
        `(record, labels, digest, stored, deep, statistics)`: labels uint8 `(height, width)`;
        `digest`, a hash of the decoded picture; `stored`, a hash of image and labels as stored in
        the record; `deep`, whether the image file has more than 8 bits per channel; `statistics`,
        of `pipelines.channel_statistics.measure`, None for 8-bit RGB.
    """
    from pipelines.encoding import encode_jpeg, encode_record

    found = read_checked(example, job.taxonomy, **job.reading)
    image, orientation = found.image, found.orientation
    keeps_values = not isinstance(image, bytes)
    if job.quality and not image.startswith(_JPEG):
        image, orientation = encode_jpeg(found.pixels, job.quality), 1
    origin = {"id": example.id, "shard": job.key, "index": number}
    record = encode_record(image, found.labels, orientation=orientation, **origin)
    stored = hashlib.sha256(image)
    statistics = None
    if keeps_values:
        stored.update(json.dumps([image.shape, image.dtype.name]).encode())
        statistics = measure(image, found.empty)
    stored.update(json.dumps([example.id, orientation, found.labels.shape]).encode())
    stored.update(np.ascontiguousarray(found.labels).data)
    return record, found.labels, found.digest, stored.hexdigest(), found.deep, statistics


def classes_in(labels):
    """Lists the classes that occur in the labels, in ascending order."""
    counts = count_values(labels)
    return np.flatnonzero(counts[:IGNORE_LABEL]).tolist()
