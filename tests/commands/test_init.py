"""`kseg init`: each choice from the facts that it follows from, and the command on tiny data."""

import json
import pathlib

import numpy as np
import pytest

from kseg import backbones, config
from kseg.commands import init
from kseg.errors import UserError
from pipelines import records
from pipelines.datasets.dataset import Taxonomy
from tests.commands.tiny_run import NAMES, PALETTE, Example
from tests.tiny_networks import tiny_backbone

ROOT = pathlib.Path(__file__).parents[2]


def facts(**changes):
    values = {
        "train_split": "train",
        "eval_split": "val",
        "images": 400,
        "size": (360, 480),
        "shares": [0.5, 0.3, 0.2],
        "device": "CPU",
        "bfloat16": False,
        "memory": 8_000_000_000,
    }
    return init.Facts(**{**values, **changes})


@pytest.fixture
def data(tmp_path):
    """Prepared data of two splits, whose images differ in size."""
    taxonomy = Taxonomy(NAMES, PALETTE, {**{i: i for i in range(3)}, 255: 255})
    examples = [Example(str(i), (40 + 8 * (i % 2), 56)) for i in range(6)]
    folder = tmp_path / "mine"
    splits = {"train": examples[:4], "val": examples[4:]}
    records.write(folder, "folder", taxonomy, splits, workers=1, progress=False)
    return folder


@pytest.mark.parametrize(
    "size, crop",
    [
        ((360, 480), [240, 320]),  # Two thirds of each side.
        ((64, 96), [64, 96]),  # Less than the limit: the whole image.
        ((70, 100), [64, 96]),  # As much of it as has multiples of 16.
        ((3000, 4000), [240, 320]),
        ((400, 8000), [64, 1232]),  # A strip: not thinner than 64.
        ((10, 10), [10, 10]),
    ],
)
def test_crop(size, crop):
    found, comment = init.choose_crop(size, 240 * 320)
    assert found == crop and comment.startswith(f"crop: {crop[0]} x {crop[1]}: ")
    assert all(c <= side for c, side in zip(found, size, strict=True))


def test_class_weights_follow_from_the_shares():
    network = init.NETWORKS["lite2"]
    even, _ = init.choose(facts(), network, None)
    rare, comments = init.choose(facts(shares=[0.8, 0.1, 0.1]), network, None)
    assert even["losses"] == {}
    assert rare["losses"] == {"cross_entropy": {"class_weights": "sqrt_median_frequency"}}
    assert any("80% of the pixels, 8 times the median" in comment for comment in comments)


def peaks(base, each):
    return {n: {"peak_bytes": base + n * each, "seconds": 0.25 * n} for n in (2, 4)}


@pytest.mark.parametrize(
    "changes, measured, batch",
    [
        ({}, peaks(5e8, 1e8), 8),  # The most of a CPU.
        ({"device": "GPU"}, peaks(5e8, 1e8), 16),
        ({}, peaks(5e8, 1e9), 4),  # 0.5 + 8 GB is above 60 % of 8 GB, 0.5 + 4 GB is not.
        ({"memory": None}, peaks(5e8, 1e9), 8),
        ({"images": 10}, peaks(5e8, 1e8), 2),  # A quarter of the images.
        ({"images": 1}, peaks(5e8, 1e8), 1),
        ({}, {}, 8),
    ],
)
def test_batch(changes, measured, batch):
    network = init.NETWORKS["lite2"]
    sections, _ = init.choose_batch_and_steps(facts(**changes), network, measured, None)
    assert sections["data"]["batch_size"] == batch
    images = changes.get("images", 400)
    steps = max(int(np.ceil(network.epochs * images / batch)), network.least_steps)
    assert sections["train"]["steps"] == steps


def test_steps_from_minutes():
    network = init.NETWORKS["lite2"]
    measured = peaks(5e8, 1e8)  # A step of 8 images takes 2 seconds.
    sections, comments = init.choose_batch_and_steps(facts(), network, measured, 10)
    assert sections["train"]["steps"] == int(0.85 * 600 / 2)
    assert "5.1 passes" in comments[-1]  # 255 * 8 / 400.
    with pytest.raises(UserError, match="must leave time for 10 steps of 2"):
        init.choose_batch_and_steps(facts(), network, measured, 0.1)
    with pytest.raises(UserError, match="needs measured training steps"):
        init.choose_batch_and_steps(facts(), network, {}, 10)
    with pytest.raises(UserError, match=r"one image takes 9\.5 GB of 8\.0 GB"):
        init.choose_batch_and_steps(facts(), network, peaks(5e8, 9e9), None)


def test_network(tmp_path, monkeypatch):
    def unavailable(source):
        raise UserError(f"{source} is not available")

    monkeypatch.setattr("kseg.weights.hub.fetch_from_hugging_face", unavailable)
    network, source, (line,) = init.choose_network(facts(), tmp_path)
    assert source is None and network is init.NETWORKS["scratch"]
    assert "hf://timm/tf_efficientnet_lite2.in1k is not available" in line
    assert "efficientnet-lite2-9656183e.pth into" in line
    (tmp_path / "efficientnet-lite0-57934424.pth").write_bytes(b"")
    network, source, _ = init.choose_network(facts(images=50), tmp_path)
    assert network is init.NETWORKS["lite0"]
    assert source == str(tmp_path / "efficientnet-lite0-57934424.pth")
    monkeypatch.setattr("kseg.weights.hub.fetch_from_hugging_face", lambda source: "cached")
    network, source, _ = init.choose_network(facts(device="GPU", memory=16e9), tmp_path)
    assert network is init.NETWORKS["swin_t"] and source == network.hub


@pytest.mark.parametrize("key", init.NETWORKS)
def test_every_network_gives_a_valid_config(key):
    network = init.NETWORKS[key]
    values, _ = init.choose(facts(device="GPU", bfloat16=True), network, network.hub)
    sections, _ = init.choose_batch_and_steps(facts(), network, {}, None)
    for section, keys in sections.items():
        values[section] = {**values[section], **keys}
    values["data"]["dataset"] = "folder"
    found = config.parse({"name": "x", **values}, source="x")
    assert found.train.precision == "mixed_bfloat16"
    named = found.model.weights if network.whole else found.model.backbone.weights
    assert named == network.hub


def test_the_network_for_a_gpu_is_that_of_the_guide():
    network, guide = init.NETWORKS["swin_t"], config.load("finetune_upernet_swin_t")
    values, _ = init.choose(facts(device="GPU"), network, network.hub)
    values["data"]["dataset"] = "folder"
    found = config.parse({"name": "x", **values}, source="x")
    assert (found.model, found.optimizer) == (guide.model, guide.optimizer)
    other = config.load("finetune_upernet_swin_t_mmseg").model.weights
    assert network.files == (other.removeprefix("weights/"),)


def test_the_command(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(backbones.BACKBONES, "hrnet_w18_small", tiny_backbone)
    monkeypatch.setitem(init.NETWORKS["scratch"].model["head"], "channels", 8)
    monkeypatch.setattr(
        "kseg.weights.hub.fetch_from_hugging_face", lambda s: (_ for _ in ()).throw(UserError(s))
    )

    measured = []

    def here(work):  # In this process, which knows the tiny network.
        if work["do"] == "look":
            return init.look(work["folder"], work["split"], work["count"])
        if not measured:  # Once: it compiles a training step.
            measured.append(init.take_steps(work["config"]))
        return measured[0]

    monkeypatch.setattr(init, "_in_new_process", here)
    monkeypatch.chdir(tmp_path)
    assert init.main([str(data)]) == 0
    printed = capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    values, found = json.loads(path.read_text()), config.load(path)
    assert path.name == "mine.json" and found.name == "mine"
    assert all(line in printed for line in values["$comment"])
    subjects = [line.split(":")[0] for line in values["$comment"]]
    assert {"network", "crop", "batch", "class weights", "steps"} <= set(subjects)
    assert found.data.crop_size == (32, 48) and found.data.batch_size == 1
    assert (found.data.dataset, found.data.path) == ("folder", str(data))
    assert (found.data.train_split, found.data.eval_split) == ("train", "val")
    assert measured[0]["peak_bytes"] >= 0 and measured[0]["seconds"] > 0
    with pytest.raises(UserError, match="exists already"):
        init.init(data)
    with pytest.raises(UserError, match=r"must end in \.json"):
        init.init(data, "mine.txt")


def test_a_comment_has_no_effect(tmp_path):
    (tmp_path / "mine.json").write_text('{"extends": "quickstart", "$comment": ["why", "so"]}')
    assert config.load(tmp_path / "mine.json", ["name=x"]) == config.load("quickstart", ["name=x"])
    with pytest.raises(UserError, match=r"`\$comment` is a key of config files"):
        config.load("quickstart", ["$comment=x"])
