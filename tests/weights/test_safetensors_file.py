import json
import struct

import numpy as np
import pytest

from kseg.errors import UserError
from kseg.weights.safetensors_file import read_safetensors_file


def write(path, header, buffer):
    """Writes a file of the format; `header` is a dict, or the header's bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + buffer)
    return path


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_dtypes(tmp_path):
    dtypes = {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "I64": "int64",
        "I32": "int32",
        "I16": "int16",
        "I8": "int8",
        "U8": "uint8",
        "BOOL": "bool",
    }
    arrays = {name: np.array([[0, 1, 2], [3, 4, 100]], dtype) for name, dtype in dtypes.items()}
    header, buffer = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        header[name] = entry(name, [2, 3], len(buffer), len(buffer) + array.nbytes)
        buffer += array.tobytes()
    checkpoint = read_safetensors_file(write(tmp_path / "x.safetensors", header, buffer))
    assert list(checkpoint.arrays) == list(arrays)
    assert checkpoint.beside == {}
    for name, array in arrays.items():
        assert checkpoint.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(checkpoint.arrays[name], array)


def test_bfloat16_scalar_and_empty(tmp_path):
    # A bfloat16 is the upper half of a float32: 1 is 0x3f80, -2 is 0xc000.
    buffer = struct.pack("<HH", 0x3F80, 0xC000) + struct.pack("<f", 7)
    header = {
        "scalar": entry("F32", [], 4, 8),
        "bfloat16": entry("BF16", [2], 0, 4),
        "empty": entry("F32", [0, 3], 8, 8),
    }
    arrays = read_safetensors_file(write(tmp_path / "x.safetensors", header, buffer)).arrays
    np.testing.assert_array_equal(arrays["bfloat16"], np.array([1.0, -2.0], "float32"))
    assert arrays["bfloat16"].dtype == "float32"
    assert arrays["scalar"] == 7
    assert arrays["empty"].shape == (0, 3)


@pytest.mark.parametrize(
    "header, length, message",
    [
        ({"w": entry("F32", [2], 0, 8)}, 7, "has 8 bytes"),
        ({"w": entry("F32", [2], 0, 8)}, 12, "12 bytes follow the header, 8 of them are used"),
        ({"w": entry("F32", [2], 4, 12)}, 12, "'w' begins at byte 4 instead of 0"),
        (
            {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)},
            12,
            "'b' begins at byte 4 instead of 8",
        ),
        ({"w": entry("F32", [3], 0, 8)}, 8, r"has 8 bytes for the shape \[3\]"),
        ({"w": entry("F32", [-2], 0, 8)}, 8, "impossible shape"),
        ({"w": entry("F32", [1 << 62, 1 << 62], 0, 8)}, 8, "has 8 bytes for the shape"),
        ({"w": entry("F32", [2.0], 0, 8)}, 8, "impossible shape"),
        ({"w": entry("F8_E4M3", [8], 0, 8)}, 8, "unknown dtype 'F8_E4M3'"),
        ({"w": {"dtype": "F32", "shape": [2]}}, 8, "data_offsets"),
        ({"w": entry("F32", [2], "0", "8")}, 8, "begins at byte 0"),
        ({"w": 3}, 8, ""),
        (b"[1]", 8, "header is not a JSON object"),
        (b"{", 8, "Expecting property name"),
        (b'{"w": 1, "w": 2}', 8, "a duplicate name"),
        (b"\xff\xfe", 8, ""),
    ],
)
def test_damage_is_named(header, length, message, tmp_path):
    path = write(tmp_path / "x.safetensors", header, bytes(length))
    with pytest.raises(
        UserError, match=f"is damaged or not a safetensors file.*{message}"
    ) as caught:
        read_safetensors_file(path)
    assert "\n" not in str(caught.value)


def test_truncated(tmp_path):
    path = write(tmp_path / "x.safetensors", {"w": entry("F32", [2], 0, 8)}, bytes(8))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged"):
            read_safetensors_file(path)
