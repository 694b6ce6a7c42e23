"""The training step on JAX beside that on TensorFlow, from the same config and weights."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.training.build import build_optimizer
from kseg.training.trainer import SegmentationTrainer, build_step
from tests import jax_process
from tests.training import jax_steps

ROOT = pathlib.Path(__file__).resolve().parents[2]
ON_JAX = """
import sys
sys.modules["tensorflow"] = None  # Every import of it fails.
from tests.training.jax_steps import run_on_jax
run_on_jax(*sys.argv[1:])
"""
# Of the largest value of a variable, at least 0.1: beta starts at 0 and is small after four steps.
# bfloat16 rounds each operation by up to 2^-9.
TOLERANCE = {"sgd": 1e-4, "adamw": 1e-4, "mixed_bfloat16": 0.1}
LOG_TOLERANCE = {"sgd": 1e-5, "adamw": 1e-5, "mixed_bfloat16": 2e-3}


def train_on_tensorflow(case, initial):
    settings, segmenter, arguments = jax_steps.parts(case)
    trainer = SegmentationTrainer(segmenter, **arguments)
    optimizer = build_optimizer(
        settings.optimizer, settings.schedule, steps=settings.train.steps, segmenter=segmenter
    )
    trainer.compile(optimizer=optimizer)
    variables = jax_steps.named(segmenter, trainer.objectives)
    np.savez(initial, **{name: np.asarray(v.value) for name, v in variables.items()})
    before = {name: np.asarray(v.value) for name, v in variables.items()}
    step = build_step(trainer, tf.distribute.get_strategy())
    logs = []
    for number in range(jax_steps.STEPS):
        arrays = {key: tf.constant(value) for key, value in jax_steps.batch(number, case).items()}
        logs.append({name: float(value) for name, value in step(arrays).items()})
    return logs, before, {name: np.asarray(v.value) for name, v in variables.items()}


@pytest.mark.parametrize("case", jax_steps.CASES)
def test_equals_tensorflow(case, tmp_path, monkeypatch):
    for name in ("uniform", "randint"):  # `jax_steps` replaces them: put back afterwards.
        monkeypatch.setattr(keras.random, name, getattr(keras.random, name))
    initial, result = tmp_path / "initial.npz", tmp_path / "result.npz"
    logs, before, expected = train_on_tensorflow(case, initial)
    command = [sys.executable, "-c", ON_JAX, case, str(initial), str(result)]
    done = subprocess.run(
        command, cwd=ROOT, env=jax_process.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with np.load(result) as found:
        for name in logs[0]:
            values = np.array([of_step[name] for of_step in logs])
            np.testing.assert_allclose(
                found[f"log/{name}"], values, rtol=LOG_TOLERANCE[case], atol=1e-6, err_msg=name
            )
        for name, value in expected.items():
            scale = max(np.abs(np.float64(value)).max(), 0.1)
            np.testing.assert_allclose(
                np.float64(found[name]), value, rtol=0, atol=TOLERANCE[case] * scale, err_msg=name
            )
        # Without its loss the auxiliary head stays as it was, weight decay or not; all else moves.
        model = [name for name in expected if name.startswith("model/")]
        still = {name for name in model if np.array_equal(before[name], expected[name])}
        unused = {name for name in model if "_aux_" in name and "moving" not in name}
        assert still == (unused if case == "adamw" else set())
        for name in still:
            np.testing.assert_array_equal(found[name], before[name], err_msg=name)
