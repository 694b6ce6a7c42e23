"""Labeling of images, one or a folder of them, for `kseg predict`."""

import collections
import concurrent.futures
import difflib
import errno
import functools
import hashlib
import json
import math
import os
import pathlib
import time
import typing

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif",
)  # fmt: skip
RECORD = "predictions.json"
LEGEND = "legend.png"
NO_DATA = 255  # The label of pixels without data, see `pipelines.no_data`.
# Files of an image beside `STEM.png`, the class indices.
ENDINGS = {
    "overlay": "_overlay.png",
    "colors": "_colors.png",
    "confidence": "_confidence.png",
    "probabilities": "_probabilities.npy",
}
_NO_MEMORY = "it needs more memory than there is"
_READ_AHEAD = 3  # Images read ahead regardless of their size.
_PIXELS_AHEAD = 1 << 25  # Total pixels up to which more images are read ahead.
_WRITE_BEHIND = 4  # Batches whose files may still be in writing.
_MAX_BATCH = 8  # Images in a batch if no size is given,
_BATCH_PIXELS = 1 << 20  # and their total pixels.


class Job(typing.NamedTuple):
    """An image to label.

    Attributes:
        image: `pathlib.Path`.
        files: dict from `"labels"` and keys of `ENDINGS` to the `pathlib.Path` to write.
        tiles: the same for the files of an image in tiles, see `kseg.commands.predict_tiles`; empty
            if that is not possible: for other images than TIFF, and where a file would be the image
            itself.
    """

    image: pathlib.Path
    files: dict
    tiles: dict


def check_folder(output):
    """Checks that the output is a folder, or can become one.

    Raises:
        UserError: if it is a file, or is missing and has the suffix of an image or video.
    """
    from kseg.commands.predict_video import VIDEO_SUFFIXES
    from kseg.errors import UserError

    if output.is_dir():
        return
    if output.exists() or output.suffix.lower() in (*SUFFIXES, *VIDEO_SUFFIXES):
        is_or_reads = "is" if output.exists() else "has the name of"
        raise UserError(f"{output} {is_or_reads} a file. Use a folder for --output")


def plan(source, output, kinds=("overlay",), suffixes=SUFFIXES):
    """Finds the input images and chooses the output files.

    Args:
        source: `pathlib.Path` of an image or a folder.
        output: `pathlib.Path` of a folder, which need not exist.
        kinds: keys of `ENDINGS`, the files to write beside the class indices.
        suffixes: tuple of str, of the images in a folder.

    Returns:
        list of `Job`, sorted by image.

    Raises:
        UserError: if there is no image, an output file is also an input, or two images would be
            written to the same file.
    """
    from kseg.errors import UserError

    if source.is_dir():
        images = sorted(p for p in _walk(source) if _is_image(p, source, output, suffixes))
        root = source
        if not images:
            raise UserError(f"There are no images ({' '.join(suffixes)}) in {source}")
    elif source.exists():
        root, images = source.parent, [source]
    else:
        folder = source.parent if source.parent.is_dir() else pathlib.Path()
        near = difflib.get_close_matches(source.name, os.listdir(folder), n=1)
        hint = f". Did you mean {folder / near[0]}?" if near else ""
        raise UserError(f"There is no image or folder {source}{hint}")
    if source.is_dir() and output.resolve() == source.resolve():
        # The next call would mistake these labels for input images.
        raise UserError(f"--output must be another folder than --input. Received: {output}")
    check_folder(output)
    inputs = {_resolved(image) for image in images}
    writers, jobs = {}, []
    if "colors" in kinds:
        writers[output / LEGEND] = "the legend of the colors"
    for image in images:
        stem = output / image.relative_to(root).with_suffix("")
        files = {"labels": ".png", **{kind: ENDINGS[kind] for kind in kinds}}
        files = {kind: stem.with_name(f"{stem.name}{end}") for kind, end in files.items()}
        for file in files.values():
            if file.resolve() in inputs:
                raise UserError(f"{file} would be overwritten. Use another folder for --output")
            if file in writers:
                raise UserError(
                    f"{writers[file]} and {image} would both be written to {file}. Rename one"
                )
            writers[file] = image
        jobs.append(Job(image, files, _tiles(image, stem, kinds, inputs)))
    return jobs


def _tiles(image, stem, kinds, inputs):
    """Returns the `tiles` of a `Job`."""
    from kseg.commands import predict_tiles

    if image.suffix.lower() not in (".tif", ".tiff"):
        return {}
    endings = predict_tiles.ENDINGS.items()
    paths = {k: stem.with_name(f"{stem.name}{e}") for k, e in endings if k in ("labels", *kinds)}
    return {} if any(path.resolve() in inputs for path in paths.values()) else paths


def label_images(
    jobs,
    total,
    label,
    palette,
    value_range,
    unlabeled,
    output,
    *,
    batch_size=None,
    pixel_format=None,
):
    """Labels images in batches of equal size; reading and writing overlap with inference.

    An image that cannot be read or labeled does not affect other images, not even in its batch.

    Args:
        jobs: list of `Job`.
        total: int, number of images, including skipped ones.
        label: function from uint8 `(batch, height, width, 3)` to a dict from `"labels"`, and from
            `"confidence"` and `"probabilities"` if they are written, to arrays whose first axis is
            the batch.
        palette: list of `[red, green, blue]`.
        value_range: as for `pipelines.pictures.read`.
        unlabeled: dict from a skipped image to the reason; images that fail are added.
        output: folder, named in the last line of output.
        batch_size: int, images in a batch; None: 8, or as many as have 2^20 pixels in total.
        pixel_format: `kseg.pixel_format.PixelFormat` of the images that `label` takes; None: 8-bit
            RGB.
    """
    import numpy as np

    from kseg.progress import Progress

    writing, timed, start = collections.deque(), 0, None

    def finish(path, written):
        try:
            written.result()
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # A full disk, for example, affects all images.
                raise
            unlabeled[path] = "its name is too long for those of its files"

    with (
        Progress("labeling", total) as progress,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
        concurrent.futures.ThreadPoolExecutor(4) as writers,
    ):
        progress.update(total - len(jobs))
        reader = functools.partial(read_picture, value_range=value_range, pixel_format=pixel_format)
        images = _read_ahead(jobs, reader, pool, unlabeled, progress, batch_size)
        for batch in _batches(images, batch_size):
            for (job, picture), results in _label_batch(label, batch, unlabeled):
                if picture.empty is not None:
                    results["labels"] = np.where(picture.empty, NO_DATA, results["labels"])
                arguments = job.files, picture.pixels, results, palette, pixel_format
                written = writers.submit(write, *arguments)
                writing.append((job.image, written))
            timed += len(batch) if start is not None else 0
            start = start or time.perf_counter()  # The first call compiles.
            # Limits the number of pictures waiting in memory.
            while len(writing) > _WRITE_BEHIND * len(batch):
                finish(*writing.popleft())
            progress.advance(len(batch))
        for item in writing:
            finish(*item)
    speed = f", {timed / (time.perf_counter() - start):.2f} a second" if timed else ""
    count = total - len(unlabeled)
    print(f"{count} image{'' if count == 1 else 's'}{speed}: {output}")


def _read_ahead(jobs, reader, pool, unlabeled, progress, batch_size):
    """Yields `(job, picture)` in order, reading further images in the meantime."""
    from pipelines import pictures

    reading, pixels, most = collections.deque(), 0, 2 * (batch_size or _MAX_BATCH)
    waiting = collections.deque(jobs)
    while waiting or reading:
        while waiting and len(reading) < most:
            size = math.prod(pictures.size_of_file(waiting[0].image) or (0,))
            if len(reading) >= _READ_AHEAD and pixels + size > _PIXELS_AHEAD:
                break
            job = waiting.popleft()
            reading.append((job, size, pool.submit(reader, job.image)))
            pixels += size
        job, size, result = reading.popleft()
        pixels -= size
        picture, reason = result.result()
        if reason is None:
            yield job, picture
        else:
            unlabeled[job.image] = reason
            progress.advance()


def _batches(images, batch_size):
    """Yields lists of `(job, picture)` of equal size; `images` yields them one by one."""
    groups, waiting = {}, 0
    for job, picture in images:
        height, width = picture.pixels.shape[:2]
        most = batch_size or max(1, min(_MAX_BATCH, _BATCH_PIXELS // (height * width)))
        group = groups.setdefault((height, width), [])
        group.append((job, picture))
        waiting += height * width
        if len(group) >= most:
            waiting -= len(group) * height * width
            yield groups.pop((height, width))
        while waiting > _PIXELS_AHEAD:
            (height, width), group = next(iter(groups.items()))  # The oldest group.
            waiting -= len(group) * height * width
            yield groups.pop((height, width))
    yield from groups.values()


def _label_batch(label, batch, unlabeled):
    """Returns pairs of an item of a batch and its results; failed images are left out."""
    results = []
    reason = reason_of(
        lambda: results.append(label(_stack([picture.pixels for _, picture in batch])))
    )
    if reason is not None:
        if len(batch) > 1:
            return [pair for item in batch for pair in _label_batch(label, [item], unlabeled)]
        job, picture = batch[0]
        if reason == _NO_MEMORY:
            height, width = picture.pixels.shape[:2]
            reason = f"{width} x {height} pixels need more memory"
        unlabeled[job.image] = reason
        return []
    return [
        (item, {kind: values[i] for kind, values in results[0].items()})
        for i, item in enumerate(batch)
    ]


def reason_of(function, *arguments, **keywords):
    """Calls a function and explains why it could not label an image.

    Returns:
        str; None if it returned.

    Raises:
        OSError: which affects all images, such as that of a full disk.
    """
    import tensorflow as tf

    from pipelines.errors import DataError

    try:
        function(*arguments, **keywords)
    except DataError as error:
        return str(error)
    except OSError:
        raise
    except (tf.errors.ResourceExhaustedError, MemoryError):
        return _NO_MEMORY
    except Exception as error:  # Networks raise errors of any type.
        return f"the network failed on it ({' '.join(str(error).split())[:200]})"
    return None


def _stack(images):
    import numpy as np

    return images[0][None] if len(images) == 1 else np.stack(images)


def write(paths, image, results, palette, pixel_format=None):
    """Writes the files of an image, each as a whole.

    Args:
        paths: as `Job.files`.
        image: uint8 RGB `(height, width, 3)`, or an array of the pixel format.
        results: dict of uint8 `labels`, and of float32 `confidence` and `probabilities` if these
            are written.
        palette: list of `[red, green, blue]`.
        pixel_format: as for `label_images`.
    """
    import numpy as np

    from kseg import files
    from kseg.evaluation import drawing
    from kseg.pixel_format import to_picture

    labels = results["labels"]
    pictures = {
        "labels": lambda: labels,
        "overlay": lambda: drawing.overlay(to_picture(image, pixel_format), labels, palette),
        "colors": lambda: drawing.colorize(labels, palette),
        "confidence": lambda: to_bytes(results["confidence"]),
    }
    for kind, path in paths.items():
        if kind == "probabilities":
            with files.replace_file(path) as new:
                np.save(new, results["probabilities"].astype("float16"))
        else:
            drawing.write_png(path, pictures[kind]())


def to_bytes(probabilities):
    """Converts probabilities to uint8, 255 times the probability, rounded."""
    import numpy as np

    return np.rint(255 * np.clip(probabilities, 0, 1)).astype("uint8")


def find_too_large(jobs, needs):
    """Finds images that need more memory than is available, before any image is labeled.

    Args:
        jobs: list of `Job`.
        needs: function from `(height, width)` to bytes, or None if unknown.

    Returns:
        dict from image to the reason.
    """
    from kseg.commands.networks import too_large
    from pipelines import pictures

    sizes = {job.image: pictures.size_of_file(job.image) for job in jobs}
    reasons = {}
    # Largest first: once one fits, smaller ones need no check.
    for size in sorted({s for s in sizes.values() if s}, key=lambda s: -s[0] * s[1]):
        reason = too_large(size, needs) if needs is not None else None
        if reason is None and size[0] * size[1] > pictures.MAX_PIXELS:
            reason = f"{size[1]} x {size[0]} pixels are too many to read in one piece"
        if reason is None:
            break
        reasons[size] = reason
    return {image: reasons[size] for image, size in sizes.items() if size in reasons}


def digest(path):
    """Computes the SHA-256 of a file, or of all files of a folder with their names."""
    found = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        found.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def start(output, settings, classes, resume):
    """Writes the record of a call to its output folder, or checks the record of a resumed call.

    Args:
        output: `pathlib.Path` of the folder, which exists.
        settings: JSON-able dict of everything that the labels depend on.
        classes: `kseg.classes.Classes`.
        resume: bool, whether the call continues an earlier one.

    Returns:
        int, the time in nanoseconds since which files in the folder are those of these settings.

    Raises:
        UserError: if the resumed call had other settings, or its record is damaged.
    """
    from kseg import files
    from kseg.errors import UserError, option

    path = output / RECORD
    if resume and path.is_file():
        advice = f"Use another folder for {option('output')}, or leave {option('resume')} out"
        try:
            known = json.loads(path.read_text())["settings"]
            changed = sorted(key for key in {*known, *settings} if known[key] != settings[key])
        except (ValueError, KeyError, TypeError, UnicodeDecodeError):
            raise UserError(f"{path} is damaged, or of another version. {advice}") from None
        if changed:
            shown = "; ".join(f"{key}: {known[key]}, now {settings[key]}" for key in changed)
            raise UserError(
                f"{option('resume')} needs the settings of the earlier call. In {path} they are "
                f"different ({shown[:300]}). {advice}"
            )
        return path.stat().st_mtime_ns
    content = {
        "settings": settings,
        "classes": [
            {"id": i, "name": name, "color": list(map(int, color))}
            for i, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True))
        ],
    }
    files.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path.stat().st_mtime_ns


def is_finished(job, since):
    """Returns True if all files of an image are newer than `since` and than the image.

    Files of an image labeled in tiles count as well.

    Args:
        job: `Job`.
        since: as returned by `start`.
    """
    return any(_are_finished(paths, job.image, since) for paths in (job.files, job.tiles) if paths)


def _are_finished(paths, image, since):
    try:
        oldest = min(os.stat(path).st_mtime_ns for path in paths.values())
        return oldest >= since and oldest >= os.stat(image).st_mtime_ns
    except OSError:
        return False


def label_file(job):
    """Returns the file of class indices of a labeled image: the newer one, if both exist."""
    candidates = [paths["labels"] for paths in (job.files, job.tiles) if paths]
    return max(candidates, key=lambda path: path.stat().st_mtime_ns if path.exists() else 0)


def read(path, value_range=None, pixel_format=None):
    """Reads an image.

    Args:
        path: `pathlib.Path`.
        value_range: as for `pipelines.pictures.read`.
        pixel_format: `kseg.pixel_format.PixelFormat` that the image must have; None: it becomes
            8-bit RGB.

    Returns:
        `(image, reason)`: uint8 RGB `(height, width, 3)`, or an array of the pixel format, and
        None; or None and the reason why the image cannot be read.
    """
    picture, reason = read_picture(path, value_range, pixel_format)
    return None if picture is None else picture.pixels, reason


def read_picture(path, value_range=None, pixel_format=None):
    """Reads an image and the mask of its pixels without data.

    Args:
        path, value_range, pixel_format: as for `read`.

    Returns:
        `(picture, reason)`: `pipelines.pictures.Picture` and None; or None and the reason.
    """
    from pipelines import channel_files, paths, pictures
    from pipelines.errors import DataError

    try:
        content = paths.read_bytes(path)
        if pixel_format is not None:
            return channel_files.read_for(content, pixel_format), None
        return pictures.read(content, value_range), None
    except OSError as error:
        return None, error.strerror
    except DataError as error:
        return None, str(error)
    except MemoryError:
        return None, _NO_MEMORY


def _walk(folder):
    """Yields the files below a folder, also those that links lead to."""
    from pipelines.sources import leads_up

    for place, folders, names in os.walk(folder, followlinks=True):
        paths = [(name, os.path.join(place, name)) for name in folders]
        folders[:] = [n for n, path in paths if not (os.path.islink(path) and leads_up(path))]
        yield from (pathlib.Path(place, name) for name in names)


def _resolved(path):
    """`path.resolve()`, also of a link to itself."""
    return pathlib.Path(os.path.realpath(path))


def _is_image(path, source, output, suffixes):
    """Returns True for an image in the source folder that no earlier prediction wrote."""
    from pipelines.sources import is_hidden

    hidden = any(map(is_hidden, path.relative_to(source).parts))
    inside = output.resolve() != source.resolve() and output.resolve() in _resolved(path).parents
    # A link to a missing file is reported when it is read.
    is_file = path.is_file() or (path.is_symlink() and not path.exists())
    return path.suffix.lower() in suffixes and is_file and not hidden and not inside
