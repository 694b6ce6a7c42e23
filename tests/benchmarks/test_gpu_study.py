"""The study on one GPU, at toy size on the CPU, and its crops beside the loader's."""

import json
import os
import pathlib
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


def test_toy(tmp_path):
    """One command trains, evaluates and writes lines that a study reads, without TensorFlow."""
    forbidden = tmp_path / "forbidden"
    (forbidden / "tensorflow").mkdir(parents=True)
    (forbidden / "tensorflow" / "__init__.py").write_text("raise ImportError('forbidden')\n")
    output = tmp_path / "out"
    command = [sys.executable, str(BENCHMARKS / "gpu_study.py"), "--toy", "--output", str(output)]
    command += ["--arms", "region_contrast", "--save-weights", "region_contrast"]
    path = f"{forbidden}{os.pathsep}{ROOT}"
    environment = jax_process.environment(None, PYTHONPATH=path)  # As a user's shell has it.
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "depthwise, seconds a step" in result.stdout
    with zipfile.ZipFile(output / "study.zip") as archive:
        archive.extractall(tmp_path / "study")
    found = results.read(tmp_path / "study")
    assert [(run["arm"], run["seed"]) for run in found] == [
        ("region_contrast", 0),
        ("region_contrast", 1),
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
    assert len((output / "messages.jsonl").read_text().splitlines()) == 2
    lines = (output / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1]
    first, second = (run.counts.pixels for run in found)
    np.testing.assert_array_equal(first[:, 1], second[:, 1])  # The truth is that of the files.
    with np.load(output / "weights-region_contrast-0.npz") as file:
        assert any(name.startswith("model/") for name in file.files)


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
