"""Reading of weights files of every supported format, by suffix or by an index of shards."""

import hashlib
import pathlib

from kseg.errors import UserError
from kseg.json_text import parse_json
from kseg.weights.archive import reporting_damage
from kseg.weights.checkpoint import Checkpoint
from kseg.weights.keras_file import read_keras_file
from kseg.weights.npz_file import read_npz_file
from kseg.weights.published import file_sha256, where_to_find
from kseg.weights.safetensors_file import read_safetensors_file
from kseg.weights.torch_file import read_torch_file

READERS = {
    ".weights.h5": read_keras_file,
    ".keras": read_keras_file,
    ".safetensors": read_safetensors_file,
    ".npz": read_npz_file,
    ".pth": read_torch_file,
    ".pth.tar": read_torch_file,
    ".pt": read_torch_file,
    ".bin": read_torch_file,
    ".ckpt": read_torch_file,
}
# The Hugging Face hub splits large checkpoints into several files, with an index of their arrays.
INDEX_SUFFIX = ".index.json"
INDEXES = (f"model.safetensors{INDEX_SUFFIX}", f"pytorch_model.bin{INDEX_SUFFIX}")


def read_file(path):
    """Reads all arrays of a weights file, or of several files by their index.

    Args:
        path: str or path of a file with a suffix in `READERS`, of an `*.index.json` of the Hugging
            Face hub, or of a folder that contains one.

    Returns:
        `Checkpoint`.

    Raises:
        UserError: if the file is missing, its suffix unknown, or its content damaged; for an index,
            if a file that it names is missing or lacks an array.
    """
    path, suffix = find_file(path)
    checkpoint = _read_shards(path) if suffix == INDEX_SUFFIX else READERS[suffix](path)
    for name in (*checkpoint.arrays, *checkpoint.beside):
        if not name.isprintable():  # It could break lines of reports, or control a terminal.
            raise UserError(f"{path} is damaged: it has an array {name!a}. Fetch it again")
    return checkpoint


def find_file(path):
    """Finds a weights file without reading it.

    Args:
        path: as in `read_file`.

    Returns:
        `(path, suffix)`: `pathlib.Path` of the file, and the key in `READERS`, or `INDEX_SUFFIX`.

    Raises:
        UserError: if it is missing, or its suffix is unknown.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        indexes = [path / name for name in INDEXES if (path / name).exists()]
        if not indexes:
            raise UserError(f"{path} is a folder. Name the weights file in it")
        path = indexes[0]
    known = [*READERS, INDEX_SUFFIX]
    suffix = next((suffix for suffix in known if path.name.endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"A weights file must end in one of {', '.join(known)}. Received: {path}")
    if not path.exists():
        raise UserError(f"There is no weights file {path}{where_to_find(path)}")
    if not path.is_file():
        raise UserError(f"A weights file must be a regular file. {path} is a pipe or a device")
    return path, suffix


def checksum(path):
    """Computes a checksum of the content of a weights file.

    Args:
        path: as in `read_file`.

    Returns:
        str, the SHA-256 of the file; for an index of several files, that of their SHA-256s and its
        own. None if a file is missing.

    Raises:
        UserError: if the suffix is unknown, or an index is damaged.
    """
    if not pathlib.Path(path).exists():
        return None
    path, suffix = find_file(path)
    if suffix != INDEX_SUFFIX:
        return file_sha256(path)
    files = [path, *(path.parent / name for name in dict.fromkeys(read_index(path).values()))]
    if not all(file.is_file() for file in files):
        return None
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


def initial_checksums(model):
    """Returns the checksum of the file of a model's initial weights, if it is known.

    Args:
        model: `kseg.config.schema.Model`. Its `weights` replace `backbone.weights`.

    Returns:
        dict from `"model.weights"` or `"model.backbone.weights"` to `checksum`; empty if the
        weights are random or downloaded.

    Raises:
        UserError: if the suffix of the file is unknown.
    """
    sources = {"model.weights": model.weights, "model.backbone.weights": model.backbone.weights}
    for key, source in sources.items():
        if source is not None:
            return {} if "://" in source else {key: checksum(source)}
    return {}


def read_index(path):
    """Reads the index of a checkpoint that is split into several files.

    Args:
        path: `pathlib.Path` of an `*.index.json`.

    Returns:
        dict from the name of an array to that of a file in the same folder.

    Raises:
        UserError: if it is damaged, or names files outside its folder.
    """
    with reporting_damage(path, "valid index of weights files"):
        files = parse_json(path.read_text("utf-8"))["weight_map"]
        suffixes = (".safetensors", ".bin")
        for name in files.values():
            if pathlib.PurePath(name).name != name or not name.endswith(suffixes):
                raise ValueError(f"{name!a} is not a weights file in the same folder")
    return files


def _read_shards(path):
    files = read_index(path)
    arrays, beside = {}, {}
    for name in dict.fromkeys(files.values()):
        shard = path.parent / name
        if not shard.exists():
            raise UserError(
                f"{path} names {len(set(files.values()))} files, of which {shard.name} is missing. "
                "Fetch it into the same folder"
            )
        part = read_file(shard)
        twice = next((array for array in part.arrays if array in arrays), None)
        if twice is not None:
            raise UserError(
                f"{shard} holds {twice!r}, as does another file of {path}. Fetch them again"
            )
        arrays.update(part.arrays)
        beside.update(part.beside)
    missing = [name for name in files if name not in arrays]
    if missing:
        raise UserError(
            f"{path} names {missing[0]!a} and {len(missing) - 1} more arrays that "
            f"{files[missing[0]]} does not hold. Fetch the files again"
        )
    return Checkpoint(arrays, beside)
