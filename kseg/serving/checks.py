"""Checks of export targets, packages, networks and exported files.

They are separate from the exporters because the commands call them before importing TensorFlow.
"""

import importlib.util
import pathlib
import re

from kseg import files
from kseg.classes import Classes
from kseg.errors import UserError, option

RESULTS = ("logits", "classes")  # Possible results of a network file.
QUANTIZATIONS = ("float16", "int8")
TENSORFLOW_SERVING, TRITON = "tensorflow_serving", "triton"  # Model folders.
CLASSES_FILE = "classes.json"  # In the assets of a SavedModel.
CLASSES_SUFFIX = ".classes.json"  # Suffix of the file beside a LiteRT, ONNX or OpenVINO file.
_PACKAGES = {
    "tf2onnx": "Writing ONNX needs the extra `onnx`: pip install 'kseg[onnx]'",
    "onnxruntime": "Running ONNX needs the extra `onnx`: pip install 'kseg[onnx]'",
    "fastapi": "The server needs the extra `serve`: pip install 'kseg[serve]'",
    "prometheus_client": "The server needs the extra `serve`: pip install 'kseg[serve]'",
    "uvicorn": "The server needs the extra `serve`: pip install 'kseg[serve]'",
    "openvino": "OpenVINO needs the extra `openvino`: pip install 'kseg[openvino]'",
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


def check_folder_target(path, overwrite, *, kind="SavedModel", marker="saved_model.pb"):
    """Rejects a folder to which a SavedModel, or model folders, must not be written.

    Args:
        path: `pathlib.Path`.
        overwrite: bool, whether an existing one may be replaced.
        kind: str, what is written, for messages.
        marker: str, name of a file or folder that shows that `path` holds one.

    Raises:
        UserError: if it is a file, has other content, or holds one and `overwrite` is False.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file. Give a folder for the {kind}")
    if not any(path.iterdir()):
        return
    if not (path / marker).exists():
        raise UserError(f"{path} holds something that is no {kind}. Give another folder")
    if not overwrite:
        raise UserError(
            f"{path} holds a {kind} already. Use {option('overwrite', True)} to replace it"
        )


def check_model_folders_target(path, overwrite):
    """Rejects a folder to which the model folders of servers must not be written.

    Args, Raises: as for `check_folder_target`.
    """
    check_folder_target(path, overwrite, kind="pair of model folders", marker=TENSORFLOW_SERVING)
    entries = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if others := sorted(entries - {TENSORFLOW_SERVING, TRITON}):
        raise UserError(
            f"{path} also holds {others[0]!r}, which would be deleted. Give another folder"
        )


def check_openvino_target(path, overwrite):
    """Rejects a path that OpenVINO would not read, and one whose weights are another file.

    Args:
        path: `pathlib.Path`.
        overwrite: bool, whether an existing network may be replaced.

    Raises:
        UserError: if it does not end in `.xml`, or the `.bin` file beside it exists and does not
            belong to a network that may be replaced.
    """
    if not is_openvino(path):
        raise UserError(f"A network for OpenVINO must be an .xml file. Received: {path}")
    weights = path.with_suffix(".bin")
    if weights.exists() and not (overwrite and path.exists()):
        raise UserError(
            f"{weights}, to which the weights would be written, exists already. Give another name"
        )


def cpu_has_bfloat16():
    """Tells whether this CPU has instructions for bfloat16; None if that is unknown."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return found and bool({"avx512_bf16", "amx_bf16", "bf16"} & set(found[1].split()))


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
    path = saved_model_folder(path)
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


def saved_model_folder(path):
    """Finds the SavedModel in the model folders of `kseg.serving.model_folders`.

    Args:
        path: folder of a SavedModel, or of model folders.

    Returns:
        `pathlib.Path` of the SavedModel of the highest version; `path` unless it is of model
        folders.
    """
    path = pathlib.Path(path)
    versions = (path / TENSORFLOW_SERVING).glob("*/*/saved_model.pb")
    numbered = [file.parent for file in versions if file.parent.name.isdecimal()]
    return max(numbered, key=lambda folder: int(folder.name), default=path)


def read_file_classes(path):
    """Reads the classes of a network file without loading it.

    Args:
        path: file for LiteRT, ONNX or OpenVINO, with its classes file beside it.

    Returns:
        as `read_classes`.

    Raises:
        UserError: as `check_network_file`, or if the classes file is damaged.
    """
    path = pathlib.Path(path)
    check_network_file(path)
    file = path.with_suffix(CLASSES_SUFFIX)
    try:
        return Classes.from_json(file.read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken_network_file(path, error) from None


def broken_network_file(path, error):
    """Returns the UserError for a network file that could not be read because of `error`."""
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"{path} is not a file for LiteRT, ONNX or OpenVINO, or is damaged ({reason}). Write it "
        "again with `kseg export`"
    )


def broken_saved_model(path, error):
    """Returns the UserError for a SavedModel that could not be read because of `error`."""
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"{path} is not a SavedModel of kseg, or is damaged ({reason}). Write one with "
        "`kseg export`"
    )


def check_network_file(path):
    """Rejects a file that is not for LiteRT, ONNX or OpenVINO, or whose runtime is missing.

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
    if head[4:] == b"TFL3":
        package = "ai_edge_litert"
    else:
        package = "openvino" if is_openvino(path) else "onnxruntime"
    require(package)
    return package


def is_openvino(path):
    """Tells whether a network file is OpenVINO's, by the suffix that its reader insists on."""
    return path.suffix == ".xml"
