import json
import shutil

import cv2
import numpy as np
import pytest

import kseg
from kseg import serving
from kseg.commands import evaluate, export
from kseg.errors import UserError
from kseg.segmenters import inference_model
from kseg.serving import checks, portable
from pipelines.errors import DataError
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


def test_int8_is_calibrated_and_scored_on_prepared_data(tiny_run, tmp_path, capsys):
    data, file = tiny_run.config.data.folder, tmp_path / "model.onnx"
    arguments = ["--run", tiny_run.path, "--output", file, "--quantize", "int8"]
    arguments += ["--calibrate", data, "--calibration-images", 2]
    with pytest.raises(DataError, match="train"):
        call(*arguments)  # These data have no training images.
    assert not file.exists()
    shutil.copytree(tiny_run.path, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["data"]["train_split"] = "val"
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    arguments[1] = tmp_path / "run"
    call(*arguments, "--check", data, "--result", "classes")
    lines = capsys.readouterr().out.splitlines()
    assert "int8" in lines[0]
    # The last line compares the rows of float32 and int8.
    scores = [float(line.split("%")[0].split()[-1]) for line in lines[-3:-1]]
    assert lines[-1].startswith(f"mean IoU {scores[1] - scores[0]:+.2f}"[:-1])
    found = evaluate.evaluate(saved_model=file, data=data)
    assert round(100 * found["scores"].mean_iou, 2) == scores[1]
    with pytest.raises(UserError, match="gives classes, and scales, mirroring and windows"):
        evaluate.evaluate(saved_model=file, data=data, flip=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--quantize", "int8", "--output", "m"], "is for the formats tflite"),
        (["--result", "classes", "--output", "m"], "is for the formats tflite"),
        (["--quantize", "int8", "--output", "m.onnx"], "needs prepared data"),
        (["--calibrate", "data", "--output", "m.onnx"], "goes with"),
        (["--quantize", "int8", "--calibrate", "gone", "--output", "m.onnx"], "gone"),
        (["--format", "serving", "--output", "."], "no pair of model folders"),
    ],
)
def test_options_that_do_not_fit_are_one_line(arguments, message, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises((UserError, DataError), match=message) as caught:
        call("--run", tiny_run.path, *arguments)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_model_folders_of_servers(tiny_run, tmp_path):
    folder = tmp_path / "served"
    call("--run", tiny_run.path, "--output", folder, "--format", "serving", "--result", "classes")
    written = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {
        "tensorflow_serving/models.config",
        "tensorflow_serving/batching.config",
        "tensorflow_serving/run/1/saved_model.pb",
        "triton/run/config.pbtxt",
        "triton/run/1/model.onnx",
    } <= written
    assert 'base_path: "/models/run"' in (folder / "tensorflow_serving/models.config").read_text()
    config = (folder / "triton/run/config.pbtxt").read_text()
    for part in ('name: "run"', "TYPE_UINT8", "dims: [ -1, -1, 3 ]", 'name: "confidence"'):
        assert part in config
    logits = inference_model(tiny_run.segmenter())(images()).numpy()
    np.testing.assert_allclose(kseg.load(folder)(images()), logits, rtol=1e-3, atol=1e-3)
    labels, _ = portable.load(folder / "triton/run/1/model.onnx").classify(images())
    assert np.mean(labels == logits.argmax(-1)) > 0.999
    with pytest.raises(UserError, match="holds a pair of model folders already"):
        call("--run", tiny_run.path, "--output", folder, "--format", "serving")


def test_comparison_by_hand():
    assert portable.compare([[1.0, 2.0], [3.0, 0.0]], [[2.5, 2.0], [3.0, 0.0]]) == (0.5, 1.5)


def test_names_what_is_missing(tiny_run, tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        call("--run", tmp_path, "--output", tmp_path / "model")
    with pytest.raises(UserError, match="no checkpoint 'newest'"):
        call("--run", tiny_run.path, "--output", tmp_path / "model", "--checkpoint", "newest")
    assert not (tmp_path / "model").exists()


def test_files_that_are_not_of_the_export_stay(tmp_path):
    network, weights = tmp_path / "model.xml", tmp_path / "model.bin"
    weights.write_bytes(b"of something else")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"model\.bin, to which the weights .* exists already"):
            checks.check_openvino_target(network, overwrite)
    network.touch()
    checks.check_openvino_target(network, True)
    folder = tmp_path / "project"
    (folder / "tensorflow_serving").mkdir(parents=True)
    checks.check_model_folders_target(folder, True)
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"also holds 'thesis\.tex', which would be deleted"):
        checks.check_model_folders_target(folder, True)
