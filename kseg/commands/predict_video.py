"""Labeling of videos, for `kseg predict`."""

import contextlib
import math
import time

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
_MOST_LOST = 1000  # Consecutive unreadable frames after which the video is taken to have ended.
_BUFFERED = 1 << 17  # Bytes that OpenCV may hold back; it reports no error when they do not fit.


def is_video(path):
    """Returns True for a file that is a video by its suffix, or a GIF with several frames."""
    return path.suffix.lower() in VIDEO_SUFFIXES or _is_animation(path)


def plan_video(source, output):
    """Chooses the file to write for a video.

    Raises:
        UserError: if the file would be the source video itself, or the output is not a folder.
    """
    from kseg.commands.predict_folder import check_folder
    from kseg.errors import UserError

    check_folder(output)
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
        needs: function from `(height, width)` to bytes, or None; see `networks.memory_needs`.

    Raises:
        UserError: if the video cannot be read or written; or, after writing it, if some frames
            could not be read.
    """
    import cv2
    import numpy as np

    from kseg import files
    from kseg.commands.networks import too_large
    from kseg.errors import UserError
    from kseg.evaluation import drawing
    from kseg.progress import Progress

    capture = cv2.VideoCapture(str(source))
    # Rotate frames upright: the default depends on the version of OpenCV.
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    has_frame, first = capture.read()
    if not has_frame:
        state = "has no frame that can be read" if capture.isOpened() else "is no readable video"
        raise UserError(f"{source} {state}. Convert it to another format")
    size = first.shape[:2]
    if needs is not None and (reason := too_large(size, needs)):
        raise UserError(f"{source} cannot be labeled: {reason}")
    promised = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    rate, told = frame_rate(capture.get(cv2.CAP_PROP_FPS))
    count, lost, start, overlay = 0, 0, None, None
    with contextlib.ExitStack() as stack:
        stack.callback(capture.release)
        progress = stack.enter_context(Progress("labeling", promised, unit="frames"))
        new = stack.enter_context(files.replace_file(target))
        writer = _open_writer(new, target, size, rate)
        stack.callback(writer.release)
        for frame, gap in _frames(capture, first, promised):
            files.check_space(new, _BUFFERED)
            if frame.shape[:2] != size:
                raise UserError(
                    f"A video must have one size. {source} has {size[1]} x {size[0]} at first, and "
                    f"frame {count + lost + gap + 1} has {frame.shape[1]} x {frame.shape[0]}"
                )
            for _ in range(gap):  # Keeps later frames in time.
                writer.write(overlay)
            image = np.ascontiguousarray(frame[..., ::-1])
            overlay = drawing.overlay(image, label(image), palette)[..., ::-1]
            padding = [(0, length % 2) for length in size]
            overlay = np.pad(overlay, [*padding, (0, 0)], "edge")
            writer.write(overlay)
            count, lost = count + 1, lost + gap
            start = start or time.perf_counter()  # The first call compiles.
            progress.update(count + lost)
        writer.release()
        stored = _count_frames(new)
        reason = f"it has {stored} of {count + lost} frames"
        files.check_written(new, stored == count + lost, reason)
    seconds = time.perf_counter() - start
    speed = f", {(count - 1) / seconds:.2f} a second" if count > 1 else ""
    print(f"{count} frames{speed}: {target}")
    if size != (even := _even(size)):
        print(f"{size[1]} x {size[0]} became {even[1]} x {even[0]}: the codec needs even sizes")
    if not told:
        print(f"the video does not tell its frame rate: written with {rate:g} a second")
    _check_complete(source, target, count, lost, promised)


def _even(size):
    """Returns `(height, width)`, rounded up to even numbers, which MPEG-4 needs."""
    return tuple(length + length % 2 for length in size)


def _open_writer(file, target, size, rate):
    """Opens the video to write.

    Args:
        file: str or path, a temporary file.
        target: `pathlib.Path`, the name in messages.
        size: `(height, width)` of the frames.
        rate: float, frames per second.

    Returns:
        `cv2.VideoWriter`, which takes frames of `_even(size)`.

    Raises:
        UserError: if OpenCV cannot write such a video.
    """
    import cv2

    from kseg.errors import UserError

    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(file), codec, rate, _even(size)[::-1])
    if not writer.isOpened():
        raise UserError(
            f"{target} cannot be written as a video of {size[1]} x {size[0]}, {rate:g} frames a "
            "second"
        )
    return writer


def _frames(capture, first, promised):
    """Reads the frames of a video.

    Args:
        capture: `cv2.VideoCapture` of which the first frame has been read.
        first: that frame.
        promised: int, number of frames that the video claims to have.

    Yields:
        `(frame, gap)`: uint8 BGR `(height, width, 3)`, and the number of unreadable frames between
        it and the one before. Unreadable frames at the end are left out.
    """
    yield first, 0
    done, gap = 1, 0
    while gap == 0 or (done + gap <= promised and gap <= _MOST_LOST):
        has_frame, frame = capture.read()
        if has_frame:
            yield frame, gap
            done, gap = done + gap + 1, 0
        else:
            gap += 1


def _check_complete(source, target, count, lost, promised):
    """Raises a UserError if frames of a video are missing in what was written."""
    from kseg.errors import UserError

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


def _count_frames(path):
    """Returns the number of frames of a video, 0 if it cannot be read."""
    import cv2

    return max(int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)), 0)


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
