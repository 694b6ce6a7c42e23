"""Objectives and losses on JAX: values and compiled gradients are those on TensorFlow."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import jax_process, on_backend

ROOT = pathlib.Path(__file__).parents[1]


def run(arguments, **environment):
    """Python with JAX on the CPU."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=jax_process.environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    path = tmp_path_factory.mktemp("jax") / "jax.npz"
    process = run(["-m", "tests.on_backend", str(path)])
    try:
        here = on_backend.results()
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    with np.load(path) as file:
        there = dict(file)
    assert str(there.pop("backend")) == "jax"
    return here, there


@pytest.mark.parametrize("name", [*on_backend.losses(), *on_backend.objectives()])
def test_values_and_gradients_are_those_of_tensorflow(both, name):
    here, there = both
    keys = [key for key in here if key.split(":")[0] == name]
    assert len(keys) >= 6 and set(here) == set(there)
    assert np.isfinite(here[name]) and here[name] != 0
    for key in keys:
        # Of gradients relative to the largest: tiny ones are differences of larger numbers.
        scale = np.abs(here[key]).max()
        np.testing.assert_allclose(there[key], here[key], rtol=1e-4, atol=2e-5 * scale, err_msg=key)
    gradients = [here[key] for key in keys if ": d/d" in key]
    assert any(np.abs(gradient).max() > 0 for gradient in gradients)
