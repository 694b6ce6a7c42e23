"""docs/your_own_data.md: every command of it, on a tiny data set."""

import csv
import importlib
import io
import json
import pathlib
import re
import shlex
import shutil
import sys

import cv2
import numpy as np
import pytest

import pipelines
from kseg import backbones
from kseg.evaluation import drawing
from tests.test_docs import PAGES, blocks
from tests.tiny_networks import tiny_backbone

ROOT = pathlib.Path(__file__).parents[1]
GUIDE = PAGES["your_own_data.md"]
COMMANDS = [
    shlex.split(line) for text in blocks(GUIDE, "sh") for line in text.splitlines() if line.strip()
]
# Two steps of the smallest network; one device, since the scripts share this process.
SMALL = (
    "train.steps=2",
    "train.evaluate_every=2",
    "train.devices=1",
    "train.panels=0",
    "schedule.warmup_steps=0",
    "data.crop_size=[32,32]",
    "data.batch_size=2",
    "data.color_jitter=null",
    'model.head={"name": "hrnet"}',
    "model.embedding_dim=8",
    'contrast.0.scale_weights={"c2": 1}',
    "contrast.0.cross_scale_pairs=[]",
)
SIZE = (40, 56)
IMAGES = 10


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A user's folder: the repository's configs, data as the guide draws them, and photos."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (name,) = re.findall(r"save it as `(.*\.json)`$", GUIDE, flags=re.MULTILINE)
    (tmp_path / name).write_text(blocks(GUIDE, "json")[0])
    monkeypatch.setitem(backbones.BACKBONES, "hrnet_w18_small", tiny_backbone)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # prepare_data.py changes it.
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "mine")
    images = sorted((tmp_path / "mine/images").iterdir())
    (tmp_path / "photos").mkdir()
    for image in images[:2]:
        shutil.copy(image, tmp_path / "photos")
    return tmp_path


def table():
    """The guide's class table: text, and rows."""
    (text,) = blocks(GUIDE, "csv")
    return text, list(csv.DictReader(io.StringIO(text)))


def write_data(folder, colors=False):
    """Images and masks of numbers, or of colours, in the guide's layout and with its classes."""
    rng = np.random.default_rng(0)
    text, rows = table()
    folders = re.findall(r"^  (\w+)/ ", GUIDE, flags=re.MULTILINE)
    assert len(folders) == 2
    for name in folders:
        (folder / name).mkdir(parents=True)
    (folder / "classes.csv").write_text(text)
    codes = [[int(row["color"][i : i + 2], 16) for i in (1, 3, 5)] for row in rows]
    values = np.uint8(codes if colors else [int(row["value"]) for row in rows])
    for number in range(IMAGES):
        classes = np.kron(rng.integers(0, len(rows), (2, 2)), np.ones((20, 28), int))
        pictures = rng.integers(0, 256, (*SIZE, 3)).astype("uint8"), values[classes]
        for name, picture in zip(folders, pictures, strict=True):
            drawing.write_png(folder / name / f"{number:04d}.png", picture)


def run(command, monkeypatch):
    """Runs a command of the guide in this process."""
    python, path, *arguments = command
    assert python == "python"
    if path == "scripts/train.py":
        arguments += [part for change in SMALL for part in ("--set", change)]
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    (name,) = re.findall(r'run\("(\w+)"\)', (ROOT / path).read_text())
    assert importlib.import_module(f"kseg.commands.{name}").main() == 0


def test_the_guide(user, monkeypatch, capsys):
    names = [pathlib.Path(command[1]).stem for command in COMMANDS]
    assert names == [
        *("prepare_data", "train", "train"),
        *("evaluate", "export", "evaluate", "predict"),
    ]
    for command in COMMANDS:
        run(command, monkeypatch)
    printed = capsys.readouterr().out
    classes = [row["name"] for row in table()[1] if not row["ignore"]]
    assert "steps:  2 on 1 device(s)" in printed and f"({len(classes)} classes)" in printed

    # What the guide says is there. It speaks of a photo 0042.jpg; ours are 0000.png, 0001.png.
    found = re.findall(r"`((?:data|runs|exports|predictions)/[^`]*\.\w+)`", GUIDE)
    assert {pathlib.Path(name).name for name in found} >= {"report.png", "panel.png", "0042.png"}
    for name in found:
        assert (user / name.replace("0042", "0001")).stat().st_size, name
    scores = json.loads((user / "runs/mine/evaluation/val.json").read_text())
    assert list(scores["classes"]) == classes

    (snippet,) = blocks(GUIDE, "python")
    images = np.random.default_rng(0).integers(0, 256, (1, 30, 50, 3)).astype("uint8")
    names = {"images": images}
    exec(snippet, names)
    assert names["labels"].shape == (1, 30, 50) and names["labels"].max() < len(classes)
    assert capsys.readouterr().out.endswith(f"{classes}\n")


def test_the_binary_table(user, monkeypatch):
    """The guide's promise about two classes: 0 and 255, 0 and 1, and JPEG files."""
    (text,) = re.findall(r"^```\n(name,color\n.*?)```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
    names = [line.split(",")[0] for line in text.splitlines()[1:]]
    truth = np.kron(np.random.default_rng(0).integers(0, 2, (8, 8)), np.ones((6, 6), int))
    for kind, scale, options in (("png", 255, []), ("png", 1, []), ("jpg", 255, ["binary"])):
        for name in ("images", "masks"):
            shutil.rmtree(user / "mine" / name)
            (user / "mine" / name).mkdir()
        for number in range(4):
            path = user / f"mine/masks/{number}.{kind}"
            path.write_bytes(
                cv2.imencode(path.suffix, (scale * truth).astype("uint8"))[1].tobytes()
            )
            noise = np.random.default_rng(number).integers(0, 256, (48, 48, 3)).astype("uint8")
            drawing.write_png(user / f"mine/images/{number}.png", noise)
        (user / "mine/classes.csv").write_text(text)
        command = [*COMMANDS[0], "--overwrite", *(["--masks", *options] if options else [])]
        run(command, monkeypatch)
        manifest = pipelines.read_manifest(user / "data/mine")
        assert manifest.class_names == names
        counts = np.bincount(truth.reshape(-1))
        for split in manifest.splits.values():
            assert split.pixels == [*(split.num_images * counts), 0]


def test_coloured_masks_give_the_same_data(user, monkeypatch):
    write_data(user / "colours", colors=True)
    prepare = COMMANDS[0]
    reports = []
    for source in ("mine", "colours"):
        output = f"data/{source}"
        arguments = {"mine": source, "data/mine": output}
        run([arguments.get(part, part) for part in prepare], monkeypatch)
        reports.append(json.loads((user / output / "report.json").read_text()))
    pixels = [{name: s["pixels"] for name, s in report["splits"].items()} for report in reports]
    assert pixels[0] == pixels[1]
