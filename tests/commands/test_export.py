import json

import cv2
import numpy as np
import pytest

from kseg import serving
from kseg.commands import export
from kseg.errors import UserError
from kseg.segmenters import inference_model
from kseg.serving import portable
from tests.commands.tiny_run import NAMES, PALETTE
from tests.commands.tiny_run import tiny_run as tiny_run


def call(*arguments):
    assert export.main([str(argument) for argument in arguments]) == 0


def images():
    return np.random.default_rng(0).integers(0, 256, (1, 33, 47, 3)).astype("uint8")


def test_exports_a_checkpoint(tiny_run, tmp_path, capsys):
    arguments = ["--run", tiny_run.path, "--output", tmp_path / "model", "--checkpoint", 7]
    cv2.imwrite(str(tmp_path / "a.png"), images()[0])
    call(*arguments, "--check", tmp_path / "a.png")
    model = serving.load_saved_model(tmp_path / "model")
    expected = inference_model(tiny_run.segmenter("7"))(images())
    np.testing.assert_allclose(model(images()), expected, rtol=1e-3, atol=1e-3)
    assert (model.classes.names, model.classes.palette) == (NAMES, PALETTE)
    printed = capsys.readouterr().out
    assert "3 classes" in printed
    assert "1 images, against the network in memory: 100.0000 %" in printed
    with pytest.raises(UserError, match="Use `overwrite=True`"):
        call(*arguments)


def test_precision_and_overwrite(tiny_run, tmp_path):
    (tmp_path / "saved_model.pb").write_text("an older one")
    arguments = ["--run", tiny_run.path, "--output", tmp_path, "--overwrite"]
    call(*arguments, "--precision", "mixed_bfloat16")
    logits = serving.load_saved_model(tmp_path)(images())
    exact = inference_model(tiny_run.segmenter())(images())
    difference = np.abs(logits - exact).max() / np.abs(exact).max()
    assert logits.dtype == "float32"
    assert 1e-5 < difference < 0.1, "rounded to 8 bits on the way"


@pytest.mark.parametrize("kind, size", [("tflite", (32, 40)), ("onnx", None)])
def test_other_formats_agree_with_the_network(tiny_run, tmp_path, capsys, kind, size):
    picture = np.random.default_rng(1).integers(0, 256, (32, 40, 3)).astype("uint8")
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    file = tmp_path / f"model.{kind}"
    arguments = ["--run", tiny_run.path, "--output", file, "--format", kind]
    arguments += ["--check", tmp_path / "a.png", *(["--size", *size] if size else [])]
    call(*arguments)
    assert "1 images, against a SavedModel of it: 100.0000 %" in capsys.readouterr().out
    expected = inference_model(tiny_run.segmenter())(picture[None])
    np.testing.assert_allclose(portable.load(file)(picture[None]), expected, rtol=1e-3, atol=1e-3)
    assert json.loads((tmp_path / "model.classes.json").read_text())["names"] == NAMES
    with pytest.raises(UserError, match=r"exists already\. Use `overwrite=True`"):
        call(*arguments)
    with pytest.raises(UserError, match="is written in float32"):
        call(*arguments, "--precision", "mixed_bfloat16")


def test_comparison_by_hand():
    assert portable.compare([[1.0, 2.0], [3.0, 0.0]], [[2.5, 2.0], [3.0, 0.0]]) == (0.5, 1.5)


def test_names_what_is_missing(tiny_run, tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        call("--run", tmp_path, "--output", tmp_path / "model")
    with pytest.raises(UserError, match="no checkpoint 'newest'"):
        call("--run", tiny_run.path, "--output", tmp_path / "model", "--checkpoint", "newest")
    assert not (tmp_path / "model").exists()
