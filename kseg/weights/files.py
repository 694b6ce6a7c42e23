import pathlib
import zipfile

import numpy as np

from kseg.errors import UserError
from kseg.weights.keras_file import read_keras_file
from kseg.weights.safetensors_file import read_safetensors_file
from kseg.weights.torch_file import Checkpoint, read_torch_file


def read_npz_file(path):
    """Reads an `.npz` file; pickled objects in it are refused.

    Args:
        path: `pathlib.Path` of the file.

    Returns:
        `Checkpoint`.

    Raises:
        UserError: if the file is damaged or holds pickled objects.
    """
    arrays, beside = {}, {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                array = file[name]
                if array.dtype.kind in "fiub":
                    arrays[name] = array
                else:
                    beside[name] = f"is no array of numbers but of {array.dtype}"
    except (zipfile.BadZipFile, AttributeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged, or no npz archive ({error}). Fetch it again") from None
    return Checkpoint(arrays, beside)


READERS = {
    ".weights.h5": read_keras_file,
    ".keras": read_keras_file,
    ".safetensors": read_safetensors_file,
    ".npz": read_npz_file,
    ".pth": read_torch_file,
    ".pth.tar": read_torch_file,
    ".pt": read_torch_file,
    ".bin": read_torch_file,
}
KERAS_SUFFIXES = (".weights.h5", ".keras")


def read_file(path):
    """Reads all arrays of a weights file, by its suffix.

    Args:
        path: str or path, of a suffix in `READERS`.

    Returns:
        `Checkpoint`.

    Raises:
        UserError: if the file is missing, its suffix unknown, or its content damaged.
    """
    path = pathlib.Path(path)
    suffix = next((suffix for suffix in READERS if path.name.endswith(suffix)), None)
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name the weights file in it")
    if suffix is None:
        raise UserError(f"A weights file must end in one of {', '.join(READERS)}. Received: {path}")
    if not path.exists():
        raise UserError(f"There is no weights file {path}")
    checkpoint = READERS[suffix](path)
    for name in (*checkpoint.arrays, *checkpoint.beside):
        if not name.isprintable():  # It would break the lines of reports, or steer a terminal.
            raise UserError(f"{path} is damaged: it has an array {name!a}. Fetch it again")
    return checkpoint
