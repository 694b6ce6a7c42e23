"""Checks of export targets, packages, networks and exported files.

They are separate from the exporters because the commands call them before importing TensorFlow.
"""

import importlib.util
import pathlib

from kseg import files
from kseg.classes import Classes
from kseg.errors import UserError, option

CLASSES_FILE = "classes.json"  # In the assets of a SavedModel.
CLASSES_SUFFIX = ".classes.json"  # Suffix of the file beside a LiteRT or ONNX file.
_PACKAGES = {
    "tf2onnx": "Writing ONNX needs the extra `onnx`: pip install 'kseg[onnx]'",
    "onnxruntime": "Running ONNX needs the extra `onnx`: pip install 'kseg[onnx]'",
    "fastapi": "The server needs the extra `serve`: pip install 'kseg[serve]'",
    "prometheus_client": "The server needs the extra `serve`: pip install 'kseg[serve]'",
    "uvicorn": "The server needs the extra `serve`: pip install 'kseg[serve]'",
    "ai_edge_litert": "Running LiteRT files needs the extra `litert`: pip install 'kseg[litert]'",
}


def require(package):
    """Checks that an optional package is installed.

    Args:
        package: a key of `_PACKAGES`.

    Raises:
        UserError: if it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(_PACKAGES[package])


def check_folder_target(path, overwrite):
    """Rejects a folder to which a SavedModel must not be written.

    Args:
        path: `pathlib.Path`.
        overwrite: bool, whether an existing SavedModel may be replaced.

    Raises:
        UserError: if it is a file, has other content, or holds a SavedModel and `overwrite` is
            False.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file. Give a folder for the SavedModel")
    if not any(path.iterdir()):
        return
    if not (path / "saved_model.pb").exists():
        raise UserError(f"{path} holds something that is no SavedModel. Give another folder")
    if not overwrite:
        raise UserError(
            f"{path} holds a SavedModel already. Use {option('overwrite', True)} to replace it"
        )


def check_file_target(path, overwrite):
    """Rejects a path to which a network file must not be written.

    Args:
        path: `pathlib.Path`.
        overwrite: bool, whether an existing file may be replaced.

    Raises:
        UserError: if it is a folder, or an existing file and `overwrite` is False.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give a file to write")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already. Use {option('overwrite', True)} to replace it")


def exportable_model(segmenter, classes, purpose):
    """Checks a segmenter for export and builds its inference view.

    Args:
        segmenter: model from `kseg.segmenters.build_segmenter`.
        classes: `kseg.classes.Classes`.
        purpose: str, such as `"a SavedModel"`, for messages.

    Returns:
        keras model, see `kseg.segmenters.inference_model`.

    Raises:
        ValueError: if the segmenter and `classes` differ in the number of classes.
        UserError: if a weight is NaN or infinite.
    """
    # Imported late: the other checks work without Keras.
    from kseg.runs.finite import check_weights
    from kseg.segmenters import inference_model

    model = inference_model(segmenter)
    if model.output.shape[-1] != len(classes):
        raise ValueError(
            f"The segmenter must have the {len(classes)} classes it is exported with. "
            f"Received: {model.output.shape[-1]}"
        )
    check_weights(model, purpose)
    return model


def read_classes(path):
    """Reads the classes of a SavedModel without loading it.

    Args:
        path: folder written by `kseg.export`.

    Returns:
        `(classes, more)`: `kseg.classes.Classes`, and a dict of the other values in its file.

    Raises:
        UserError: if there is no such SavedModel, or it is recognizably damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        files.clean(path.parent)
    if not path.is_dir():
        raise UserError(f"There is no SavedModel {path}. Write one with `kseg export`")
    try:
        if not (path / "saved_model.pb").is_file():
            raise ValueError("it holds no saved_model.pb")
        return Classes.from_json((path / "assets" / CLASSES_FILE).read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken_saved_model(path, error) from None


def broken_saved_model(path, error):
    """Returns the UserError for a SavedModel that could not be read because of `error`."""
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"{path} is not a SavedModel of kseg, or is damaged ({reason}). Write one with "
        "`kseg export`"
    )


def check_network_file(path):
    """Rejects a file that is not for LiteRT or ONNX, or whose runtime is missing.

    Args:
        path: `pathlib.Path`.

    Returns:
        str, the package that runs it.

    Raises:
        UserError: if the file or its classes file cannot be read, or the package is missing.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(8)
        path.with_suffix(CLASSES_SUFFIX).read_bytes()
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}. Write {path} with `kseg export`"
        ) from None
    package = "ai_edge_litert" if head[4:] == b"TFL3" else "onnxruntime"
    require(package)
    return package
