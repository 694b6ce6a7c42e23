import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.pipelines.tiny_data import solid_examples, write

ROOT = pathlib.Path(__file__).parents[1]
# A pipe in place of a file blocks as a network drive does that is gone.
READER = """
import os, pathlib, signal, sys
from kseg import waiting
from pipelines import loader

waiting._LONG = float(sys.argv[2])
waiting._PATIENCE = 0.5
waiting.watch_signals()
if sys.argv[3] == "handled":  # As the training loop does it.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
folder = pathlib.Path(sys.argv[1])
dataset = loader.evaluation_dataset(folder, "train", batch_size=1)
for shard in folder.glob("*.tfrecord"):
    shard.unlink()
    os.mkfifo(shard)
print("ready", flush=True)
for batch in waiting.each_batch(dataset):
    print("read", flush=True)
"""


def read(folder, long, handled, *signals):
    write(folder, solid_examples(2), num_shards=1)
    command = [sys.executable, "-c", READER, str(folder), str(long), handled]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.0)
        for number in signals:
            process.send_signal(number)
        output, errors = process.communicate(timeout=50)
    finally:
        process.kill()
        process.wait()
    assert output == ""
    return process.returncode, errors.strip().splitlines()[-1]


@pytest.mark.parametrize("number, handled", [("SIGTERM", "handled"), ("SIGINT", "")])
def test_a_signal_ends_a_wait_for_data(tmp_path, number, handled):
    code, line = read(tmp_path, 1000.0, handled, getattr(signal, number))
    assert (code, line) == (
        130,
        "interrupted while waiting for data; what was saved before is kept",
    )


def test_the_cause_of_a_wait_is_named(tmp_path):
    code, line = read(tmp_path, 0.5, "")
    (shard,) = tmp_path.glob("*.tfrecord")
    assert code == 2
    assert line.startswith(f"error: The shard {shard} is no file")
    assert os.path.exists(shard)
