"""The real command, bit for bit: two processes, and processes that are killed and started again."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

import pipelines

ROOT = pathlib.Path(__file__).parents[2]
METHODS = [
    {"name": "multi_scale"},
    {"name": "region_contrast", "capacity": 20},
    {"name": "contextrast"},
    {"name": "pixel_contrast", "memory": "both", "pixel_capacity": 50, "region_capacity": 20},
]


def write_config(folder, name, contrast, **train):
    """The quickstart, its network and precision, on smaller pictures for fewer steps."""
    values = {
        "extends": str(ROOT / "configs/quickstart.json"),
        "contrast": contrast,
        "losses": {"ohem": {"min_kept": 1000}, "lovasz": {}},
        "data": {"crop_size": [64, 96], "batch_size": 2, "blur": {}},
        "schedule": {"name": "poly", "warmup_steps": 1},
        "train": {"log_every": 1, "panels": 1, **train},
    }
    (folder / f"{name}.json").write_text(json.dumps(values))


def start(folder, config, run):
    """Starts the command as a user would: default threads, default device."""
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT))
    command = [sys.executable, ROOT / "scripts/train.py", "--config", f"{config}.json"]
    return subprocess.Popen(
        [*command, "--run", f"runs/{run}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


def assert_same(folder, one, two):
    """All checkpoints that are left hold the same bits; nothing unfinished is left."""
    one, two = (folder / "runs" / name for name in (one, two))
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (two / "checkpoints").iterdir())
    assert "best.npz" in names and not any(name.endswith(".tmp") for name in names)
    for name in names:
        with np.load(one / "checkpoints" / name) as a, np.load(two / "checkpoints" / name) as b:
            assert a.files == b.files
            differing = [key for key in a.files if a[key].tobytes() != b[key].tobytes()]
        assert not differing, (name, len(differing), differing[:3])
    for run in (one, two):
        assert not [path for path in run.iterdir() if path.name.endswith((".tmp", ".lock"))]
    scores = [json.loads((run / "evaluation/val.json").read_text()) for run in (one, two)]
    for found in scores:
        del found["images_per_second"]
    assert scores[0] == scores[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    pipelines.prepare_once("synthetic", folder / "data/synthetic", train_images=6, val_images=2)
    return folder


@pytest.mark.parametrize(
    "methods", [METHODS[:1], pytest.param(METHODS, marks=pytest.mark.slow)], ids=["one", "all"]
)
def test_two_processes_and_a_killed_one_give_the_same_bits(folder, methods):
    name = f"methods{len(methods)}"
    one, two = f"{name}_whole", f"{name}_killed"
    write_config(folder, name, methods, steps=4, checkpoint_every=2, evaluate_every=2)
    whole, killed = start(folder, name, one), start(folder, name, two)
    checkpoint = folder / "runs" / two / "checkpoints/step-00000002.npz"
    deadline = time.monotonic() + 900
    while not checkpoint.exists():
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    finish(whole)
    assert "resuming from step 2 of 4" in finish(start(folder, name, two))
    assert_same(folder, one, two)


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_trace(folder):
    """KSEG_KILLS (20) kills, spread over all that a process does from its start to its end."""
    write_config(folder, "ce", [], steps=24, checkpoint_every=2, evaluate_every=6)
    begin = time.monotonic()
    finish(start(folder, "ce", "undisturbed"))
    duration = time.monotonic() - begin
    seed = int(os.environ.get("KSEG_SEED", "0"))
    rng, runs, kills, wanted = random.Random(seed), 0, 0, int(os.environ.get("KSEG_KILLS", "20"))
    while kills < wanted:
        name = f"disturbed{runs}"
        while True:
            process = start(folder, "ce", name)
            try:
                # The last of a run's processes is not killed.
                wait = rng.uniform(0, duration) if kills < wanted else None
                _, errors = process.communicate(timeout=wait)
                assert process.returncode == 0, errors
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        assert_same(folder, "undisturbed", name)
        runs += 1
    print(f"{kills} kills in {runs} runs: all bits are those of the undisturbed run")
