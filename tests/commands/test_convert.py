import json

import numpy as np
import pytest

from kseg import backbones, files
from kseg.backbones import build_backbone
from kseg.commands import convert
from kseg.errors import UserError
from kseg.weights import load_weights
from tests.tiny_networks import tiny_resnet


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    def build(**arguments):
        return tiny_resnet(**{"channels": (2, 3, 4, 5), "name": "resnet18", **arguments})

    monkeypatch.setitem(backbones.BACKBONES, "resnet18", build)


def call(*arguments):
    return convert.main([str(argument) for argument in arguments])


def write_source(path, **arguments):
    """An `.npz` that holds a backbone with random weights; gives the backbone."""
    backbone = build_backbone("resnet18", **arguments)
    rng = np.random.default_rng(0)
    backbone.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in backbone.weights])
    np.savez(path, **{weight.path: weight.numpy() for weight in backbone.weights})
    return backbone


def test_backbone(tmp_path, capsys):
    source, output = tmp_path / "x.npz", tmp_path / "y.weights.h5"
    backbone = write_source(source, variant="v1c")
    arguments = ["--source", source, "--backbone", "resnet18", "--output", output]
    assert call(*arguments, "--set", "variant=v1c") == 0
    printed = capsys.readouterr().out
    assert f"loaded {len(backbone.weights)} arrays" in printed
    assert f"wrote {output}: resnet18, {len(backbone.weights)} weights" in printed
    loaded = build_backbone("resnet18", variant="v1c")
    load_weights(loaded, output)
    for weight, expected in zip(loaded.weights, backbone.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), expected.numpy())
    assert sorted(tmp_path.iterdir()) == [source, output]


def config(folder):
    """A config file whose network is tiny."""
    path = folder / "experiment.json"
    values = {
        "model": {
            "backbone": {"name": "resnet18", "stem_channels": 4},
            "head": {
                "name": "deeplabv3",
                "channels": 4,
                "aspp_channels": 4,
                "aux_channels": 4,
            },
        },
        "data": {"dataset": "camvid", "crop_size": [32, 32], "batch_size": 1},
        "train": {"steps": 1},
    }
    path.write_text(json.dumps(values))
    return path


def test_config_with_a_backbone_only_writes_the_backbone(tmp_path, capsys):
    source, output = tmp_path / "x.npz", tmp_path / "y.weights.h5"
    backbone = write_source(source)
    call("--source", source, "--config", config(tmp_path), "--output", output)
    printed = capsys.readouterr().out
    assert "newly initialized" in printed
    assert f"wrote {output}: resnet18, {len(backbone.weights)} weights" in printed
    assert not load_weights(build_backbone("resnet18"), output).missing


def test_config_with_a_whole_network(tmp_path, capsys):
    options = convert.parse_arguments(
        ["--source", "x", "--config", str(config(tmp_path)), "--output", "y"]
    )
    whole = convert.segmenter_builder(options)()
    whole.save_weights(tmp_path / "x.weights.h5")
    output = tmp_path / "y.weights.h5"
    call("--source", tmp_path / "x.weights.h5", "--config", config(tmp_path), "--output", output)
    assert f"wrote {output}: segmenter, {len(whole.weights)} weights" in capsys.readouterr().out
    report = load_weights(convert.segmenter_builder(options)(), output)
    assert not report.missing
    assert not report.unused


@pytest.mark.parametrize(
    "change, message",
    [
        (["--source", "gone.npz"], r"There is no weights file gone\.npz"),
        (["--output", "y.h5"], r"must end in \.weights\.h5"),
        (["--output", "gone/y.weights.h5"], "There is no folder gone"),
        (["--backbone", "resnet19"], "There is no backbone 'resnet19'. Choose from .*resnet18"),
        (["--set", "variant=v1e"], "cannot be built: `variant` must be"),
        (["--set", "variant"], "--set takes key=value"),
        (["--set", "speed=2"], "cannot be built: .*speed"),
        (["--set", "variant=v1c"], "does not fit 'resnet18'"),
    ],
)
def test_names_what_is_wrong_and_writes_nothing(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / "x.npz")
    before = sorted(tmp_path.iterdir())
    arguments = ["--source", "x.npz", "--backbone", "resnet18", "--output", "y.weights.h5"]
    with pytest.raises(UserError, match=message) as caught:
        call(*arguments, *change)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_is_there_stays(tmp_path, monkeypatch):
    source, output = tmp_path / "x.npz", tmp_path / "y.weights.h5"
    write_source(source)
    output.write_text("precious")
    arguments = ["--source", source, "--backbone", "resnet18", "--output", output]
    with pytest.raises(UserError, match=r"exists already\. Use --overwrite"):
        call(*arguments)

    def full_disk(*arguments):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full_disk)
        with pytest.raises(OSError, match=r"No space left on device.*weights\.h5"):
            call(*arguments, "--overwrite")
    assert output.read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == [source, output]
    assert call(*arguments, "--overwrite") == 0
    assert output.read_bytes()[:4] == b"\x89HDF"
