"""Every benchmark runs at toy size, and its tables are complete. No time is tested."""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import pipelines
from kseg import layers
from kseg.backbones import hrnet, resnet
from kseg.contrast.info_nce import info_nce as kernel
from kseg.errors import UserError
from tests.benchmarks.scripts import BENCHMARKS, MODULES, ROOT, SCRIPTS, load

measuring = load("_measuring")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{ROOT}"}


@pytest.fixture
def toy(capsys, monkeypatch, tmp_path):
    """Runs a benchmark at toy size in an empty folder, and returns its lines of output."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        assert load(name).main(["--toy", *map(str, arguments)]) == 0
        assert not any(tmp_path.iterdir())
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {name}.py")
    assert ("--toy" in result.stdout) == (name != "gpu_pack")


def test_every_module_is_imported():
    """In one process, of Keras on JAX; those of PyTorch where it is installed."""
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "timm"))
    of_torch = {"_torch_peers", "_gpu_torch", "_gpu_torch_networks"}
    names = [name for name in (*SCRIPTS, *MODULES) if has_torch or name not in of_torch]
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    environment = {**ENVIRONMENT, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_info_nce(toy):
    lines = toy("info_nce", "--keys", 64, 96)  # What is given is not the toy's.
    assert [line[:24].strip() for line in lines[2:]] == ["64 x 64 x 8"] * 7 + ["64 x 96 x 8"] * 7
    assert [line[26:52].strip() for line in lines[2:9]] == [
        "plain formula",
        "three products alone",
        "sum, sorted rows",
        "sum, random rows",
        "sum, keys detached",
        "each anchor's",
        "each anchor's, random rows",
    ]
    for line in lines[2:]:
        seconds, _, to_plain, to_products = line[52:].split()
        assert float(seconds) >= 0 and float(to_plain) >= 0
        # The plain formula is measured before the products.
        assert (to_products == "-") == ("plain formula" in line)
    assert lines[2].split()[-2] == lines[3].split()[-1] == "1.00"


def test_server(toy):
    lines = toy("server")
    assert lines[0] == "deeplabv3_toy, 32 x 48, PNG, 2 clients, 6 requests"
    assert lines[2].startswith("network alone") and lines[3].startswith("server, batches of 2")
    assert lines[3].split()[-2:] == ["0", "0"]


def test_the_plain_formula_computes_what_the_kernel_does():
    rng = np.random.default_rng(0)
    anchors, keys = (tf.math.l2_normalize(rng.normal(size=(n, 6)), axis=1) for n in (7, 9))
    anchors, keys = tf.cast(anchors, "float32"), tf.cast(keys, "float32")
    labels = [tf.constant(rng.integers(0, 3, n), "int32") for n in (7, 9)]
    expected, _ = kernel(anchors, labels[0], keys, labels[1])
    found = load("info_nce").plain_formula(anchors, labels[0], keys, labels[1])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_importers(toy, monkeypatch):
    importers = load("importers")
    monkeypatch.setattr(measuring, "in_new_process", in_this_process)
    lines = toy("importers")
    assert [line.split()[0] for line in lines[2:-1]] == list(importers.WRITERS)
    assert all(float(cell) > 0 for line in lines[2:-1] for cell in line.split()[1:])
    assert lines[-1].startswith("A COCO file of 0 MB, 5 images: read in ")


def test_labeling(toy):
    lines = toy("labeling")
    assert [line[16:28].strip() for line in lines[1:4]] == ["one piece", "windows", "tiles"]
    assert [line[:24].strip() for line in lines[5:7]] == ["one at a time", "batches"]
    shares = {line[:20].strip(): float(line[20:].split()[0]) for line in lines[8:]}
    assert list(shares) == list(load("labeling").BLENDS)
    assert all(0 <= share <= 100 for share in shares.values())


def test_tiling(toy):
    lines = toy("tiling")
    assert [line[14:44].strip() for line in lines[1:]] == list(load("tiling").FORMS)
    with pytest.raises(UserError, match="--only must name some of: RGB in tiles"):
        toy("tiling", "--only", "tiles")


def in_this_process(measure, arguments, **values):
    """Stands for a process for each measurement, which would import TensorFlow each time."""
    return measure(argparse.Namespace(**{**vars(arguments), **values}))


def test_bank(toy):
    lines = toy("bank")
    shares = 1 / np.arange(1, 6)
    shares /= shares.sum()  # 20 images of 2.5 of the 5 classes.
    compact = sum(min(max(int(share * 50), 1), 20) for share in shares)
    slots = [int(line[22:].split()[0]) for line in lines[2:]]
    assert slots == [compact, compact, 100, 100]
    assert [line[:22].strip() for line in lines[2:]] == list(load("bank").VARIANTS)


def test_contrast(toy):
    lines = toy("contrast")
    assert lines[0].startswith("training step of hrnet on resnet18, 2 x 64 x 96, float32")
    plain, method = lines[2:4]
    assert plain.startswith("cross-entropy only") and method.startswith("RegionContrast")
    assert plain.split()[3] == "1.000"
    assert plain.count("+0.00 %") == 6
    assert method.count("%") == 6
    assert "objectives alone" in lines[5]
    assert len(lines) == 8  # One objective with one batch.
    assert lines[7].startswith("RegionContrast") and len(lines[7].split()) == 3


def test_peak_of_tensors():
    """A sum of two squares holds its input, the squares and their sum: 16 MB at most."""
    code = """
import os
os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = "true"
import tensorflow as tf, _measuring
def compute():
    x = tf.fill([1000, 1000], 2.0)
    y, z = tf.square(x), tf.square(x)
    float((y + z)[0, 0])
compute()
print(_measuring.peak_of_tensors(compute))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert float(found.stdout.split()[-1]) == pytest.approx(16, rel=0.01)


def test_keys(toy):
    lines = toy("keys")
    assert lines[0].startswith("training step of hrnet on resnet18, 2 x 64 x 96, 8 classes")
    assert lines[3].startswith("an image of 96 x 160, crop 64 x 96: ms of processor time")
    assert [line.split()[0] for line in lines[1:3]] == ["plain", "dice"]
    assert [line.split()[0] for line in lines[4:]] == ["plain", "cutmix"]
    assert [line.endswith(" %") for line in lines] == [False, False, True, False, False, True]


def test_startup(toy):
    lines = toy("startup")
    startup = load("startup")
    assert [line[:34].strip() for line in lines[2:]] == list(startup.VARIANTS)
    cells = [line[34:].split() for line in lines[2:]]
    assert all(len(row) == len(startup.COLUMNS) for row in cells)
    assert 0 < int(cells[0][-1]) < int(cells[1][-1])  # Nodes of the graph: contrast adds some.
    assert cells[2][1:4] == ["-"] * 3
    assert resnet.ConvNorm is hrnet.ConvNorm is layers.ConvNorm  # As it was.


def test_plain_layers_have_the_weights_of_ours():
    """The peer of `startup.py` is the same network, of stock layers."""
    shapes = []
    for peers in (contextlib.nullcontext(), load("startup").plain_layers()):
        with peers:
            model = resnet.resnet18(**load("_networks").TINY_RESNET)
        shapes.append(sorted(weight.shape for weight in model.get_weights()))
    assert shapes[0] == shapes[1]
    assert {type(layer).__module__.partition(".")[0] for layer in model.layers} == {"keras"}


def test_models(toy):
    lines = toy("models")
    assert len(lines) == 3
    name, crop, *values = lines[2].split()
    assert (name, crop, len(values)) == ("deeplabv3_toy", "64x96", 7)
    models = load("models")
    of_backbone = {"part": "backbone", "name": "resnet18", "toy": True, "precision": "float32"}
    found = models.measure(argparse.Namespace(**of_backbone, batch=2, rounds=1))
    assert set(found) == {"forward", "step"}


def test_share_of_onednn(toy):
    lines = toy("models", "--only", "resnet18", "--primitives")
    assert [line.split()[:2] for line in lines[-2:]] == [
        ["resnet18,", "forward"],
        ["resnet18,", "step"],
    ]
    assert sum(float(share) for share in lines[-1].split()[3::2]) == pytest.approx(100, abs=2)


def test_seconds_in_onednn_are_summed_by_primitive():
    printed = (
        b"onednn_verbose,v1,info,oneDNN v3.7\n"
        b"onednn_verbose,v1,primitive,exec,cpu,convolution,jit,forward,src:f32,,alg,mb2_ic3,1.5\n"
        b"another line\n"
        b"onednn_verbose,v1,primitive,create:cache_miss,cpu,reorder,jit,undef,src:f32,,,3x3,8\n"
        b"onednn_verbose,v1,primitive,exec,cpu,convolution,jit,backward,src:f32,,alg,mb2_ic3,0.5\n"
        b"onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:f32,,,3x3,0.25\n"
    )
    measuring = load("_measuring")
    seconds, primitives = measuring.seconds_in_onednn(lambda: os.write(1, printed))
    assert seconds > 0
    assert primitives == pytest.approx({"convolution": 2e-3, "reorder": 0.25e-3})


def test_backbones_beside_torch(toy):
    pytest.importorskip("torch")
    pytest.importorskip("timm")
    lines = toy("models", "--only", "resnet18", "--torch", sys.executable)
    assert len(lines) == 3
    assert len(lines[2].split()) == 2 + 6


@pytest.fixture
def serving(monkeypatch):
    """serving.py, whose processes are calls in this process."""
    module = load("serving")

    class InThisProcess:
        def __init__(self, command):
            output = io.StringIO()
            with monkeypatch.context() as patch, contextlib.redirect_stdout(output):
                patch.setattr(sys, "stdin", io.StringIO("\n"))
                assert module.main(command[2:]) == 0
            self.found, times = map(json.loads, output.getvalue().splitlines())
            self.times = [times]

        def measure(self):
            assert len(self.times[0]) == 2

        best = measuring.TimedProcess.best

        def close(self):
            pass

    monkeypatch.setattr(module, "limit_threads", lambda threads: None)
    monkeypatch.setattr(measuring, "TimedProcess", InThisProcess)
    return module


def test_serving(toy, serving):
    lines = toy("serving")
    assert lines[0].startswith("deeplabv3_toy, one image of 64 x 96")
    assert [line[:32].strip() for line in lines[2:]] == list(serving.RUNTIMES)
    assert all(len(line[32:].split()) == 5 for line in lines[2:])


def test_networks_beside_torch():
    """The real processes of PyTorch, which need no kseg."""
    pytest.importorskip("torch")
    pytest.importorskip("timm")
    command = measuring.torch_command(
        sys.executable, "segmenter", "deeplabv3_toy", 64, 96, 5, 1, "channels_last"
    )
    process = measuring.TimedProcess(command)
    process.measure()
    process.close()
    assert process.found["weights"] > 0
    assert min(process.best()) > 0


def test_input_path(toy, monkeypatch):
    monkeypatch.setattr(load("input_path"), "limit_threads", lambda: None)
    lines = toy("input_path")
    assert lines[0].startswith("toy, 96x160, crop 64x96")
    assert [line[:22].strip() for line in lines[3:7]] == [
        "JPEG with bands",
        "JPEG without bands",
        "PNG originals",
        "PNG, stored as JPEG",
    ]
    assert len([line for line in lines[8:] if line.endswith(" ms")]) == 6  # The stages.
    assert lines[-1].startswith("resident memory")
    assert [step.split()[-1] for step in lines[-1].split(",")] == ["2", "10", "20"]


def test_input_channels(toy, monkeypatch):
    monkeypatch.setattr(load("input_path"), "limit_threads", lambda: None)
    lines = toy("input_channels")
    assert lines[0].startswith("96x160, crop 64x96")
    titles = [line[:31].strip() for line in lines[1:]]
    assert titles[3:] == ["four channels, 16 bits", "the same, whole TIFFs, OpenCV"]
    assert len(titles) == 5 and all(" ms" in line and " MB" in line for line in lines[1:])


def test_input_path_of_prepared_data(capsys, monkeypatch, tmp_path):
    module = load("input_path")
    monkeypatch.setattr(module, "limit_threads", lambda: None)
    pipelines.prepare(
        "synthetic", output=tmp_path, train_images=3, val_images=2, size=(48, 64), progress=False
    )
    arguments = ["--toy", "--data", str(tmp_path), "--split", "val", "--crop", "32", "40"]
    assert module.main(arguments) == 0
    first, *stages = capsys.readouterr().out.splitlines()
    assert "ms of processor time an image" in first
    assert len(stages) == 6
    with pytest.raises(pipelines.DataError, match="'test'"):
        module.main([*arguments, "--split", "test"])


def test_a_measurement_in_a_new_process():
    bank = load("bank")
    arguments = {"images": 5, "classes": 2, "classes_per_image": 1.5, "batch": 1}
    arguments = argparse.Namespace(**arguments, block=2, dim=4, toy=False)
    found = measuring.in_new_process(bank.measure, arguments, variant="dense, float32")
    assert found["slots"] == 10
    assert found["megabytes"] == pytest.approx(10 * 4 * 4 / 1e6)


SCRIPT = """
import sys
import _measuring
from kseg.commands import console
from kseg.errors import UserError

def measure(arguments):
    if arguments.variant == "request":
        return _measuring.time_on_request(lambda: (lambda: None, {"ours": arguments.number}))
    if arguments.variant == "mistake":
        raise UserError("too large")
    if arguments.variant == "fault":
        sys.exit(7)
    return [arguments.variant, arguments.number]

if __name__ == "__main__":
    parser = _measuring.build_parser("Test.")
    console.run(lambda: _measuring.main(parser, None, compare=print, measure=measure, toy={}))
"""


def test_processes(tmp_path, monkeypatch, capfd):
    (tmp_path / "measured.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    monkeypatch.setitem(sys.modules, "measured", None)  # Forgotten at the end of the test.
    del sys.modules["measured"]
    measure = importlib.import_module("measured").measure
    arguments = argparse.Namespace(toy=False, number=3)
    assert measuring.in_new_process(measure, arguments, variant="plain") == ["plain", 3]
    with pytest.raises(UserError, match=r"^too large$"):
        measuring.in_new_process(measure, arguments, variant="mistake")
    assert capfd.readouterr().err == ""
    with pytest.raises(UserError, match=r"Measuring variant fault failed, .*\(exit code 7\)"):
        measuring.in_new_process(measure, arguments, variant="fault")
    process = measuring.TimedProcess(measuring.command(measure, arguments, variant="request"))
    assert process.found["ours"] == 3
    process.measure()
    process.measure()
    process.close()
    assert len(process.times) == 2
    assert process.best() == tuple(np.min(process.times, axis=0))
    with pytest.raises(UserError, match="failed, see above"):
        measuring.TimedProcess(measuring.command(measure, arguments, variant="fault"))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("models", ["--only", "hrnet_w17"], "--only must name some of: deeplabv3_toy, resnet18"),
        ("serving", ["--only", "x"], "Received: x"),
        ("contrast", ["--only", "MS/CS", "y"], "cross-entropy only, MS/CS, .* Received: y"),
        ("serving", ["--torch", "/no/python"], r"--torch must be a Python with .* \(No such file"),
        ("models", ["--torch", "/bin/false"], "--torch must be a Python with torch and timm"),
    ],
)
def test_mistakes(name, arguments, message):
    with pytest.raises(UserError, match=message):
        load(name).main(["--toy", *arguments])


def test_sizes_are_positive(capsys):
    with pytest.raises(SystemExit) as ended:
        load("info_nce").main(["--rounds", "0"])
    assert ended.value.code == 2
    assert "must be 1 or more, not 0" in capsys.readouterr().err


def test_reproducibility():
    """The real command in two processes at once: no array of the checkpoints differs in a bit."""
    command = [sys.executable, str(BENCHMARKS / "reproducibility.py"), "--toy"]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    cells = [cell.strip() for cell in result.stdout.splitlines()[-1].strip("|").split("|")]
    assert cells[0] == "resnet18_deeplabv3" and int(cells[5]) > 200 and cells[6] == "0"
