"""A reader of `.safetensors`.

The format is a JSON header and one buffer. This reader needs no package, converts bfloat16 (which
the NumPy interface of the safetensors package does not support), and reports damage in one line.
"""

import math
import struct

import numpy as np

from kseg.json_text import parse_json
from kseg.weights.archive import reporting_damage
from kseg.weights.checkpoint import Checkpoint, bfloat16_to_float32

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_MAX_HEADER = 100_000_000  # Bytes, as in the reference implementation.
_MAX_AXES = 32


def read_safetensors_file(path):
    """Reads the tensors of a `.safetensors` file.

    Source: github.com/huggingface/safetensors, "Format": 8 bytes little-endian N, N bytes of JSON
    `{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, then the buffer, which tensors fill
    without gaps or overlaps.

    Args:
        path: `pathlib.Path` of the file.

    Returns:
        `Checkpoint`. bfloat16 is converted to float32; other dtypes are kept.

    Raises:
        UserError: if the file is damaged or truncated, or NumPy lacks a dtype of it (8-bit floats).
    """
    with reporting_damage(path, "safetensors file"):
        data = path.read_bytes()
        header, buffer = _split(data)
        arrays, position = {}, 0
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            if begin != position:
                raise ValueError(f"{name!r} begins at byte {begin} instead of {position}")
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"{name!r} has the unknown dtype {entry['dtype']!r}")
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            shape = entry["shape"]
            if len(shape) > _MAX_AXES or any(
                type(extent) is not int or not 0 <= extent < 2**63 for extent in shape
            ):
                raise ValueError(f"{name!r} has the impossible shape {shape}")
            if end - begin != math.prod(shape) * dtype.itemsize or end > len(buffer):
                raise ValueError(f"{name!r} has {end - begin} bytes for the shape {shape}")
            array = np.frombuffer(buffer[begin:end], dtype).reshape(shape)
            arrays[name] = bfloat16_to_float32(array) if entry["dtype"] == "BF16" else array
            position = end
        if position != len(buffer):
            raise ValueError(f"{len(buffer)} bytes follow the header, {position} of them are used")
    return Checkpoint({name: arrays[name] for name in header}, {})


def _split(data):
    if len(data) < 8:
        raise ValueError("it is shorter than its header")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(len(data) - 8, _MAX_HEADER):
        raise ValueError(f"its header claims {length} bytes")
    header = parse_json(data[8 : 8 + length], object_pairs_hook=_without_duplicates)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, memoryview(data)[8 + length :]


def _without_duplicates(pairs):
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("its header has a duplicate name")
    return entries
