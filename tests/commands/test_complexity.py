import json
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

import pipelines
from kseg import backbones, config
from kseg.analysis import measuring
from kseg.commands import analyze, complexity
from kseg.errors import UserError
from tests.commands.tiny_run import tiny_run as tiny_run


@pytest.fixture(scope="module")
def contrastive(tiny_run, tmp_path_factory):
    """A config file of the tiny run with contrast on one stage."""
    values = json.loads(tiny_run.config.to_json())
    values["contrast"] = [{"name": "multi_scale", "scale_weights": {"c2": 1.0}}]
    values["contrast"][0]["cross_scale_pairs"] = []
    values["model"] |= {"embedding_dim": 8, "projector_layers": 1}
    values["data"]["train_split"] = "val"
    values["losses"] = {"cross_entropy": {"weight": 1.0}}
    path = tmp_path_factory.mktemp("configs") / "contrastive.json"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def one_process(monkeypatch):
    """Memory is measured here: a new process would not know the tiny network."""
    asked = []

    def peak(experiment, phase, column):
        asked.append((phase, column))
        return 1000 * len(asked)

    monkeypatch.setattr(complexity, "peak_in_new_process", peak)
    return asked


def call(*arguments):
    return analyze.main(["--what", "complexity", *map(str, arguments)])


def test_table(contrastive, one_process, tmp_path, capsys):
    output = tmp_path / "new" / "complexity.json"
    assert call("--config", contrastive, "--rounds", 1, "--output", output) == 0
    found = json.loads(output.read_text())
    assert (found["images"], found["batch_size"], found["objectives"]) == (
        "tiny",
        2,
        ["multi_scale"],
    )
    training, inference = found["training"], found["inference"]
    channels, dim = backbones.build_backbone("hrnet_w18_small").output["c2"].shape[-1], 8
    # The projector: a layer with norm, and a linear one.
    projector = channels * channels + 2 * channels + channels * dim + dim
    added = training["contrast"]["parameters"] - training["without"]["parameters"]
    assert 0 < added <= 2 * projector
    assert training["contrast"]["flops"] > training["without"]["flops"]
    for key in ("parameters", "flops"):
        assert inference["contrast"][key] == inference["without"][key]
        assert inference["without"][key] <= training["without"][key]
    assert all(
        values["seconds"] > 0 for phase in (training, inference) for values in phase.values()
    )
    peaks = [values["peak_bytes"] for phase in (training, inference) for values in phase.values()]
    assert peaks == [1000, 2000, 3000, 4000]
    phases, columns = ("training", "inference"), ("without", "contrast")
    assert one_process == [(phase, column) for phase in phases for column in columns]
    printed = capsys.readouterr().out
    assert "images of tiny" in printed and "training, batch of 2" in printed


def test_peak_of_a_column(contrastive, monkeypatch, capsys):
    work = {"config": json.loads(contrastive.read_text()), "phase": "training"}
    monkeypatch.setattr(sys, "argv", ["", json.dumps({**work, "column": "contrast"})])
    assert complexity.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["peak_bytes"] > 0


def test_data_that_is_not_prepared(contrastive, tmp_path, monkeypatch):
    values = json.loads(contrastive.read_text())
    values["data"] |= {"dataset": "camvid", "path": str(tmp_path / "none"), "train_split": "train"}
    monkeypatch.chdir(tmp_path)
    few = {"train_images": 2, "val_images": 1, "size": (32, 48), "progress": False}
    monkeypatch.setattr(
        pipelines,
        "prepare_once",
        lambda name, folder: pipelines.prepare(name, output=folder, **few),
    )
    subject = complexity.Subject(config.parse(values, source="test"))
    assert subject.source == "synthetic"
    assert subject.batch["image"].shape == (2, 32, 32, 3)
    assert len(subject.run("without").classes) == 11
    assert subject.run("without").config.contrast == []
    values["data"]["dataset"] = "mine"
    with pytest.raises(UserError, match="The classes of 'mine' are known once it is prepared"):
        complexity.Subject(config.parse(values, source="test"))


def test_refuses(tiny_run, contrastive):
    with pytest.raises(UserError, match="needs --run or --config"):
        call()
    with pytest.raises(UserError, match="'tiny' has no `contrast`"):
        call("--run", tiny_run.path)
    with pytest.raises(UserError, match=r"--rounds must be 1 or more\. Received: 0"):
        call("--config", contrastive, "--rounds", 0)


def test_process_that_fails(contrastive, monkeypatch):
    def fail(*arguments):
        raise subprocess.CalledProcessError(-9, arguments)

    monkeypatch.setattr(complexity, "in_new_process", fail)
    with pytest.raises(UserError, match=r"failed, see above \(exit code -9\)"):
        complexity.peak_in_new_process(config.load(contrastive), "training", "contrast")


def test_in_new_process(tmp_path):
    file = tmp_path / "echo.py"
    file.write_text("import json, sys\nprint('first')\nprint(json.dumps(sys.argv[1:]))")
    assert measuring.in_new_process(file, "a b", 3) == ["a b", "3"]


def test_memory_of_a_cpu():
    with measuring.PeakMemory() as memory:
        held = np.ones(25_000_000, "float32")  # Above malloc's largest threshold: fresh pages.
    assert memory.megabytes > 0.9 * held.nbytes / 1e6


def test_memory_of_several_gpus(monkeypatch):
    """That of the one with most, above what was in use before."""
    used = {"GPU:0": {"current": 100e6, "peak": 300e6}, "GPU:1": {"current": 50e6, "peak": 700e6}}
    reset = []
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["one", "other"])
    experimental = types.SimpleNamespace(
        reset_memory_stats=reset.append, get_memory_info=used.__getitem__
    )
    monkeypatch.setattr(tf.config, "experimental", experimental)
    with measuring.PeakMemory() as memory:
        pass
    assert reset == ["GPU:0", "GPU:1"]
    assert memory.megabytes == 600


@pytest.mark.parametrize("code", [2, 3])
def test_new_process_that_fails(tmp_path, capfd, code):
    file = tmp_path / "fail.py"
    file.write_text(
        "import sys\nprint('a warning', file=sys.stderr)\n"
        f"print('error: too large', file=sys.stderr)\nsys.exit({code})"
    )
    error, match = [(UserError, "^too large$"), (subprocess.CalledProcessError, "3")][code - 2]
    with pytest.raises(error, match=match):
        measuring.in_new_process(file)
    assert capfd.readouterr().err == "a warning\n" + ("error: too large\n" if code == 3 else "")
