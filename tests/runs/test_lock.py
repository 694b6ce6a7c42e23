import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from kseg.errors import UserError
from kseg.runs import lock

HOLD = """
import sys, time
from kseg.runs import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(100)
"""


def start_holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert process.stdout.readline() == "held\n"
    return process


def write_lock(folder, *, age=0.0, **changes):
    """A lock as another process would have left it."""
    owner = {**lock._this_process(), **changes}
    path = folder / lock.FILE
    path.write_text(json.dumps(owner))
    beat = time.time() - age
    os.utime(path, (beat, beat))
    return path


def test_one_process_at_a_time(tmp_path):
    process = start_holder(tmp_path)
    try:
        with pytest.raises(UserError) as error, lock.hold(tmp_path):
            pass
        assert f"is in use by process {process.pid} on " in str(error.value)
        assert "`run`" in str(error.value)
        # One that is stopped lives: it may go on any time.
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(UserError, match="in use by"), lock.hold(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    # Its lock is left, and taken over at once.
    assert (tmp_path / lock.FILE).exists()
    with lock.hold(tmp_path) as held:
        held.check()
        with lock.hold(tmp_path) as again:
            assert again is held
        held.check()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_folder_that_got_nothing(tmp_path):
    with lock.hold(tmp_path / "runs/new"):
        assert (tmp_path / "runs/new").is_dir()
    assert not (tmp_path / "runs/new").exists()


def test_a_process_number_that_was_given_again_is_not_the_owner(tmp_path):
    write_lock(tmp_path, process=os.getpid(), started="1")
    with lock.hold(tmp_path) as held:
        held.check()


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"machine": "another boot"}])
def test_a_process_elsewhere_is_dead_without_a_heartbeat(tmp_path, monkeypatch, capsys, elsewhere):
    write_lock(tmp_path, age=1000, **elsewhere)
    with lock.hold(tmp_path):
        pass
    assert capsys.readouterr().err == ""
    # It might live: its next heartbeat is waited for.
    monkeypatch.setattr(lock, "_STALE", 0.3)
    monkeypatch.setattr(lock, "_POLL", 0.02)
    write_lock(tmp_path, process=123, **elsewhere)
    with lock.hold(tmp_path):
        pass
    assert "process 123 on " in capsys.readouterr().err


def test_a_process_elsewhere_that_beats_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_POLL", 0.02)
    path = write_lock(tmp_path, host="other")
    timer = threading.Timer(0.2, os.utime, [path])
    timer.start()
    with pytest.raises(UserError, match="on other"), lock.hold(tmp_path):
        pass
    timer.join()
    assert json.loads(path.read_text())["host"] == "other"


@pytest.mark.parametrize("content", ["", "[]", '{"process": "x"}', "\0\0", "[" * 100_000])
def test_a_damaged_lock_is_taken_over_when_it_is_old(tmp_path, content):
    (tmp_path / lock.FILE).write_text(content)
    os.utime(tmp_path / lock.FILE, (1, 1))
    with lock.hold(tmp_path) as held:
        held.check()


def test_a_lock_that_was_lost_is_noticed_and_not_removed(tmp_path):
    with lock.hold(tmp_path) as held:
        path = write_lock(tmp_path, host="other", process=7)
        with pytest.raises(UserError, match="process 7 on other took it over"):
            held.check()
    assert json.loads(path.read_text())["process"] == 7


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT", 0.02)
    with lock.hold(tmp_path):
        path = tmp_path / lock.FILE
        os.utime(path, (1, 1))
        deadline = time.time() + 10
        while path.stat().st_mtime < 2:
            assert time.time() < deadline
            time.sleep(0.01)


def test_a_lock_put_in_the_place_of_a_dead_one_survives(tmp_path):
    """Two processes find the same dead lock: the slower one must not remove the faster one's."""
    dead = write_lock(tmp_path, host="dead")
    owner, _ = lock._read(dead)
    write_lock(tmp_path, host="faster")
    lock._take_away(dead, owner)
    assert json.loads(dead.read_text())["host"] == "faster"
    assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]
