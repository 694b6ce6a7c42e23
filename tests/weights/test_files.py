import numpy as np
import pytest

from kseg.errors import UserError
from kseg.weights.files import READERS, read_file


def test_npz(tmp_path):
    arrays = {"a/b": np.arange(3.0), "c.weight": np.array(2, "int64")}
    np.savez(tmp_path / "x.npz", meta=np.array("text"), **arrays)
    checkpoint = read_file(tmp_path / "x.npz")
    assert set(checkpoint.arrays) == set(arrays)
    np.testing.assert_array_equal(checkpoint.arrays["a/b"], [0, 1, 2])
    assert list(checkpoint.beside) == ["meta"]


def test_npz_with_objects(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(UserError, match="Object arrays cannot be loaded"):
        read_file(tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_any_other_content(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    for content in (b"", b"PK\x03\x04", b"no weights at all, but some lines\n" * 9):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged, or no .*(Fetch|save)") as caught:
            read_file(path)
        assert "\n" not in str(caught.value)


def test_names_that_would_break_a_line(tmp_path):
    np.savez(tmp_path / "x.npz", **{"a\nb": np.zeros(2)})
    with pytest.raises(UserError, match=r"damaged: it has an array 'a\\nb'"):
        read_file(tmp_path / "x.npz")


def test_names(tmp_path):
    with pytest.raises(UserError, match=r"There is no weights file .*gone\.npz"):
        read_file(tmp_path / "gone.npz")
    with pytest.raises(UserError, match=r"must end in one of \.weights\.h5, .*Received: .*x\.onnx"):
        read_file(tmp_path / "x.onnx")
    with pytest.raises(UserError, match="is a folder"):
        read_file(tmp_path)
