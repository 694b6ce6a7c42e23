"""Two processes on this machine as two machines."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import pipelines
from kseg.errors import UserError
from kseg.training.cluster import Cluster, read_cluster
from kseg.training.distribution import build_strategy

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {
    "model": {
        "backbone": {"name": "hrnet_w18_small"},
        "head": {"name": "ocr", "channels": 8, "key_channels": 4, "dropout": 0.0},
        "embedding_dim": 8,
    },
    "contrast": [{"name": "region_contrast", "capacity": 5}],
    "data": {"dataset": "synthetic", "crop_size": [64, 96], "batch_size": 4},
    # Small steps: what rounds differently must not grow over so many of them.
    "optimizer": {"name": "sgd", "learning_rate": 1e-5},
    "train": {
        "steps": 30,
        "log_every": 10,
        "evaluate_every": 100,
        "checkpoint_every": 15,
        "keep_checkpoints": 9,
    },
}


def start(folder, *arguments, cluster=None, worker=0):
    """Starts the training command; `cluster` is a list of addresses."""
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT))
    if cluster:
        task = {"type": "worker", "index": worker}
        environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": cluster}, "task": task})
    command = [sys.executable, "-m", "tests.training.tiny_train", "--config", "tiny.json"]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def addresses():
    sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
    names = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return names


def start_both(folder, *arguments):
    cluster = addresses()
    return [start(folder, *arguments, cluster=cluster, worker=i) for i in (0, 1)]


def finish(processes):
    results = []
    for process in processes:
        output, errors = process.communicate(timeout=300)  # Against a hang only.
        assert process.returncode == 0, errors
        results.append(output)
    return results


def state(folder, run, step):
    with np.load(folder / "runs" / run / f"checkpoints/step-{step:08d}.npz") as file:
        return {name: file[name] for name in file.files if name != "meta.json"}


def wait_for_step(folder, run, step, processes):
    file = folder / f"runs/{run}/checkpoints/step-{step:08d}.npz"
    deadline = time.time() + 180
    while not file.exists():
        assert time.time() < deadline
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    options = {"train_images": 9, "val_images": 2, "size": [64, 96]}
    pipelines.prepare_once("synthetic", folder / "data/synthetic", **options)
    (folder / "tiny.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """The result of one process."""
    finish([start(folder, "--run", "runs/alone", "--set", "train.devices=1")])
    return {step: state(folder, "alone", step) for step in (15, 30)}


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=3e-5, rtol=2e-3, err_msg=name)


def test_two_workers_equal_one_process(folder, alone):
    chief, other = finish(start_both(folder))
    for step, expected in alone.items():
        assert_equal(state(folder, "tiny", step), expected)
    assert "step 30/30" in chief
    assert "SavedModel:" in chief
    assert other == ""  # Only the chief speaks.


def test_a_killed_worker_ends_the_other_and_both_go_on(folder, alone):
    processes = start_both(folder, "--run", "runs/killed")
    wait_for_step(folder, "killed", 15, processes)
    processes[1].kill()
    _, errors = processes[0].communicate(timeout=180)
    assert processes[0].returncode == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "lost another one" in line
    chief, _ = finish(start_both(folder, "--run", "runs/killed"))
    assert "resuming from step" in chief
    assert_equal(state(folder, "killed", 30), alone[30])


def test_a_worker_that_is_asked_to_stop_stops_all(folder):
    processes = start_both(folder, "--run", "runs/asked", "--set", "train.steps=100000")
    wait_for_step(folder, "asked", 15, processes)
    processes[1].send_signal(signal.SIGTERM)
    output, errors = processes[0].communicate(timeout=180)
    assert processes[0].returncode == 130, errors
    step = int(re.search(r"stopped at step (\d+)", output)[1])
    assert step % 10 == 0
    assert max((folder / "runs/asked/checkpoints").glob("*")).stem == f"step-{step:08d}"
    processes[1].communicate(timeout=180)
    assert processes[1].returncode == 130


def test_workers_with_different_configs_are_refused_and_the_key_is_named(folder):
    cluster = addresses()
    changes = [(), ("--set", "optimizer.learning_rate=0.5")]
    processes = [
        start(folder, "--run", "runs/unequal", *change, cluster=cluster, worker=worker)
        for worker, change in enumerate(changes)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 2, errors
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert "optimizer.learning_rate is 1e-05 on worker 0 and 0.5 on worker 1" in line


def test_a_taken_port_is_one_line_at_once(folder):
    with socket.create_server(("", 0)) as taken:
        cluster = [f"localhost:{taken.getsockname()[1]}", "localhost:1"]
        process = start(folder, "--run", "runs/taken", cluster=cluster)
        _, errors = process.communicate(timeout=180)
    assert process.returncode == 2 and "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert f"Received: {cluster[0]} (Address already in use)" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "KeyError: 'task'"),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
            "task 'worker' 2 of 2. Count from 0",
        ),
        (
            '{"cluster": {"ps": ["a:1"], "worker": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
            "a task 'ps'",
        ),
    ],
)
def test_what_is_no_cluster_is_refused(text, message):
    with pytest.raises(UserError, match="TF_CONFIG must look like") as error:
        read_cluster({"TF_CONFIG": text})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("hosts", "task", "expected"),
    [
        ({"worker": 3}, ("worker", 2), Cluster(3, 2)),
        ({"chief": 1, "worker": 2}, ("worker", 1), Cluster(3, 2)),
        ({"chief": 1, "worker": 2}, ("chief", 0), Cluster(3, 0)),
        ({"worker": 1}, ("worker", 0), None),
    ],
)
def test_clusters(hosts, task, expected):
    values = {
        "cluster": {kind: [f"{kind}{i}:1" for i in range(n)] for kind, n in hosts.items()},
        "task": {"type": task[0], "index": task[1]},
    }
    found = read_cluster({"TF_CONFIG": json.dumps(values)})
    assert found == expected
    if found:
        assert found.is_chief == (task == ("chief", 0))
    assert read_cluster({}) is None


def test_a_cluster_uses_all_devices():
    with pytest.raises(UserError, match="must be null"):
        build_strategy(1, Cluster(2, 0))
