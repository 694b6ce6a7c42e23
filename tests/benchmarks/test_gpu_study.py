"""The study on one GPU, at toy size on the CPU, and its crops beside the loader's."""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from kseg.evaluation.image_counts import iou_of, mean_over_classes
from kseg.studies import results
from pipelines import augment
from tests import jax_process

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "scripts" / "benchmarks"


def _study(output, *arguments):
    """Runs the study at toy size, where TensorFlow cannot be imported. Returns its output."""
    forbidden = output.parent / "forbidden"
    (forbidden / "tensorflow").mkdir(parents=True, exist_ok=True)
    (forbidden / "tensorflow" / "__init__.py").write_text("raise ImportError('forbidden')\n")
    command = [sys.executable, str(BENCHMARKS / "gpu_study.py"), "--toy", "--output", str(output)]
    path = f"{forbidden}{os.pathsep}{ROOT}"
    environment = jax_process.environment(None, PYTHONPATH=path)  # As a user's shell has it.
    result = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_toy(tmp_path):
    """One command trains, evaluates and writes lines that a study reads, without TensorFlow."""
    output = tmp_path / "out"
    arm = "region_contrast"
    arguments = ["--arms", arm, "--save-weights", arm, "--seeds", "0", "1", "2", "--profile"]
    assert "a step takes" in _study(output, *arguments, "--stack", "2")
    assert json.loads((output / "kernels-region_contrast.json").read_text())["step_ms"] > 0
    with zipfile.ZipFile(output / "study.zip") as archive:
        archive.extractall(tmp_path / "study")
    found = results.read(tmp_path / "study")
    assert [(run["arm"], run["seed"]) for run in found] == [
        ("region_contrast", 0),
        ("region_contrast", 1),
        ("region_contrast", 2),
    ]
    assert set(results.read_settings(tmp_path / "study")) == {run["fingerprint"] for run in found}
    for run in found:
        counts = run.counts
        assert counts.ids == ["0", "1", "2"]
        iou = mean_over_classes(iou_of(counts.pixels.sum(axis=0)))
        assert run["last"]["mean_iou"] == pytest.approx(iou)
        assert run["last"]["step"] == run["steps"] == 2
        assert run["features"]["alignment"] > 0
        assert {"loss", "cross_entropy", "auxiliary"} < set(run["losses"])
        assert run["runs_at_once"] == 2
    assert len((output / "messages.jsonl").read_text().splitlines()) == 3
    lines = (output / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1, 2]
    first, second, _ = (run.counts.pixels for run in found)
    np.testing.assert_array_equal(first[:, 1], second[:, 1])  # The truth is that of the files.
    with np.load(output / "weights-region_contrast-0.npz") as file:
        assert any(name.startswith("model/") for name in file.files)
    # The same command has nothing left to train.
    said = _study(output, *arguments, "--stack", "2")
    assert "finished 3 of 3 runs" in said and "region_contrast:" not in said
    assert (output / "results.jsonl").read_text().splitlines() == lines


@pytest.mark.slow
def test_runs_at_once_equal_single_ones(tmp_path):
    """Three runs in batches of two, the last one filled up: the first loss of each is the same."""
    found = []
    settings = [
        "train.steps=1",
        "schedule.warmup_steps=0",
        "data.batch_size=4",
    ]
    overrides = itertools.chain.from_iterable(("--set", setting) for setting in settings)
    arguments = ["--arms", "cross_entropy", "--seeds", "0", "1", "2", "--no-features", *overrides]
    for stack in ("1", "2"):
        output = tmp_path / stack
        said = _study(output, *arguments, "--stack", stack)
        assert ("depthwise, seconds a step" in said) == (stack == "1")
        lines = (output / "results.jsonl").read_text().splitlines()
        found.append({run["seed"]: run for run in map(json.loads, lines)})
    single, at_once = found
    assert list(single) == list(at_once) == [0, 1, 2]
    # The other loss is that of a head with image pooling: its batch norm over four pixels magnifies
    # rounding.
    losses = [run["losses"]["auxiliary"] for run in single.values()]
    assert np.ptp(losses) > 2e-3
    for seed, run in single.items():
        assert at_once[seed]["losses"]["auxiliary"] == pytest.approx(losses[seed], rel=5e-5)
        assert at_once[seed]["losses"] == pytest.approx(run["losses"], rel=5e-3)


_PRODUCTS = """
import itertools
import keras, jax, jax.numpy as jnp, numpy as np
import _matrix_products
from kseg.layers.convolution import Conv2D
from kseg.layers.depthwise import DepthwiseConv2D

cases = [
    dict(filters=6, kernel_size=1),
    dict(filters=6, kernel_size=1, strides=2, use_bias=True),
    dict(filters=6, kernel_size=3),
    dict(filters=2, kernel_size=3),  # The product before the shifts.
    dict(filters=2, kernel_size=(3, 5), dilation_rate=2),
    dict(filters=2, kernel_size=3, strides=2),
    dict(filters=6, kernel_size=3, strides=2, tensorflow_padding=True),
    dict(filters=2, kernel_size=5, tensorflow_padding=True),
    dict(filters=6, kernel_size=3, padding="valid"),
    dict(filters=2, kernel_size=(2, 3), padding="valid", dilation_rate=(1, 2)),
]
rng = np.random.default_rng(0)
layers = [Conv2D(**case) for case in cases] + [DepthwiseConv2D(3, strides=2)]
for layer, (height, width) in zip(layers, itertools.cycle([(11, 16), (12, 13)])):
    inputs = keras.Input((height, width, 4))
    model = keras.Model(inputs, layer(inputs))
    maps = rng.normal(size=(2, 3, height, width, 4)).astype("float32")  # Of two networks.
    kernels = rng.normal(size=(2, *layer.kernel.shape)).astype("float32")

    def loss(kernel, maps):
        with keras.StatelessScope(state_mapping=[(layer.kernel, kernel)]):
            outputs = model(maps)
        return jnp.sum(jnp.sin(outputs)), outputs

    def derive(*arguments):  # A new function each time, since `jax.jit` keeps what it traced.
        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*arguments)

    one = jax.jit(lambda *arguments: derive(*arguments))
    expected = [one(*arguments) for arguments in zip(kernels, maps)]
    _matrix_products.install(model)
    found = jax.jit(jax.vmap(derive))(kernels, maps)
    for i, of_one in enumerate(expected):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(of_one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4, err_msg=str(layer))
layer = Conv2D(4, 3, groups=2)
inputs = keras.Input((8, 8, 4))
try:
    _matrix_products.install(keras.Model(inputs, layer(inputs)))
except ValueError as error:
    assert "`groups` must be 1. Received: 2" in str(error)
else:
    raise AssertionError("groups")
"""


def _run_beside_the_scripts(code):
    """Runs Python code on JAX that can import the benchmarks' modules. Returns its output."""
    environment = jax_process.environment(PYTHONPATH=f"{BENCHMARKS}{os.pathsep}{ROOT}")
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_matrix_products_equal_convolutions():
    """Values and gradients of networks with stacked weights, by products and by convolutions."""
    _run_beside_the_scripts(_PRODUCTS)


_MODULE = """HloModule jit_all_lanes, is_scheduled=true

%fused (p: f32[8,4]) -> f32[8] {
  %p = f32[8,4]{1,0} parameter(0)
}

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %sums = f32[8]{0} fusion(%x), kind=kInput, calls=%fused, metadata={op_name="jit(f)/conv_1/sum"}
  %y = (bf16[8,2]{1,0}, s8[999]{0}) custom-call(%x, %arg), custom_call_target="gemm"
  %z = f32[8,4]{1,0} copy(%x), metadata={op_name="transpose(jvp(block_3_conv))/add"}
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%i, %z)
}

ENTRY %main.1 (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
}
"""
_COMPILE = f"""
import gpu_compile
found = list(gpu_compile.kernels_of_loop({_MODULE!r}))
assert found == [
    {{"kind": "fusion kInput", "part": "forward conv_N", "bytes": 8 * 4 + 32 * 4}},
    {{"kind": "gemm", "part": "forward ", "bytes": 16 * 2 + 32 * 4}},
    {{"kind": "copy", "part": "backward block_N_conv", "bytes": 2 * 32 * 4}},
], found
raise SystemExit(gpu_compile.main(["--toy", "--arms", "cross_entropy", "--groups", "2"]))
"""


def test_bytes_of_compiled_steps():
    """Those of a module by hand; and the command at toy size, for the CPU."""
    lines = _run_beside_the_scripts(_COMPILE).splitlines()
    line, *groups = (line for line in lines if "built in" not in line)
    assert re.search(r"^cross_entropy .* a step of 2 runs: \d+ kernels, [\d.]+ GB, ", line)
    assert len(groups) == 2 and all(" GB  " in group for group in groups)


@pytest.mark.parametrize("size", [(40, 50), (20, 60), (13, 17)])
def test_crops_are_those_of_the_loader(size):
    import jax
    import jax.numpy as jnp

    sys.path.insert(0, str(BENCHMARKS))
    try:
        import _device_data
    finally:
        sys.path.remove(str(BENCHMARKS))
    rng = np.random.default_rng(0)
    crop_size, scale_range = (24, 32), (0.6, 1.9)
    image = np.zeros((45, 64, 3), "uint8")
    labels = np.full((45, 64), 255, "uint8")
    image[: size[0], : size[1]] = rng.integers(0, 256, (*size, 3))
    labels[: size[0], : size[1]] = rng.integers(0, 5, size)
    crop = jax.jit(
        lambda numbers: _device_data.crop(
            jnp.asarray(image),
            jnp.asarray(labels),
            jnp.array(size, "int32"),
            numbers,
            crop_size=crop_size,
            scale_range=scale_range,
            flip=True,
        )
    )
    wrong = 0
    for numbers in rng.random((30, _device_data.NUM_NUMBERS)).astype("float32"):
        found_image, found_labels = crop(numbers)
        _, extent, shape = augment.draw_extent(numbers[0], size, crop_size, scale_range)
        first = augment.draw_place(numbers[3:5], tf.constant(size), extent)
        (top, left), (rows, columns) = first.numpy(), extent.numpy()
        window = image[top : top + rows, left : left + columns]
        expected = augment.resize_image(window, shape)
        expected_labels = augment.resize_labels(tf.constant(labels), first, extent, shape)
        if numbers[1] < 0.5:
            expected, expected_labels = augment.mirror(expected, expected_labels)
        expected, expected_labels = augment.pad_to(expected, expected_labels, crop_size)
        np.testing.assert_array_equal(found_labels, expected_labels)
        difference = np.abs(np.int32(found_image) - np.int32(expected))
        assert difference.max() <= 1  # Halves are rounded by the last bit of a sum.
        wrong += np.count_nonzero(difference)
    assert wrong < 0.001 * 30 * 24 * 32 * 3
