"""The study command: a real run that is stopped and resumed, the others with faked training."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from kseg.commands import study
from kseg.errors import Interrupted, UserError
from kseg.evaluation.image_counts import ImageCounts
from kseg.studies import results
from pipelines import records
from pipelines.datasets.dataset import Taxonomy
from tests.commands.tiny_run import NAMES, PALETTE, Example
from tests.studies.fakes import counts_of, line_of

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path):
    """Writes data, a base config and a study; gives the study's path."""
    taxonomy = Taxonomy(NAMES, PALETTE, {**{i: i for i in range(3)}, 255: 255})
    examples = [Example(str(i), (48, 64)) for i in range(6)]
    splits = {"train": examples[:4], "val": examples[4:]}
    records.write(tmp_path / "data", "tiny", taxonomy, splits, workers=1, progress=False)
    base = {
        "model": {
            "backbone": {"name": "tests.tiny_networks:tiny_backbone"},
            "head": {"name": "hrnet"},
        },
        "data": {
            "dataset": "tiny",
            "path": str(tmp_path / "data"),
            "crop_size": [32, 32],
            "batch_size": 2,
        },
        "train": {"steps": 3, "log_every": 1, "evaluate_every": 2},
    }

    def write_study(**train):
        (tmp_path / "base.json").write_text(json.dumps({**base, "train": base["train"] | train}))
        path = tmp_path / "tiny.json"
        arms = {"ce": {}, "mscs": {"contrast": [{"name": "multi_scale"}]}}
        path.write_text(json.dumps({"base": "base.json", "arms": arms, "seeds": [0, 1]}))
        return path

    return write_study


@pytest.fixture
def trained(monkeypatch):
    """Fakes the training; gives the list of the runs that were made."""
    made = []

    def train(experiment, folder):
        made.append(experiment.name)
        folder.mkdir(parents=True, exist_ok=True)
        counts = counts_of([[10, 20, 30 + experiment.seed]])
        line = line_of("", 0, counts)
        line = {k: v for k, v in line.items() if k not in ("study", "arm", "seed")}
        (folder / "result.json").write_text(json.dumps(line))
        counts.save(folder / "counts.npz")
        return 0, "", False

    monkeypatch.setattr(study, "_train", train)
    return made


def quiet(line):
    pass


def test_makes_what_is_missing(write, trained, tmp_path):
    path, output = write(), tmp_path / "out"
    found = study.run_study(path, output=output, seeds=[0], report=quiet)
    assert trained == ["ce-0", "mscs-0"]
    assert found["finished"] == [("ce", 0), ("mscs", 0)] and not found["missing"]
    found = study.run_study(path, output=output, report=quiet)
    assert trained == ["ce-0", "mscs-0", "ce-1", "mscs-1"]
    assert "| mscs | 2 " in found["table"]
    assert all(file.stat().st_size for file in found["files"])
    assert not list((output / "runs").iterdir())
    study.run_study(path, output=output, report=quiet)
    assert len(trained) == 4


def test_any_arm_can_be_what_the_others_are_compared_with(write, trained, tmp_path):
    path, output = write(), tmp_path / "out"
    study.run_study(path, output=output, report=quiet)

    def row(arm, **options):
        table = study.run_study(path, output=output, train=False, report=quiet, **options)["table"]
        return next(line for line in table.splitlines() if line.startswith(f"| {arm} "))

    assert "[+0.00, +0.00]" in row("mscs") and "[" not in row("ce")
    assert "[+0.00, +0.00]" in row("ce", baseline="mscs")
    assert "[" not in row("mscs", baseline="mscs")
    assert "Baseline: mscs." in (output / "table.md").read_text()
    with pytest.raises(UserError, match=r"no arm 'none'\. It has: ce, mscs"):
        study.run_study(path, output=output, baseline="none", report=quiet)


def test_results_of_another_config_or_data_do_not_count(write, trained, tmp_path):
    output = tmp_path / "out"
    study.run_study(write(), output=output, arms=["ce"], seeds=[0], report=quiet)
    found = study.run_study(write(steps=5), output=output, train=False, report=quiet)
    assert len(found["missing"]) == 4 and "| ce" not in found["table"]
    found = study.run_study(write(log_every=2), output=output, train=False, report=quiet)
    assert found["finished"] == [("ce", 0)]  # That decides nothing.
    (tmp_path / "data" / "manifest.json").unlink()
    taxonomy = Taxonomy(NAMES, PALETTE, {**{i: i for i in range(3)}, 255: 255})
    splits = {"train": [Example("7", (48, 64))], "val": [Example("8", (48, 64))]}
    records.write(
        tmp_path / "data", "tiny", taxonomy, splits, workers=1, progress=False, overwrite=True
    )
    found = study.run_study(write(), output=output, train=False, report=quiet)
    assert not found["finished"]


def test_what_does_not_count_is_said_with_the_reason(write, trained, tmp_path):
    output = tmp_path / "out"
    study.run_study(write(), output=output, report=quiet)

    def said(**changes):
        lines = []
        study.run_study(write(**changes), output=output, train=False, report=lines.append)
        return lines

    assert said() == []
    (line,) = said(steps=5)
    assert line == "not counted: 4 results of other settings (train.steps)"
    first, _ = sorted(output.glob("settings/*.json"))
    first.unlink()
    assert f"not counted: 2 results whose settings/{first.name} is missing" in "\n".join(said())
    results = output / "results.jsonl"
    results.write_text(results.read_text().replace('"ce"', '"gone"'))
    assert "not counted: 2 results of arms that the study does not have" in said()


def test_missing_counts_are_named(write, trained, tmp_path):
    output = tmp_path / "out"
    study.run_study(write(), output=output, arms=["ce"], seeds=[0], report=quiet)
    (counts,) = output.glob("counts/*")
    counts.unlink()
    with pytest.raises(
        UserError, match=rf"{counts.name} is missing. .* result of ce-0 .* repeated"
    ):
        study.run_study(write(), output=output, report=quiet)
    assert trained == ["ce-0"]


@dataclasses.dataclass
class Touched(Example):
    """The same image and mask from files of another date."""

    fingerprint: str = "another date"


def test_results_count_for_the_same_data_prepared_elsewhere(write, trained, tmp_path):
    output, data = tmp_path / "out", tmp_path / "data"
    study.run_study(write(), output=output, arms=["ce"], seeds=[0], report=quiet)
    before = json.loads((data / "manifest.json").read_text())
    shutil.rmtree(data)
    taxonomy = Taxonomy(NAMES, PALETTE, {**{i: i for i in range(3)}, 255: 255})
    examples = [Touched(str(i), (48, 64)) for i in range(6)]
    splits = {"train": examples[:4], "val": examples[4:], "test": examples[4:]}
    records.write(data, "tiny", taxonomy, splits, num_shards=2, workers=1, progress=False)
    assert json.loads((data / "manifest.json").read_text())["fingerprint"] != before["fingerprint"]
    found = study.run_study(write(), output=output, train=False, report=quiet)
    assert found["finished"] == [("ce", 0)]


def test_missing_weights_are_named_before_any_run(write, trained, tmp_path):
    path = write()
    base = json.loads((tmp_path / "base.json").read_text())
    base["model"]["backbone"]["weights"] = str(tmp_path / "gone.pth")
    (tmp_path / "base.json").write_text(json.dumps(base))
    with pytest.raises(UserError, match=r"arm 'ce': There is no weights file .*gone\.pth"):
        study.run_study(path, output=tmp_path / "out", report=quiet)
    assert not trained
    assert len(study.run_study(path, output=tmp_path / "out", train=False)["missing"]) == 4


def test_unknown_scored_classes_are_refused_before_any_run(write, trained, tmp_path):
    path = write()
    path.write_text(json.dumps({**json.loads(path.read_text()), "scored_classes": ["moon"]}))
    with pytest.raises(UserError, match=r"`scored_classes` must be classes .*'moon'"):
        study.run_study(path, output=tmp_path / "out", report=quiet)
    assert trained == [] and not (tmp_path / "out").exists()


def test_parts_are_disjoint_and_complete(write, trained, tmp_path):
    path, output = write(), tmp_path / "out"
    study.run_study(path, output=output, part=(1, 3), report=quiet)
    assert trained == ["ce-0", "mscs-1"]
    study.run_study(path, output=output, part=(2, 3), report=quiet)
    found = study.run_study(path, output=output, part=(3, 3), report=quiet)
    assert sorted(trained) == ["ce-0", "ce-1", "mscs-0", "mscs-1"]
    assert {file.name for file in output.glob("*.jsonl")} == {
        f"results-{i}-of-3.jsonl" for i in (1, 2, 3)
    }
    assert "| ce   | 2 " in found["table"]


def test_a_run_that_fails_stops_no_other(write, trained, tmp_path, monkeypatch):
    train = study._train

    def fail(experiment, folder):
        return (2, "no good", False) if experiment.name == "ce-0" else train(experiment, folder)

    monkeypatch.setattr(study, "_train", fail)
    with pytest.raises(UserError, match="1 of 4 runs failed: ce-0: no good"):
        study.run_study(write(), output=tmp_path / "out", report=quiet)
    assert trained == ["mscs-0", "ce-1", "mscs-1"]
    assert (tmp_path / "out" / "table.md").exists()


@pytest.mark.parametrize("ends, where", [("exit 1", "in"), ("", "in"), ("exit 0", "after")])
def test_a_signal_stops_the_study_whatever_the_run_does(write, tmp_path, monkeypatch, ends, where):
    """A run may be scoring its network, which the signal ends, or have finished just then."""
    process = tmp_path / "process"
    trap = f"trap '{ends}' TERM" if ends else ":"
    process.write_text(
        f"#!/bin/sh\n{trap}\necho >> {tmp_path}/started\nkill -TERM {os.getpid()}\nsleep 20 &\nwait"
    )
    process.chmod(0o755)
    monkeypatch.setattr(study.sys, "executable", str(process))
    monkeypatch.setattr(study, "_collect", lambda *_: {"last": {"mean_iou": 0.5}})
    with pytest.raises(Interrupted, match=f"stopped {where} ce, seed 0; the same command resumes"):
        study.run_study(write(), output=tmp_path / "out", report=quiet)
    assert (tmp_path / "started").read_text().count("\n") == 1


def test_stopped_and_resumed_by_the_real_command(write, tmp_path):
    """SIGTERM in the middle of a run: exit code 130, and the same command finishes it."""
    path, output = write(steps=40), tmp_path / "out"
    command = [sys.executable, "scripts/study.py", "--study", str(path), "--output", str(output)]
    command += ["--arms", "ce", "--seeds", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT, "env": environment, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate()
    assert process.returncode == 130, rest + errors
    assert "the same command resumes" in rest and not list(output.glob("*.jsonl"))

    result = subprocess.run(command, capture_output=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    (found,) = results.read(output)
    assert (found["arm"], found["seed"], found["last"]["step"]) == ("ce", 3, 40)
    assert found["cpu_seconds"] > 0 and found["peak_memory_mb"] > 50
    assert found["features"]["alignment"] > 0 and found["losses"]["cross_entropy"] > 0
    assert isinstance(found.counts, ImageCounts) and len(found.counts.ids) == 2
    # What is scored is what the counts say.
    hits, truth, predicted = found.counts.pixels.sum(axis=0)
    for iou, h, t, p in zip(found["last"]["class_iou"], hits, truth, predicted, strict=True):
        assert (iou is None) == (t + p == 0)
        assert iou is None or abs(iou - h / (t + p - h)) < 1e-12


def test_a_run_whose_ray_worker_was_killed_is_made_again(write, tmp_path):
    """A cluster of one core on this machine: the worker of the first run is killed in training."""
    path, output = write(steps=30), tmp_path / "out"
    command = [sys.executable, "scripts/study.py", "--study", str(path), "--output", str(output)]
    command += ["--arms", "ce", "--seeds", "0", "--ray", "local"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT, "env": environment, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    killed = None
    deadline = time.monotonic() + 300
    while killed is None and process.poll() is None and time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "_train_on_worker" in " ".join(child.cmdline()):
                    time.sleep(2)
                    child.kill()
                    killed = child.pid
        time.sleep(0.1)
    rest, errors = process.communicate()
    assert killed is not None and process.returncode == 0, rest + errors
    (found,) = results.read(output)
    assert found["last"]["step"] == 30


def test_mistakes_are_one_line(tmp_path):
    command = [sys.executable, "scripts/study.py", "--study", str(tmp_path / "none.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: There is no config file")
