import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import pipelines
from kseg import serving
from kseg.runs import Run
from pipelines import loader

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    "train.steps=2",
    "train.log_every=1",
    "train.devices=1",
    "model.backbone.name=resnet18",
    "schedule.warmup_steps=0",
    "data.batch_size=2",
    "data.crop_size=[64,96]",
    "model.head.channels=16",
    "model.head.key_channels=8",
    "contrast.0.scale_weights={\"c2\": 1, \"c4\": 0.4}",
    "contrast.0.cross_scale_pairs=[[\"c2\", \"c4\"]]",
)  # fmt: skip


def train(folder, *arguments, config=ROOT / "configs/quickstart.json"):
    """Runs the command as a user would, from a folder of its own."""
    command = [sys.executable, str(ROOT / "scripts/train.py"), "--config", str(config), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def settings(*changes):
    return [part for change in (*SMALL, *changes) for part in ("--set", change)]


def error_line(result):
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which the commands of this file run: the prepared scenes are shared."""
    folder = tmp_path_factory.mktemp("user")
    pipelines.prepare_once("synthetic", folder / "data/synthetic", train_images=6, val_images=4)
    return folder


def test_the_quickstart_shortened(folder):
    result = train(folder, *settings())
    assert result.returncode == 0, result.stderr
    assert re.search(r"step 2/2  loss [\d.]+ = [^\n]*\bms [\d.]+", result.stdout), result.stdout
    assert "SavedModel:   runs/quickstart/saved_model" in result.stdout
    run = Run.open(folder / "runs/quickstart")
    assert run.checkpoint_steps() == [2]
    assert (run.path / "evaluation/panel.png").stat().st_size > 10_000
    scores = json.loads((run.path / "evaluation/val.json").read_text())
    assert set(scores["classes"]) == set(run.classes.names)

    # The exported model gives the run's score.
    model = serving.load_saved_model(run.path / "saved_model")
    dataset = loader.evaluation_dataset(folder / "data/synthetic", "val", batch_size=4)
    mean_iou = model.evaluate(dataset, verbose=0, return_dict=True)["mean_iou"]
    np.testing.assert_allclose(mean_iou, scores["mean_iou"], atol=1e-6)
    assert list(tf.io.gfile.glob(str(run.path / "tensorboard/*/events*")))

    # The same command again trains nothing; another config is refused; nothing is lost.
    again = train(folder, *settings())
    assert again.returncode == 0 and "step 2/2" not in again.stdout
    assert "best:" in again.stdout
    other = error_line(train(folder, *settings("optimizer.learning_rate=0.1")))
    assert "optimizer.learning_rate was 0.05, is 0.1" in other and "--restart" in other
    assert run.checkpoint_steps() == [2]


def test_dry_run_prints_and_writes_nothing(folder):
    result = train(folder, *settings(), "--dry-run", "--run", "runs/dry")
    assert result.returncode == 0, result.stderr
    printed, _, rest = result.stdout.rpartition("}\n")
    assert json.loads(printed[printed.index("{") :] + "}")["train"]["steps"] == 2
    assert "batch:  (2, 64, 96, 3) uint8" in rest
    assert "steps:  2 on 1 device(s)" in rest
    assert "ocr on resnet18, 8 classes" in rest
    assert not (folder / "runs/dry").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--set", "train.step=1"], "Did you mean `train.steps`?"),
        (["--set", "data.dataset=camvid"], "kseg prepare camvid --source"),
        (["--set", "data.eval_split=test"], "has no split 'test'. It has: train, val"),
        (["--set", "data.dataset=ade20k", "--set", "data.path=data/synthetic"], "must hold"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, message):
    assert message in error_line(train(folder, *arguments))


def test_a_missing_config_is_one_line(folder):
    assert "There is no config file" in error_line(train(folder, config="nothing.json"))


def test_a_corrupt_shard_stops_the_run_and_is_named(folder):
    pipelines.prepare("synthetic", output=folder / "data/damaged", train_images=2, val_images=2)
    (shard,) = (folder / "data/damaged").glob("train-*.tfrecord")
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    result = train(folder, *settings("data.path=data/damaged"), "--run", "runs/damaged")
    assert "The shard data/damaged/train-00000-of-00001.tfrecord is corrupt" in error_line(result)
