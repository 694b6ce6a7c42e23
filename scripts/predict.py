"""Labels images or a video with a SavedModel, or with a file for LiteRT or ONNX.

    python scripts/predict.py --saved-model model --input photos --output labels
    python scripts/predict.py --saved-model model --input drive.mp4 --output labels

What works on images of one size only resizes them to it, and the labels back to the image.

For each image STEM.jpg it writes STEM.png, one channel of class numbers from 0, and
STEM_overlay.png, the classes' colours over the image. A folder is searched with its subfolders,
and the output has the same subfolders; names that begin with a dot are left out. Images of any
kind are read as 8-bit RGB: grey is repeated, transparency dropped, and photos are turned upright
as their EXIF tag says.

Of a video STEM.mp4 it writes STEM_overlay.mp4, the colours over each frame, of the same size and
frame rate and without sound.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import pathlib
import time

import _common
from _progress import Progress

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--saved-model",
        required=True,
        metavar="PATH",
        help="what scripts/export.py wrote: a folder, or a file for LiteRT or ONNX",
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help=f"image, folder of images ({' '.join(_SUFFIXES)}), or video "
        f"({' '.join(_VIDEO_SUFFIXES)})",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    source, output = pathlib.Path(options.input), pathlib.Path(options.output)
    video = source.is_file() and source.suffix.lower() in _VIDEO_SUFFIXES
    target = plan_video(source, output) if video else None
    jobs = [] if video else plan(source, output)

    import tensorflow as tf

    from kseg import visualize
    from kseg.errors import UserError

    label, palette = load(pathlib.Path(options.saved_model))
    if video:
        return label_video(source, target, label, palette)

    def write(image, labels, label_file, overlay_file):
        visualize.write_png(label_file, labels)
        visualize.write_png(overlay_file, visualize.overlay(image, labels, palette))

    # Reading and writing go on while the model is at work.
    images = tf.data.Dataset.from_tensor_slices([str(image) for image, *_ in jobs]).map(
        lambda path: tf.numpy_function(read, [path], "uint8"), num_parallel_calls=2
    )
    unreadable, timed, start, writing = [], 0, None, collections.deque()
    progress = Progress(len(jobs))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for number, (job, image) in enumerate(zip(jobs, images.prefetch(2), strict=True)):
            path, *files = job
            image = image.numpy()
            if image.size:
                labels = label(image)
                writing.append(pool.submit(write, image, labels, *files))
                if len(writing) > 4:  # No more pictures wait in memory than that.
                    writing.popleft().result()
                timed += start is not None
                start = start or time.perf_counter()  # The first call compiles.
            else:
                unreadable.append(str(path))
            progress(number + 1)
        for job in writing:
            job.result()
    done = len(jobs) - len(unreadable)
    speed = f", {timed / (time.perf_counter() - start):.2f} a second" if timed else ""
    print(f"{done} images{speed}: {options.output}")
    if unreadable:
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        raise UserError(
            f"{len(unreadable)} of {len(jobs)} files are no readable images: "
            f"{', '.join(unreadable[:5])}{more}. The others are labelled"
        )
    return 0


def load(path):
    """Loads what is to label images.

    Args:
        path: `pathlib.Path` of a SavedModel, or of a file for LiteRT or ONNX.

    Returns:
        `(label, palette)`: function from a uint8 RGB array `(height, width, 3)` to class numbers,
        uint8 `(height, width)`, and the colours of the classes.
    """
    import tensorflow as tf

    from kseg import export, portable
    from kseg.evaluation.inference import predict

    if path.is_file():
        model = portable.load(path)
        return model.label, model.classes.palette
    model = export.load(path)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), "uint8")], autograph=False)
    def label(images):
        return predict(model, images, len(model.classes))

    return (lambda image: label(image[None])[0].numpy()), model.classes.palette


def plan_video(source, output):
    """Chooses the file to write for a video.

    Raises:
        UserError: if it is the video itself, or the output is no folder.
    """
    from kseg.errors import UserError

    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file. Use a folder for --output")
    target = output / f"{source.stem}_overlay.mp4"
    if target.resolve() == source.resolve():
        raise UserError(f"{target} would be overwritten. Use another folder for --output")
    return target


def label_video(source, target, label, palette):
    """Writes a video with the classes' colours over each frame.

    Args:
        source: `pathlib.Path` of a video.
        target: `pathlib.Path` of the `.mp4` to write; it is there only when it is complete.
        label: function from uint8 `(height, width, 3)` to class numbers `(height, width)`.
        palette: list of `[red, green, blue]`.

    Raises:
        UserError: if the video cannot be read or written.
    """
    import cv2
    import numpy as np

    from kseg import files, visualize
    from kseg.errors import UserError

    capture = cv2.VideoCapture(str(source))
    there, frame = capture.read()
    if not there:
        raise UserError(f"{source} is no readable video")
    height, width = frame.shape[:2]
    rate = capture.get(cv2.CAP_PROP_FPS)
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    progress = Progress(max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 1))
    count, start = 0, None
    with contextlib.ExitStack() as stack:
        stack.callback(capture.release)
        new = stack.enter_context(files.replace_file(target))
        # Where a file does not tell its frame rate: that of most.
        writer = cv2.VideoWriter(str(new), codec, rate if rate > 0 else 25.0, (width, height))
        stack.callback(writer.release)
        if not writer.isOpened():
            raise UserError(f"{target} cannot be written as a video of {width} x {height}")
        while there:
            image = np.ascontiguousarray(frame[..., ::-1])
            labels = label(image)
            writer.write(visualize.overlay(image, labels, palette)[..., ::-1])
            count += 1
            start = start or time.perf_counter()  # The first call compiles.
            progress(count)
            there, frame = capture.read()
    seconds = time.perf_counter() - start
    speed = f", {(count - 1) / seconds:.2f} a second" if count > 1 else ""
    print(f"{count} frames{speed}: {target}")
    return 0


def plan(source, output):
    """Finds the images and chooses the files to write.

    Args:
        source: `pathlib.Path` of an image or a folder.
        output: `pathlib.Path` of a folder, which need not exist.

    Returns:
        list of `(image, label_file, overlay_file)`, sorted.

    Raises:
        UserError: if there is no image, or a file to write is an input or that of two images.
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
        # The next call would take these labels for images.
        raise UserError(f"`--output` must be another folder than `--input`. Received: {output}")
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


def read(path):
    """Reads an image as uint8 RGB `(height, width, 3)`; an empty array if it is none."""
    import cv2
    import numpy as np

    try:
        data = np.fromfile(path, "uint8")
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):
        image = None
    if image is None:
        return np.zeros((0, 0, 3), "uint8")
    return np.ascontiguousarray(image[..., ::-1])


def _is_image(path, source, output):
    """Whether a file of the source folder is to be labelled: not where an earlier run wrote it."""
    parts = path.relative_to(source).parts
    hidden = any(part.startswith(".") for part in parts)
    inside = output.resolve() != source.resolve() and output.resolve() in path.resolve().parents
    return path.suffix.lower() in _SUFFIXES and path.is_file() and not hidden and not inside


if __name__ == "__main__":
    _common.run(main)
