"""Labels images or a video with a run, a SavedModel, or a file for LiteRT or ONNX.

    python scripts/predict.py --run runs/quickstart --input photos --output labels
    python scripts/predict.py --saved-model model --input photos --output labels
    python scripts/predict.py --saved-model model --input drive.mp4 --output labels

For a model with a fixed image size (LiteRT, some ONNX files), each image is resized to that size
and its labels are resized back.

For each image STEM.jpg it writes STEM.png, one channel of class indices from 0, and
STEM_overlay.png, the classes' colors over the image. A folder is searched with its subfolders,
which the output mirrors; names that begin with a dot are skipped. Images are read by
`pipelines.pictures`, as in the preparation of data: 8-bit RGB, rotated upright according to EXIF,
gray repeated, transparency dropped. Images that cannot be read, or need more memory than is
available, are listed with the reason; the others are labeled.

For a video STEM.mp4 (or an animated GIF) it writes STEM_overlay.mp4, the colors over each frame,
upright, without sound, with the same frame rate (at most 1 % of a frame off) and size. For an odd
size, the last row or column is repeated, because the codec supports only even sizes.
"""

import collections
import concurrent.futures
import contextlib
import errno
import functools
import itertools
import math
import pathlib
import sys
import tempfile
import time

from kseg.commands import checking, console

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
_READ_AHEAD = 3  # Images that wait in memory.
_SPARE = 1.5  # Factor on the estimated memory, for workspace of operations beyond their results.
_MOST_LOST = 1000  # Consecutive unreadable frames after which the video is taken to have ended.


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    console.add_model(parser)
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help=f"image, folder of images ({' '.join(_SUFFIXES)}), or video "
        f"({' '.join(_VIDEO_SUFFIXES)})",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    console.add_value_range(
        parser,
        ", as for prepare_data.py; default: those of the training data, which the model knows",
    )
    options = parser.parse_args(arguments)
    console.check_model(parser, options)
    return options


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = parse_arguments(arguments)
    checkpoint = (options.checkpoint or "best") if options.run else None
    predict(
        options.run or options.saved_model,
        options.input,
        options.output,
        checkpoint=checkpoint,
        value_range=options.range,
    )
    return 0


def predict(model, source, output, *, checkpoint=None, value_range=None):
    """Labels images or a video and writes class indices and overlays.

    Args:
        model: path of a model written by `kseg.export`: a SavedModel folder, or a file for LiteRT
            or ONNX; with `checkpoint`, the folder of a run.
        source: image, folder of images, or video.
        output: folder to write to.
        checkpoint: `"best"`, `"latest"` or a step of a run; None: `model` is not a run.
        value_range: `(low, high)`, the values mapped to black and white in images of more than 8
            bits per channel; None: those of the training data.

    Returns:
        list of `pathlib.Path`, the written images of class indices; for a video, the overlay.

    Raises:
        UserError: if an input cannot be read or an output cannot be written, or some images could
            not be labeled. The other images are still labeled.
    """
    for name, value in (("model", model), ("source", source), ("output", output)):
        checking.check_path(name, value)
    checking.check_checkpoint("checkpoint", checkpoint)
    checking.check_numbers("value_range", value_range, "(low, high), or None", length=2)
    source, output = pathlib.Path(source), pathlib.Path(output)
    video = source.is_file() and (source.suffix.lower() in _VIDEO_SUFFIXES or _is_animation(source))
    target = plan_video(source, output) if video else None
    jobs = [] if video else plan(source, output)

    from kseg import files
    from kseg.errors import UserError
    from kseg.progress import Progress
    from pipelines import pictures

    value_range = value_range and tuple(value_range)
    pictures.check_range(value_range)
    if video:
        files.check_file(target)
    else:
        files.check_contents(output)
    if checkpoint is None:
        check_model(pathlib.Path(model))
    with Progress("loading the model"):
        if checkpoint is None:
            label, palette, needs, known_range = load(pathlib.Path(model))
        else:
            label, palette, needs, known_range = load_run(model, checkpoint)
    if value_range is not None and known_range not in (None, value_range):
        print(
            f"note: the model was trained with --range {_shown(known_range)}, not "
            f"{_shown(value_range)}",
            file=sys.stderr,
        )
    value_range = value_range or known_range
    if video:
        label_video(source, target, label, palette, needs)
        return [target]
    files.make_folder(output)
    unlabeled = find_too_large(jobs, needs)
    left = [job for job in jobs if job[0] not in unlabeled]
    label_images(left, len(jobs), label, palette, value_range, unlabeled, output)
    if unlabeled:
        shown = [f"{path} ({reason})" for path, reason in unlabeled.items()]
        more = f"; and {len(shown) - 5} more" if len(shown) > 5 else ""
        others = ". The others are labeled" if len(shown) < len(jobs) else ""
        raise UserError(
            f"{len(shown)} of {len(jobs)} images could not be labeled: "
            f"{'; '.join(shown[:5])}{more}{others}"
        )
    return [label_file for _, label_file, _ in jobs]


def label_images(jobs, total, label, palette, value_range, unlabeled, output):
    """Labels images; reading and writing overlap with inference.

    Args:
        jobs: list of `(image, label_file, overlay_file)`.
        total: int, number of images, including skipped ones.
        label: function from uint8 `(height, width, 3)` to class indices `(height, width)`.
        palette: list of `[red, green, blue]`.
        value_range: as for `pipelines.pictures.read`.
        unlabeled: dict from a skipped image to the reason; images that fail are added.
        output: folder, named in the last line of output.
    """
    import tensorflow as tf

    from kseg.evaluation import drawing
    from kseg.progress import Progress

    def write(image, labels, label_file, overlay_file):
        drawing.write_png(label_file, labels)
        drawing.write_png(overlay_file, drawing.overlay(image, labels, palette))

    def finish(path, written):
        try:
            written.result()
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # A full disk, for example, affects all images.
                raise
            unlabeled[path] = "its name is too long for that of its overlay"

    timed, start, writing, reading = 0, None, collections.deque(), collections.deque()
    waiting = iter(jobs)
    with (
        Progress("labeling", total) as progress,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        progress.update(len(unlabeled))
        while True:
            for job in itertools.islice(waiting, _READ_AHEAD - len(reading)):
                reading.append((job, pool.submit(read, job[0], value_range)))
            if not reading:
                break
            (path, *files), image = reading.popleft()
            image, reason = image.result()
            if image is not None:
                try:
                    labels = label(image)
                except tf.errors.ResourceExhaustedError:
                    reason = f"{image.shape[1]} x {image.shape[0]} pixels need more memory"
                else:
                    writing.append((path, pool.submit(write, image, labels, *files)))
                    if len(writing) > 4:  # Limits the number of pictures waiting in memory.
                        finish(*writing.popleft())
                    timed += start is not None
                    start = start or time.perf_counter()  # The first call compiles.
            if reason:
                unlabeled[path] = reason
            progress.advance()
        for job in writing:
            finish(*job)
    speed = f", {timed / (time.perf_counter() - start):.2f} a second" if timed else ""
    print(f"{total - len(unlabeled)} images{speed}: {output}")


def find_too_large(jobs, needs):
    """Finds and reports images that need more memory than is available, before any work.

    Args:
        jobs: list of `(image, ...)`.
        needs: as returned by `load`.

    Returns:
        dict from image to the reason.
    """
    from pipelines import pictures

    if needs is None:
        return {}
    sizes = {image: pictures.size_of_file(image) for image, *_ in jobs}
    reasons = {}
    # Largest first: once one fits, smaller ones need no check.
    for size in sorted({s for s in sizes.values() if s}, key=lambda s: -s[0] * s[1]):
        reason = too_large(size, needs)
        if reason is None:
            break
        reasons[size] = reason
    reasons_by_image = {image: reasons[size] for image, size in sizes.items() if size in reasons}
    for image, reason in reasons_by_image.items():
        print(f"{image}: {reason}", file=sys.stderr)
    return reasons_by_image


def too_large(size, needs):
    """Explains why an image of `(height, width)` cannot be labeled; returns None if it can."""
    from kseg.serving import memory

    shown = f"{size[1]} x {size[0]} pixels"
    if math.prod(size) < 1 << 20:
        return None
    needed, free = needs(size), memory.available()
    if needed is None or free is None:
        return None
    if needed == float("inf"):
        return f"{shown} are too many for this network: a map of features has over 2^31 elements"
    # Bytes of the image, its labels, and its overlay.
    needed = _SPARE * needed + 16 * math.prod(size)
    if needed <= free:
        return None
    return f"{shown} need about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free"


def check_model(path):
    """Rejects a path that is not a usable model, using only checks that need no loading.

    Args:
        path: `pathlib.Path`, as for `load`.

    Raises:
        UserError: if it is missing or damaged, or the package that runs it is not installed.
    """
    from kseg.serving import checks

    if path.is_file():
        checks.check_network_file(path)
    else:
        checks.read_classes(path)


def load(path):
    """Loads the model that labels images.

    Args:
        path: `pathlib.Path` of a SavedModel, or of a file for LiteRT or ONNX.

    Returns:
        `(label, palette, needs, value_range)`: function from a uint8 RGB array `(height, width,
        3)` to class indices, uint8 `(height, width)`; the colors of the classes; function from
        `(height, width)` to the memory in bytes that the network needs for an image of that size,
        see `kseg.serving.memory.estimate`, or None if unknown, as on a GPU; and the range of deep
        images, or None, see `kseg.serving.export_saved_model`.
    """
    from kseg.serving.labeling import labeler
    from kseg.serving.loading import load as load_network

    model = load_network(path)
    label = labeler(model)
    return (
        lambda image: label(image[None])[0],
        model.classes.palette,
        memory_needs(model),
        model.value_range,
    )


def memory_needs(model):
    """Returns the function from an image size to the memory of a network; see `load`.

    Args:
        model: result of `kseg.load`.
    """
    if not hasattr(model, "signature"):
        return None

    import tensorflow as tf

    from kseg.serving import memory

    if tf.config.list_physical_devices("GPU"):
        return None
    return functools.partial(memory.estimate, model.signature)


def load_run(path, checkpoint):
    """Loads the network of a run by way of a temporary SavedModel; see `load`.

    Args:
        path: folder of a run.
        checkpoint: as for `kseg.runs.Run.checkpoint`.
    """
    with saved_run(path, checkpoint) as model:
        return load(model)


@contextlib.contextmanager
def saved_run(path, checkpoint):
    """Yields a temporary SavedModel of a run's network.

    Args:
        path: folder of a run.
        checkpoint: as for `kseg.runs.Run.checkpoint`.
    """
    from kseg.runs import Run

    run = Run.open(path)
    run.checkpoint(checkpoint)

    from kseg.serving import export_saved_model

    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "model"
        segmenter = run.segmenter(checkpoint)
        export_saved_model(segmenter, model, run.classes, value_range=run.value_range)
        yield model


def _shown(value_range):
    return " ".join(f"{value:g}" for value in value_range)


def plan_video(source, output):
    """Chooses the file to write for a video.

    Raises:
        UserError: if the file would be the source video itself, or the output is not a folder.
    """
    from kseg.errors import UserError

    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file. Use a folder for --output")
    target = output / f"{source.stem}_overlay.mp4"
    if target.resolve() == source.resolve():
        raise UserError(f"{target} would be overwritten. Use another folder for --output")
    return target


def label_video(source, target, label, palette, needs):
    """Writes a video with the classes' colors over each frame.

    Args:
        source: `pathlib.Path` of a video.
        target: `pathlib.Path` of the `.mp4` to write; the file appears only once it is complete.
        label: function from uint8 `(height, width, 3)` to class indices `(height, width)`.
        palette: list of `[red, green, blue]`.
        needs: as returned by `load`.

    Raises:
        UserError: if the video cannot be read or written; or, after writing it, if some frames
            could not be read.
    """
    import cv2
    import numpy as np

    from kseg import files
    from kseg.errors import UserError
    from kseg.evaluation import drawing
    from kseg.progress import Progress

    capture = cv2.VideoCapture(str(source))
    # Rotate frames upright: the default depends on the version of OpenCV.
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    has_frame, frame = capture.read()
    if not has_frame:
        state = "has no frame that can be read" if capture.isOpened() else "is no readable video"
        raise UserError(f"{source} {state}. Convert it to another format")
    height, width = frame.shape[:2]
    if needs is not None and (reason := too_large((height, width), needs)):
        raise UserError(f"{source} cannot be labeled: {reason}")
    even = height + height % 2, width + width % 2
    rate, told = frame_rate(capture.get(cv2.CAP_PROP_FPS))
    promised = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    count, lost, start, overlay = 0, 0, None, None
    with contextlib.ExitStack() as stack:
        stack.callback(capture.release)
        progress = stack.enter_context(Progress("labeling", promised, unit="frames"))
        new = stack.enter_context(files.replace_file(target))
        writer = cv2.VideoWriter(str(new), codec, rate, even[::-1])
        stack.callback(writer.release)
        if not writer.isOpened():
            raise UserError(
                f"{target} cannot be written as a video of {width} x {height}, {rate:g} frames a "
                "second"
            )
        gap = 0
        while True:
            if has_frame:
                if frame.shape[:2] != (height, width):
                    raise UserError(
                        f"A video must have one size. {source} has {width} x {height} at first, "
                        f"and frame {count + gap + 1} has {frame.shape[1]} x {frame.shape[0]}"
                    )
                # Keeps later frames in time.
                for _ in range(gap):
                    writer.write(overlay)
                lost, gap = lost + gap, 0
                image = np.ascontiguousarray(frame[..., ::-1])
                overlay = drawing.overlay(image, label(image), palette)[..., ::-1]
                missing = even[0] - height, even[1] - width
                overlay = np.pad(overlay, [(0, missing[0]), (0, missing[1]), (0, 0)], "edge")
                writer.write(overlay)
                count += 1
                start = start or time.perf_counter()  # The first call compiles.
                progress.update(count + lost)
            else:
                gap += 1
                if count + lost + gap > promised or gap > _MOST_LOST:
                    break
            has_frame, frame = capture.read()
    seconds = time.perf_counter() - start
    speed = f", {(count - 1) / seconds:.2f} a second" if count > 1 else ""
    print(f"{count} frames{speed}: {target}")
    if even != (height, width):
        print(f"{width} x {height} became {even[1]} x {even[0]}: the codec needs even sizes")
    if not told:
        print(f"the video does not tell its frame rate: written with {rate:g} a second")
    if lost:
        raise UserError(
            f"{lost} of {count + lost} frames of {source} cannot be read. In {target} each repeats "
            "the one before"
        )
    # Some formats only estimate the number of frames.
    if promised > 1.02 * count + 1:
        raise UserError(
            f"{source} ends after {count} of {promised} frames: it is cut off or damaged there. "
            f"{target} has those {count}"
        )


def frame_rate(rate):
    """Chooses the frame rate to write, which MPEG-4 stores as a fraction of 16-bit integers.

    Args:
        rate: float, frames per second according to the video; may be invalid.

    Returns:
        `(rate, told)`: the nearest rate that can be written, and True; or 25 and False if the
        video does not state a valid rate.
    """
    if not (math.isfinite(rate) and 0 < rate < 1 << 16):
        return 25.0, False
    digits = next((d for d in (3, 2, 1) if rate * 10**d < 65_535), 0)
    return max(round(rate, digits), 0.001), True


def plan(source, output):
    """Finds the input images and chooses the output files.

    Args:
        source: `pathlib.Path` of an image or a folder.
        output: `pathlib.Path` of a folder, which need not exist.

    Returns:
        list of `(image, label_file, overlay_file)`, sorted.

    Raises:
        UserError: if there is no image, an output file is also an input, or two images would be
            written to the same file.
    """
    from kseg.errors import UserError

    if source.is_dir():
        root, images = source, sorted(p for p in source.rglob("*") if _is_image(p, source, output))
        if not images:
            raise UserError(f"There are no images ({' '.join(_SUFFIXES)}) in {source}")
    elif source.exists():
        root, images = source.parent, [source]
    else:
        raise UserError(f"There is no image or folder {source}")
    if source.is_dir() and output.resolve() == source.resolve():
        # The next call would mistake these labels for input images.
        raise UserError(f"--output must be another folder than --input. Received: {output}")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file. Use a folder for --output")
    inputs = {image.resolve() for image in images}
    writers, jobs = {}, []
    for image in images:
        stem = output / image.relative_to(root).with_suffix("")
        files = [stem.with_name(f"{stem.name}{ending}.png") for ending in ("", "_overlay")]
        for file in files:
            if file.resolve() in inputs:
                raise UserError(f"{file} would be overwritten. Use another folder for --output")
            if file in writers:
                raise UserError(
                    f"{writers[file]} and {image} would both be written to {file}. Rename one"
                )
            writers[file] = image
        jobs.append((image, *files))
    return jobs


def read(path, value_range=None):
    """Reads an image.

    Args:
        path: `pathlib.Path`.
        value_range: as for `pipelines.pictures.read`.

    Returns:
        `(image, reason)`: uint8 RGB `(height, width, 3)` and None; or None and the reason why the
        image cannot be read.
    """
    from pipelines import paths, pictures
    from pipelines.errors import DataError

    try:
        return pictures.read(paths.read_bytes(path), value_range).pixels, None
    except OSError as error:
        return None, error.strerror
    except DataError as error:
        return None, str(error)


def _is_animation(path):
    """Returns True for a GIF with several frames."""
    from PIL import Image

    if path.suffix.lower() != ".gif":
        return False
    try:
        with Image.open(path, formats=["GIF"]) as image:
            return image.n_frames > 1
    except (OSError, SyntaxError, ValueError, EOFError):
        return False


def _is_image(path, source, output):
    """Returns True for an image in the source folder that no earlier prediction wrote."""
    parts = path.relative_to(source).parts
    hidden = any(part.startswith(".") for part in parts)
    inside = output.resolve() != source.resolve() and output.resolve() in path.resolve().parents
    return path.suffix.lower() in _SUFFIXES and path.is_file() and not hidden and not inside
