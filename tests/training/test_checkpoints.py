import keras
import numpy as np
import pytest

from kseg.errors import UserError
from kseg.training import checkpoints


def some_variables(shape=(2, 3)):
    return {
        "model/kernel": keras.Variable(np.arange(6, dtype="float32").reshape(shape)),
        "seed": keras.Variable(np.array([1, 2], "uint32"), dtype="uint32", trainable=False),
    }


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "a.npz"
    checkpoints.save(path, some_variables(), {"step": 7, "best": None})
    fresh = some_variables()
    for variable in fresh.values():
        variable.assign(np.zeros(variable.shape))
    assert checkpoints.restore(path, fresh) == {"step": 7, "best": None}
    for name, variable in some_variables().items():
        assert np.array_equal(fresh[name].numpy(), variable.numpy())
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.npz"
    checkpoints.save(path, some_variables(), {"step": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        checkpoints.save(path, some_variables(), {"step": object()})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing"])
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "a.npz"
    checkpoints.save(path, some_variables(), {"step": 1})
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[content.index(np.float32(3).tobytes())] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"a\.npz"):
        checkpoints.restore(path, some_variables())


def test_another_model_is_refused_and_nothing_is_set(tmp_path):
    path = tmp_path / "a.npz"
    checkpoints.save(path, some_variables(), {})
    other = some_variables((3, 2))
    other["seed"].assign([8, 9])
    with pytest.raises(UserError, match=r"'model/kernel' is \(2, 3\) there and \(3, 2\) here"):
        checkpoints.restore(path, other)
    assert np.array_equal(other["seed"].numpy(), [8, 9])
    with pytest.raises(UserError, match="lacks 'model/more'"):
        checkpoints.restore(path, some_variables() | {"model/more": keras.Variable(1.0)})
