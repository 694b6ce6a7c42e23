"""Networks that label images, for `kseg predict` and `kseg serve`: loading, and their memory."""

import contextlib
import functools
import math
import pathlib
import tempfile

_SPARE = 1.5  # Factor on the estimated memory, for workspace of operations beyond their results.


def too_large(size, needs):
    """Explains why an image of a size cannot be labeled.

    Args:
        size: `(height, width)`.
        needs: function from a size to bytes, see `memory_needs`.

    Returns:
        str; None if there is enough memory.
    """
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
        path: `pathlib.Path` of a SavedModel, or of a file for LiteRT or ONNX.

    Raises:
        UserError: if it is missing or damaged, or the package that runs it is not installed.
    """
    from kseg.serving import checks

    if path.is_file():
        checks.check_network_file(path)
    else:
        checks.read_classes(path)


def pixel_format_of(path, checkpoint):
    """Reads the format of the images that a network takes, without loading it.

    Args:
        path, checkpoint: as for `load`.

    Returns:
        `kseg.pixel_format.PixelFormat`; None: 8-bit RGB, or it cannot be read, which `load`
        reports.
    """
    from kseg.classes import Classes
    from kseg.errors import UserError
    from kseg.pixel_format import PixelFormat
    from kseg.runs import Run
    from kseg.serving import checks

    path = pathlib.Path(path)
    try:
        if checkpoint is not None:
            return Run.open(path).pixel_format
        if not path.is_file():
            return PixelFormat.from_dict(checks.read_classes(path)[1].get("pixels"))
        text = path.with_suffix(checks.CLASSES_SUFFIX).read_text()
        return PixelFormat.from_dict(Classes.from_json(text)[1].get("pixels"))
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError):
        return None


def memory_needs(model):
    """Returns a function that estimates the memory of a network for one image.

    Args:
        model: result of `kseg.load`.

    Returns:
        function from `(height, width)` to bytes, see `kseg.serving.memory.estimate`; None if
        unknown, as on a GPU and for files for LiteRT and ONNX.
    """
    if not hasattr(model, "signature"):
        return None

    import tensorflow as tf

    from kseg.serving import memory

    if tf.config.list_physical_devices("GPU"):
        return None
    return functools.partial(memory.estimate, model.signature)


def load(path, checkpoint):
    """Loads a network.

    Args:
        path: path of a run, a SavedModel, or a file for LiteRT or ONNX.
        checkpoint: as for `kseg.runs.Run.checkpoint`, for a run; None: `path` is not a run.

    Returns:
        as `kseg.load`. The network of a run is loaded by way of a temporary SavedModel.
    """
    from kseg.serving.loading import load as load_network

    if checkpoint is None:
        return load_network(path)
    with saved_run(path, checkpoint) as folder:
        return load_network(folder)


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
