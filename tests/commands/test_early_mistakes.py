"""Mistakes that need no TensorFlow are reported before it is imported, which takes seconds."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.commands.tiny_run import tiny_run, write_data  # noqa: F401

ROOT = pathlib.Path(__file__).parents[2]
CONTRAST = str(ROOT / "configs/camvid_small_contextrast.json")
QUICKSTART = str(ROOT / "configs/quickstart.json")
STUDY = str(ROOT / "configs/studies/camvid.json")
BAD_RUN = "gone is not a run"
NO_DATA = "gone holds no prepared data"
NO_MODEL = "There is no SavedModel gone"

# The command, its arguments, and what the line says; RUN, DATA and so on are paths of the fixture.
MISTAKES = [
    ("train", ["--config", "gone.json"], "There is no config file gone.json"),
    ("train", ["--config", "configs/quickstart.json"], "with kseg is quickstart, without a folder"),
    ("train", ["--config", CONTRAST, "train.steps=3"], "Write --set train.steps=3. See"),
    ("train", ["--config", CONTRAST], "data/camvid holds no prepared data"),
    ("train", ["--config", CONTRAST, "--set", "data.path=BROKEN"], "manifest.json is damaged"),
    ("train", ["--config", CONTRAST, "--set", "data.path=SHORT"], "The shard .* is missing"),
    ("train", ["--config", QUICKSTART, "--set", "data.path=DATA"], "must hold 'synthetic'"),
    ("train", ["--config", "RUN/config.json"], "has no split 'train'"),
    ("train", ["--config", "TRAINED", "--run", "RUN"], "holds a run of another config"),
    ("train", ["--config", "TRAINED", "--run", "FILE/run"], "FILE"),
    ("train", ["--config", "TRAINED", "--set", "model.weights=gone.npz"], "no weights file gone"),
    ("evaluate", ["--run", "gone"], BAD_RUN),
    ("evaluate", ["--run", "DAMAGED"], "classes.json is damaged"),
    ("evaluate", ["--run", "RUN", "--checkpoint", "8"], "no checkpoint '8'. It has: best, 7"),
    ("evaluate", ["--run", "RUN", "--data", "gone"], NO_DATA),
    ("evaluate", ["--run", "RUN", "--split", "train"], "no split 'train'. It has: val, test"),
    ("evaluate", ["--run", "RUN", "--data", "OTHER"], "must have the classes of the model"),
    ("evaluate", ["--run", "RUN", "--output", "FILE/x.json"], "FILE/x.json: "),
    ("evaluate", ["--run", "RUN", "--submission", "x.zip"], "for the data set 'cityscapes'"),
    ("evaluate", ["--saved-model", "gone", "--data", "DATA"], NO_MODEL),
    ("evaluate", ["--saved-model", "RUN", "--data", "DATA"], "RUN is not a SavedModel"),
    ("evaluate", ["--compare", "gone", "RUN"], BAD_RUN),
    ("evaluate", ["--compare", "a.json", "b.json"], "There is no a.json"),
    ("predict", ["--saved-model", "gone", "--input", "gone", "--output", "out"], "no image or"),
    ("predict", ["--saved-model", "gone", "--input", "IMAGES", "--output", "out"], NO_MODEL),
    ("predict", ["--saved-model", "RUN", "--input", "IMAGES", "--output", "out"], "not a SavedM"),
    ("predict", ["--saved-model", "FILE", "--input", "IMAGES", "--output", "o"], "Write FILE"),
    ("predict", ["--saved-model", "NETWORK", "--input", "IMAGES", "--output", "a.png"],
     "a.png has the name of a file. Use a folder for --output"),
    ("export", ["--run", "gone", "--output", "model"], BAD_RUN),
    ("export", ["--run", "RUN", "--output", "model.pb"], "kseg writes no .pb files"),
    ("export", ["--run", "RUN", "--output", "m", "--format", "onx"], "Did you mean onnx"),
    ("prepare", ["foldr"], "Did you mean folder"),
    ("export", ["--run", "RUN", "--output", "FILE"], "is a file. Give a folder"),
    ("export", ["--run", "RUN", "--output", "RUN"], "holds something that is no SavedModel"),
    ("export", ["--run", "RUN", "--output", "DATA", "--format", "onnx"], "is a folder. Give a fi"),
    ("export", ["--run", "RUN", "--output", "model", "--checkpoint", "8"], "no checkpoint '8'"),
    ("export", ["--run", "RUN", "--output", "model", "--check", "gone"], "There is no gone. Give"),
    ("push", ["gone", "out"], BAD_RUN),
    ("push", ["RUN", "out"], "val.json"),
    ("push", ["RUN", "RUN"], "exists already"),
    ("push", ["RUN", "FILE"], "FILE: "),
    ("push", ["RUN", "hf://name"], "hf://owner/name"),
    ("init", ["gone"], NO_DATA),
    ("init", ["DATA"], "must have a split train"),
    ("init", ["DATA", "--minutes", "0"], "--minutes: must be above 0"),
    ("prepare", ["camvid", "--source", "gone"], "gone does not exist"),
    ("prepare", ["folder", "--source", "DATA"], ""),
    ("prepare", ["folder", "--source", "DATA", "--split", "x"], "--split takes NAME=RATIO"),
    ("prepare", ["synthetic", "--output", "FILE"], "FILE"),
    ("prepare", ["synthetic", "--output", "DATA"], "made from other files or with other options"),
    ("prepare", ["verify", "gone"], NO_DATA),
    ("prepare", ["report", "BROKEN"], "manifest.json is damaged"),
    *(("analyze", ["--what", what, "--run", "gone"], BAD_RUN)
      for what in ("complexity", "curves", "failures", "feature-maps", "features", "grad-cam",
                   "gradients", "report", "tsne")),
    ("analyze", ["--what", "panels", "--runs", "RUN", "gone"], BAD_RUN),
    ("analyze", ["--what", "failures", "--run", "RUN", "--data", "gone"], NO_DATA),
    ("analyze", ["--what", "tsne", "--run", "RUN", "--checkpoint", "8"], "no checkpoint '8'"),
    ("analyze", ["--what", "report", "--run", "RUN", "--stages", "c9"], "--stages must be of"),
    ("analyze", ["--what", "grad-cam", "--run", "RUN", "--classes", "x"], "--classes must name"),
    ("analyze", ["--what", "complexity", "--run", "RUN"], "there is nothing to compare"),
    ("convert", ["--source", "gone.npz", "--backbone", "resnet18", "--output", "x.weights.h5"],
     "There is no weights file gone.npz"),
    ("convert", ["--source", "hf://a/b", "--backbone", "resnet1", "--output", "x.weights.h5"],
     "There is no backbone 'resnet1'"),
    ("convert", ["--source", "hf://a/b", "--backbone", "resnet18", "--output", "x.h5"],
     "--output must end in .weights.h5"),
    ("study", ["--study", "gone.json"], "gone.json"),
    ("study", ["--study", STUDY], "data/camvid holds no prepared data"),
    ("study", ["--study", STUDY, "--arms", "gone"], "has no arm 'gone'"),
    ("study", ["--study", STUDY, "--output", "FILE"], "FILE"),
]  # fmt: skip

# And without some packages.
MISSING_PACKAGES = [
    ("export", ["--run", "RUN", "--output", "m.onnx"], "kseg[onnx]", ["tf2onnx"]),
    ("export", ["--run", "RUN", "--output", "m.tflite", "--check", "IMAGES"], "kseg[litert]",
     ["ai_edge_litert"]),
    ("predict", ["--saved-model", "NETWORK", "--input", "IMAGES", "--output", "out"], "kseg[onnx]",
     ["onnxruntime"]),
    ("analyze", ["--what", "tsne", "--run", "RUN"], "scikit-learn", ["sklearn"]),
    ("analyze", ["--what", "curves", "--run", "RUN"], "matplotlib", ["matplotlib"]),
    ("analyze", ["--what", "complexity", "--config", CONTRAST], "psutil", ["psutil"]),
    ("evaluate", ["--run", "RUN", "--data", "CITYSCAPES", "--cityscapes-ground-truth", "gone"],
     "kseg[cityscapes]", ["cityscapesscripts"]),
    ("prepare", ["synthetic", "--output", "new", "--beam"], "kseg[beam]", ["apache_beam"]),
    ("convert", ["--source", "hf://a/b", "--backbone", "resnet18", "--output", "x.weights.h5"],
     "kseg[hub]", ["huggingface_hub"]),
    ("study", ["--study", STUDY, "--ray", "local"], "kseg[ray]", ["ray"]),
    ("study", ["--study", STUDY], "kseg[study]", ["scipy"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def found(tiny_run, tmp_path_factory):  # noqa: F811
    """Exit code and stderr of each mistake, made in folders that hold what it needs."""
    folder = tmp_path_factory.mktemp("mistakes")
    data = pathlib.Path(tiny_run.config.data.path)
    paths = {"RUN": tiny_run.path, "DATA": data}
    for name in ("BROKEN", "SHORT", "DAMAGED", "IMAGES", "OTHER", "CITYSCAPES"):
        paths[name] = folder / name.lower()
        paths[name].mkdir()
    (paths["BROKEN"] / "manifest.json").write_text("{")
    (paths["SHORT"] / "manifest.json").write_bytes((data / "manifest.json").read_bytes())
    for name in ("config.json", "classes.json"):
        (paths["DAMAGED"] / name).write_bytes((tiny_run.path / name).read_bytes()[:40])
    (paths["IMAGES"] / "photo.png").write_bytes(b"not looked at")
    write_data(paths["OTHER"], names=["sky", "car", "road"])
    write_data(paths["CITYSCAPES"], dataset="cityscapes")
    paths["FILE"] = folder / "file"
    paths["FILE"].write_text("kept")
    paths["NETWORK"] = folder / "network.onnx"
    paths["NETWORK"].write_bytes(b"12345678")
    (folder / "network.classes.json").write_text("{}")
    config = json.loads((tiny_run.path / "config.json").read_text())
    config["data"] |= {"train_split": "test", "eval_split": "val"}
    config["train"]["steps"] = 20
    paths["TRAINED"] = folder / "trained.json"
    paths["TRAINED"].write_text(json.dumps(config))

    def filled(text):
        return re.sub("|".join(paths), lambda match: str(paths[match[0]]), text)

    mistakes = [(*mistake, []) for mistake in MISTAKES] + MISSING_PACKAGES
    mistakes = [
        (name, [filled(a) for a in arguments], *rest) for name, arguments, *rest in mistakes
    ]
    before = sorted(folder.rglob("*"))
    result = subprocess.run(
        [sys.executable, ROOT / "tests/commands/mistakes.py"],
        input=json.dumps([[name, arguments, missing] for name, arguments, _, missing in mistakes]),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    left = [path for path in sorted(folder.rglob("*")) if path not in before]
    messages = [filled(message) for _, _, message, _ in mistakes]
    return list(zip(json.loads(result.stdout), messages, strict=True)), left


@pytest.mark.parametrize(
    "number",
    range(len(MISTAKES) + len(MISSING_PACKAGES)),
    ids=[" ".join([name, *arguments]) for name, arguments, *_ in MISTAKES + MISSING_PACKAGES],
)
def test_one_line_without_tensorflow(found, number):
    (code, said), message = found[0][number]
    assert code == 2, said
    assert said.startswith("error: ") and len(said.splitlines()) == 1, said
    assert message in said or re.search(message, said), said


def test_nothing_is_left_behind(found):
    assert [path for path in found[1] if path.is_file()] == []
