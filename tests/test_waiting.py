import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from kseg import waiting
from kseg.errors import UserError
from pipelines import loader
from tests.pipelines.tiny_data import solid_examples, write

ROOT = pathlib.Path(__file__).parents[1]
# A pipe in place of a file blocks as a network drive does that is gone.
READER = """
import os, pathlib, signal, sys, threading, time
from kseg import waiting
from pipelines import loader

waiting._FIRST_LOOK = float(sys.argv[2])
waiting._PATIENCE = 0.5
watch = waiting.signals_watched()
watch.__enter__()
waiting.end_process_if_lost()
if sys.argv[3] == "handled":  # As the training loop does it.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
folder = pathlib.Path(sys.argv[1])
dataset = loader.evaluation_dataset(folder, "train", batch_size=1)
for shard in folder.glob("*.tfrecord"):
    shard.unlink()
    os.mkfifo(shard)

def tell():
    while not waiting._waits:
        time.sleep(0.01)
    print("ready", flush=True)

threading.Thread(target=tell, daemon=True).start()
for batch in waiting.each_batch(dataset):
    print("read", flush=True)
"""


def read(folder, first_look, handled, *signals):
    write(folder, solid_examples(2), num_shards=1)
    command = [sys.executable, "-c", READER, str(folder), str(first_look), handled]
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


BUSY = """
import signal, sys, time
from kseg import waiting

waiting._PATIENCE = 0.5
with waiting.signals_watched():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)
    for name in sys.argv[1:]:
        signal.raise_signal(getattr(signal, name))
    time.sleep(2.5)
with waiting.watched():
    time.sleep(2.5)
print("finished")
"""


@pytest.mark.parametrize("second, ends", [("SIGTERM", False), ("SIGINT", True)])
def test_a_second_sigint_ends_a_busy_process(second, ends):
    """A process that has reacted to its signals is not ended, not even in a later wait."""
    command = [sys.executable, "-c", BUSY, "SIGTERM", second]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ends:
        assert (result.returncode, result.stdout) == (130, "")
        assert result.stderr == "\ninterrupted; what was saved before is kept\n"
    else:
        assert (result.returncode, result.stdout, result.stderr) == (0, "finished\n", "")


def test_the_cause_of_a_wait_is_named(tmp_path):
    code, line = read(tmp_path, 0.5, "")
    (shard,) = tmp_path.glob("*.tfrecord")
    assert code == 2
    assert line.startswith(f"error: The shard {shard} is not a regular file")
    assert os.path.exists(shard)


def test_a_shard_that_is_lost_is_named_by_a_user_error(tmp_path):
    """A caller from Python meets no error of TensorFlow's."""
    write(tmp_path, solid_examples(2), num_shards=1)
    (shard,) = tmp_path.glob("*.tfrecord")
    dataset = loader.evaluation_dataset(tmp_path, "train")
    shard.unlink()
    with pytest.raises(UserError, match=f"The shard {shard} is missing"):
        next(waiting.each_batch(dataset))
    shard.mkdir()
    with pytest.raises(UserError, match=f"The shard {shard} is not a regular file"):
        next(waiting.each_batch(dataset))


def test_a_changed_record_is_named_by_a_user_error(tmp_path):
    write(tmp_path, solid_examples(2), num_shards=1)
    (shard,) = tmp_path.glob("*.tfrecord")
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 1
    shard.write_bytes(content)
    line = rf"The shard {shard} is corrupt, .* at byte 0 \(image 0\). Prepare the data again"
    with pytest.raises(UserError, match=line):
        next(waiting.each_batch(loader.evaluation_dataset(tmp_path, "train")))
