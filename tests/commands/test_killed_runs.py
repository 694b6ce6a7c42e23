"""The real command, bit for bit: two processes, and processes that are killed and started again."""

import json
import os
import pathlib
import random
import re
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
# Fast to build, and yet with every part: a bank, averages, dropout, stages read in several places.
SMALL = {
    "model": {
        "backbone": {"name": "resnet18"},
        "head": {"name": "upernet", "channels": 16, "aux_channels": 8, "pool_sizes": [1, 2]},
        "embedding_dim": 16,
    },
    "contrast": METHODS[1:2],
    "train": {"ema": {"decay": 0.9}},
}
# For the normal test run: less to compile.
TINY = {
    "model": {"backbone": {"name": "resnet18"}, "head": {"name": "hrnet"}, "embedding_dim": 8},
    "contrast": METHODS[1:2],
    "data": {"crop_size": [32, 48], "batch_size": 2},
}
QUICKSTART = {"contrast": METHODS, "losses": {"ohem": {"min_kept": 1000}, "lovasz": {}}}


def write_config(folder, name, part, **train):
    """The quickstart, on smaller pictures for fewer steps, but for what `part` names."""
    values = {
        "extends": str(ROOT / "configs/quickstart.json"),
        "data": {"crop_size": [64, 96], "batch_size": 2, "blur": {}},
        "schedule": {"name": "poly", "warmup_steps": 1},
        **part,
        "train": {"log_every": 1, "panels": 1, **train, **part.get("train", {})},
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
    "part",
    [
        pytest.param(TINY, id="tiny"),
        pytest.param(SMALL, id="small", marks=pytest.mark.slow),
        pytest.param(QUICKSTART, id="quickstart", marks=pytest.mark.slow),
    ],
)
def test_two_processes_and_a_killed_one_give_the_same_bits(folder, request, part):
    name = request.node.callspec.id
    one, two = f"{name}_whole", f"{name}_killed"
    write_config(folder, name, part, steps=2, checkpoint_every=1, evaluate_every=1)
    whole, killed = start(folder, name, one), start(folder, name, two)
    checkpoint = folder / "runs" / two / "checkpoints/step-00000001.npz"
    deadline = time.monotonic() + 900
    while not checkpoint.exists():
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    resumed = start(folder, name, two)
    finish(whole)
    # On a busy machine the process may have taken its second step before it was killed.
    assert re.search("resuming from step [12] of 2", finish(resumed))
    assert_same(folder, one, two)


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_trace(folder):
    """KSEG_KILLS (20) kills, spread over all that a process does from its start to its end."""
    write_config(folder, "random", SMALL, steps=6, checkpoint_every=1, evaluate_every=2)
    begin = time.monotonic()
    finish(start(folder, "random", "undisturbed"))
    duration = time.monotonic() - begin
    seed = int(os.environ.get("KSEG_SEED", "0"))
    rng, runs, kills, wanted = random.Random(seed), 0, 0, int(os.environ.get("KSEG_KILLS", "20"))
    while kills < wanted:
        name = f"disturbed{runs}"
        while True:
            process = start(folder, "random", name)
            try:
                # The last of a run's processes is not killed.
                wait = rng.uniform(0, duration) if kills < wanted else None
                _, errors = process.communicate(timeout=wait)
                assert process.returncode == 0, errors
                break
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                kills += 1
                assert kills <= wanted, output
                lines = [line for line in output.splitlines() if line.strip()]
                doing = lines[-1].strip()[:60] if lines else "starting"
                print(f"kill {kills} of {name} after {wait:.0f} s: {doing}", flush=True)
        assert_same(folder, "undisturbed", name)
        runs += 1
        print(f"{name}: the bits of the undisturbed run", flush=True)
    print(f"{kills} kills in {runs} runs: all bits are those of the undisturbed run")
