"""Loading of LiteRT and ONNX files, and comparison of their logits with the original network's."""

import hashlib
import os
import pathlib

import numpy as np

from kseg.classes import Classes
from kseg.errors import UserError
from kseg.serving.checks import CLASSES_SUFFIX
from kseg.serving.litert import open_tflite
from kseg.serving.network_file import PortableModel
from kseg.serving.onnx import open_onnx


def load(path, *, threads=None):
    """Loads a LiteRT or ONNX file for inference on the CPU.

    Args:
        path: file written by `export_tflite` or `export_onnx`, with its classes file beside it.
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
        runtime = open_tflite if content[4:8] == b"TFL3" else open_onnx
        digest = hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}. Write {path} with `kseg export`"
        ) from None
    try:
        classes, more = Classes.from_json(text)
        if digest not in more.get("model_sha256", [digest]):
            raise ValueError(f"{path.with_suffix(CLASSES_SUFFIX).name} belongs to another file")
        value_range = tuple(more.get("value_range") or ()) or None
        return PortableModel(classes, *runtime(path, threads or os.cpu_count()), value_range)
    except UserError:
        raise
    except Exception as error:  # Runtimes raise exceptions of any type.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is no file for LiteRT or ONNX, or is damaged ({reason}). Write it again with "
            "`kseg export`"
        ) from None


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
