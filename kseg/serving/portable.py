"""Loading of LiteRT, ONNX and OpenVINO files, and comparison of logits with the original's."""

import hashlib
import os
import pathlib

import numpy as np

from kseg.classes import Classes
from kseg.errors import UserError
from kseg.pixel_format import PixelFormat
from kseg.serving.checks import CLASSES_SUFFIX, broken_network_file, is_openvino
from kseg.serving.litert import open_tflite
from kseg.serving.network_file import PortableModel
from kseg.serving.onnx import open_onnx
from kseg.serving.openvino import open_openvino


def load(path, *, threads=None):
    """Loads a file for LiteRT, ONNX or OpenVINO for inference on the CPU.

    Args:
        path: file written by `export_tflite`, `export_onnx` or `export_openvino`, with its classes
            file beside it.
        threads: int; None: one per core.

    Returns:
        `PortableModel`.

    Raises:
        UserError: if there is no such file, it is damaged, or the runtime is not installed.
    """
    path = pathlib.Path(path)
    try:
        text = path.with_suffix(CLASSES_SUFFIX).read_text()
        content = path.read_bytes()
        contents = [content]
        if content[4:8] == b"TFL3":
            open_file = open_tflite
        elif is_openvino(path):
            open_file = open_openvino
            contents.append(path.with_suffix(".bin").read_bytes())
        else:
            open_file = open_onnx
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}. Write {path} with `kseg export`"
        ) from None
    try:
        classes, more = Classes.from_json(text)
        digests = {hashlib.sha256(content).hexdigest() for content in contents}
        if not digests <= set(more.get("model_sha256", digests)):
            raise ValueError(f"{path.with_suffix(CLASSES_SUFFIX).name} belongs to another file")
        pixels = PixelFormat.from_dict(more.get("pixels"))
        value_range = tuple(more.get("value_range") or ()) or None
        return PortableModel(
            classes, open_file(path, threads or os.cpu_count()), value_range, pixels
        )
    except UserError:
        raise
    except Exception as error:  # Runtimes raise exceptions of any type.
        raise broken_network_file(path, error) from None


def compare(expected, actual):
    """Compares logits.

    Args:
        expected, actual: float arrays `(..., num_classes)` of one shape.

    Returns:
        `(agreement, difference)`, floats: the fraction of pixels with the same predicted class, and
        the largest absolute difference between logits.

    Raises:
        ValueError: if the shapes differ.
    """
    expected, actual = np.asarray(expected), np.asarray(actual)
    if expected.shape != actual.shape:
        raise ValueError(
            f"The logits must have one shape. Received: {expected.shape}, {actual.shape}"
        )
    same = np.argmax(expected, axis=-1) == np.argmax(actual, axis=-1)
    return float(np.mean(same)), float(np.max(np.abs(expected - actual)))
