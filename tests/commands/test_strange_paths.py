"""Folders whose names hold blanks and signs that patterns, URLs, shells or formats read."""

import json

import cv2
import numpy as np

from kseg import backbones
from kseg.commands import analyze, evaluate, export, predict, prepare, train
from kseg.runs import Run
from tests.tiny_networks import tiny_backbone

STRANGE = "a [b] *c? {d} $x ü#%20'\"\n\\y"


def call(command, *arguments):
    assert command.main([str(argument) for argument in arguments]) == 0


def write_source(folder):
    rng = np.random.default_rng(0)
    for part, shape in (("images", (40, 48, 3)), ("masks", (40, 48))):
        (folder / part).mkdir(parents=True)
        for number in range(4):
            values = rng.integers(0, 256 if part == "images" else 2, shape).astype("uint8")
            content = cv2.imencode(".png", values)[1].tobytes()
            (folder / part / f"[{number}] ü%#.png").write_bytes(content)
    rows = [{"name": "no", "value": 0}, {"name": "yes", "value": 1}]
    (folder / "classes.json").write_text(json.dumps(rows))


def test_strange_paths(tmp_path, monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "hrnet_w18_small", tiny_backbone)
    top = tmp_path / STRANGE
    source, data, run = top / "source [1]", top / "data *", top / "run ?"
    write_source(source)
    call(
        prepare, "folder", "--source", source, "--output", data, "--split", "train=0.5",
        "--split", "val=0.5",
    )  # fmt: skip
    config = top / "config #1.json"
    values = {
        "name": "strange",
        "model": {
            "backbone": {"name": "hrnet_w18_small"},
            "head": {"name": "ocr", "channels": 16, "key_channels": 8},
        },
        "data": {
            "dataset": "folder",
            "path": str(data),
            "crop_size": [32, 32],
            "batch_size": 2,
            "cache": str(top / "cache [x]"),
        },
        "train": {"steps": 2, "evaluate_every": 1, "checkpoint_every": 1, "devices": 1},
    }
    config.write_text(json.dumps(values))
    call(train, "--config", config, "--run", run)
    first = (run / "checkpoints" / "step-00000002.npz").read_bytes()
    (run / "checkpoints" / "step-00000002.npz").unlink()
    call(train, "--config", config, "--run", run)  # Resumes from step 1.
    assert len((run / "checkpoints" / "step-00000002.npz").read_bytes()) == len(first)
    call(evaluate, "--run", run, "--panels", 1)
    call(evaluate, "--compare", run, run, "--output", top / "comparison [1].json")
    model = top / "model [s] *"
    call(export, "--run", run, "--output", model, "--check", source / "images")
    call(evaluate, "--saved-model", model, "--data", data, "--output", top / "scores [1].json")
    for chosen in (("--run", run), ("--saved-model", model)):
        labels = top / f"labels of {chosen[0]} [?]"
        call(predict, *chosen, "--input", source / "images", "--output", labels)
        names = sorted(path.name for path in labels.glob("*.png"))
        assert names == sorted(f"[{i}] ü%#{end}.png" for i in range(4) for end in ("", "_overlay"))
    for name in names:
        other = top / "labels of --run [?]" / name
        assert (labels / name).read_bytes() == other.read_bytes()
    for what in ("failures", "curves", "report"):
        call(analyze, "--run", run, "--what", what, "--points", 20)
    report = (run / "analysis" / "report.html").read_text(encoding="utf-8")
    assert "mean IoU" in report
    assert Run.open(run).checkpoint_steps() == [1, 2]
    # Nothing was written elsewhere, and nothing temporary is left.
    assert [path.name for path in tmp_path.iterdir()] == [STRANGE]
    assert not [path for path in top.rglob("*") if path.name.endswith(".tmp")]
