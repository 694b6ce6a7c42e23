import keras
import numpy as np
import pytest

from kseg.errors import UserError
from kseg.runs import checkpoints


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


@pytest.mark.parametrize(
    "damage",
    ["truncated", "flipped", "empty", "missing", "zeros", "beginning", "npy", "pickle", "folder"],
)
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
    elif damage == "zeros":
        path.write_bytes(bytes(len(content)))
    elif damage == "beginning":
        path.write_bytes(b"damage" + content[6:])
    elif damage == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "pickle":
        with open(path, "wb") as file:
            np.savez(file, **{"meta.json": np.array("{}"), "seed": np.array([{}], object)})
    elif damage == "folder":
        path.unlink()
        path.mkdir()
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


def test_random_damage_is_one_line_or_none(tmp_path):
    """Any byte of the file may change, be cut off or overwritten."""
    path = tmp_path / "a.npz"
    checkpoints.save(path, some_variables(), {"step": 1})
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        content = bytearray(sound)
        start, length = rng.integers(len(content)), rng.choice([1, 1, 2, 8, 64])
        content[start : start + length] = rng.integers(0, 256, length).astype("uint8").tobytes()
        if rng.random() < 0.2:
            del content[rng.integers(len(content)) :]
        path.write_bytes(content)
        try:
            checkpoints.restore(path, some_variables())
        except UserError as error:
            assert "a.npz" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_and_named(tmp_path, value):
    path = tmp_path / "a.npz"
    variables = some_variables() | {"model/later": keras.Variable([1.0, value])}
    checkpoints.save(path, variables, {"step": 1})
    fresh = some_variables() | {"model/later": keras.Variable([5.0, 5.0])}
    with pytest.raises(checkpoints.NonFiniteCheckpointError, match=r"'model/later' of 3 arrays"):
        checkpoints.restore(path, fresh)
    assert np.array_equal(fresh["model/later"].numpy(), [5, 5])


def test_bfloat16_survives(tmp_path):
    """A memory bank may be stored in it."""
    path = tmp_path / "a.npz"
    bank = keras.Variable([[1.5, -2.0]], dtype="bfloat16")
    checkpoints.save(path, {"bank": bank}, {"step": 1})
    fresh = keras.Variable([[0.0, 0.0]], dtype="bfloat16")
    checkpoints.restore(path, {"bank": fresh})
    assert np.array_equal(np.asarray(fresh.value, "float32"), [[1.5, -2.0]])
    checkpoints.save(path, {"bank": keras.Variable([[np.nan, 0.0]], dtype="bfloat16")}, {})
    with pytest.raises(checkpoints.NonFiniteCheckpointError):
        checkpoints.restore(path, {"bank": fresh})
    other = keras.Variable([[0.0, 0.0]])
    with pytest.raises(UserError, match="'bank' is not an array of numbers"):
        checkpoints.restore(path, {"bank": other})
