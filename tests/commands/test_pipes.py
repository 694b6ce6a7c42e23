"""A pipe in place of a file, which blocks whoever opens it, is refused by name."""

import os

import pytest

from kseg.commands import export_check, predict_folder
from kseg.errors import UserError
from kseg.runs import Run, checkpoints
from kseg.weights.files import find_file
from pipelines import pictures


@pytest.mark.parametrize("name", ["w.pth", "w.npz", "w.weights.h5", "w.safetensors"])
def test_weights(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"must be a regular file. {tmp_path / name} is a pipe"):
        find_file(tmp_path / name)


def test_checkpoints(tmp_path):
    os.mkfifo(tmp_path / "best.npz")
    with pytest.raises(UserError, match="must be a regular file"):
        checkpoints.restore(tmp_path / "best.npz", {})


def test_runs(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "classes.json")
    with pytest.raises(UserError, match=r"classes\.json is damaged \(it is not a regular file"):
        Run.open(tmp_path)


def test_pictures(tmp_path):
    path = tmp_path / "photo.png"
    os.mkfifo(path)
    assert predict_folder.read(path) == (None, "it is not a file")
    assert pictures.size_of_file(path) is None
    with pytest.raises(UserError, match="it is not a file"):
        export_check.check_images(path, None)
