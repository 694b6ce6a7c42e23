"""R devices with a batch of b give what one device gives with R x b, whatever the method."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.training.all_methods import run_steps

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def one_device():
    return run_steps(tf.distribute.get_strategy())


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        if name.startswith("step"):
            np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)
        else:
            # Bank contents, their order, and momenta (sums of gradients) among them.
            np.testing.assert_allclose(found[name], value, atol=2e-5, rtol=1e-3, err_msg=name)


def test_all_terms_are_there_and_banks_are_filled(one_device):
    names = {name.removeprefix("step 2 ") for name in one_device if name.startswith("step 2 ")}
    assert names == {
        "loss",
        "cross_entropy",
        "auxiliary",
        "ohem",
        "lovasz",
        "multi_scale/same_scale",
        "multi_scale/cross_scale",
        "region_contrast/centers",
        "contextrast/pixel_anchor",
        "pixel_contrast/pixels",
    }
    assert all(one_device[f"step 2 {name}"] > 0 for name in names)
    # The loss is their sum with these weights; RegionContrast's rises from step 1 on, over 3.
    weights = {"auxiliary": 0.4} | {n: 0.1 for n in names if "/" in n}
    for step in range(3):
        weights["region_contrast/centers"] = 0.1 * max(step - 1, 0) / 3
        terms = {n: one_device[f"step {step} {n}"] for n in names}
        loss = terms.pop("loss")
        np.testing.assert_allclose(
            loss, sum(weights.get(n, 1.0) * value for n, value in terms.items()), rtol=1e-5
        )
    counts = {name: value for name, value in one_device.items() if name.endswith("bank/count")}
    assert [list(count) for count in counts.values()] == [[5, 5, 5], [20, 7, 20, 7, 20, 7]]


def test_two_devices(one_device, mirrored):
    assert_equal(run_steps(mirrored), one_device)


@pytest.mark.slow
def test_four_devices(one_device, tmp_path):
    command = [sys.executable, "-m", "tests.training.all_methods", "4", str(tmp_path / "four.npz")]
    subprocess.run(command, cwd=ROOT, check=True)
    with np.load(tmp_path / "four.npz") as found:
        assert_equal(dict(found), one_device)
