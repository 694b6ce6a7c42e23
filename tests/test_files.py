import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from kseg import files

ROOT = pathlib.Path(__file__).parents[1]
LONGEST = "ä" * 125 + ".json"  # 255 bytes: what file systems take.


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read_folder(path):
    return {file.name: file.read_text() for file in path.iterdir()}


def test_replaces_a_file(tmp_path):
    path = tmp_path / "new" / "file.txt"
    files.write_text(path, "one")
    files.write_bytes(path, b"two")
    assert path.read_text() == "two"
    assert names(path.parent) == ["file.txt"]


def test_any_name_that_the_file_system_takes(tmp_path):
    path = tmp_path / LONGEST
    files.check_file(path)
    files.write_text(path, "one")
    assert names(tmp_path) == [LONGEST]
    with pytest.raises(OSError) as caught:
        files.check_file(tmp_path / f"x{LONGEST}")
    assert caught.value.filename == str(tmp_path / f"x{LONGEST}")


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.replace_file(path) as new:
        new.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_replaces_a_folder(tmp_path, monkeypatch, exchanges):
    if not exchanges:  # As on network drives.
        monkeypatch.setattr(files, "_swap", lambda first, second: False)
    path = tmp_path / "folder"
    for content in ({"a": "1", "b": "2"}, {"a": "3"}):
        with files.replace_folder(path) as new:
            for name, text in content.items():
                (new / name).write_text(text)
        assert read_folder(path) == content
    with pytest.raises(ZeroDivisionError), files.replace_folder(path) as new:
        raise ZeroDivisionError
    assert read_folder(path) == {"a": "3"}
    assert names(tmp_path) == ["folder"]


def test_a_link_stays_one(tmp_path):
    target, link = tmp_path / "real" / "file", tmp_path / "link"
    files.write_text(target, "old")
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_kinds_are_not_mixed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    for path, check in (
        ("folder", files.check_file),
        ("pipe", files.check_file),
        ("file", files.check_folder),
        ("file", files.make_folder),
        ("file/sub/name", files.check_file),
        ("file/sub", files.make_folder),
    ):
        with pytest.raises(OSError) as caught:
            check(tmp_path / path)
        assert caught.value.filename == str(tmp_path / path)
    assert (tmp_path / "file").read_text() == "kept"


WRITER = """
import pathlib, sys, time
from kseg import files
if sys.argv[2] == "no-exchange":
    files._swap = lambda first, second: False
    replace = files.os.replace
    def stop_between(source, target):
        replace(source, target)
        print("ready", flush=True)
        time.sleep(60)
    files.os.replace = stop_between
with files.replace_folder(sys.argv[1]) as new:
    (new / "a").write_text("new")
    if sys.argv[2] != "no-exchange":
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["exchange", "no-exchange"])
def test_what_a_killed_writer_leaves(tmp_path, moment):
    path = tmp_path / "folder"
    with files.replace_folder(path) as new:
        (new / "a").write_text("old")
    command = [sys.executable, "-c", WRITER, str(path), moment]
    writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"ready\n"
        # The process lives: what it writes is left alone.
        files.clean(tmp_path)
        assert len(list(tmp_path.glob(".kseg-*.tmp"))) == 1
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    # Between two renames nothing is in place: `clean` puts the old folder back.
    assert path.exists() == (moment == "exchange")
    files.clean(tmp_path)
    assert read_folder(path) == {"a": "old"}
    assert names(tmp_path) == ["folder"]


def test_leftovers_of_other_hosts_and_of_earlier_containers(tmp_path):
    def leave(host, process, token):
        folder = tmp_path / f".kseg-{host}-{process}-{token}-00000000.tmp"
        (folder / "new").mkdir(parents=True)
        return folder

    fresh = leave("0" * 8, 1, "0" * 8)
    stale = leave("0" * 8, 2, "0" * 8)
    os.utime(stale, (time.time() - 2 * files._STALE,) * 2)
    # The number of this process, but not this process.
    again = leave(files._HOST, os.getpid(), "0" * 8)
    own = leave(files._HOST, os.getpid(), files._TOKEN)
    files.clean(tmp_path)
    assert [folder.exists() for folder in (fresh, stale, again, own)] == [True, False, False, True]


def test_leftovers_of_earlier_versions(tmp_path):
    """They wrote `.<file>.<process>.tmp`; those of a process that lives are left alone."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (".val.json", ".report.html", ".notes"):
        (tmp_path / f"{name}.{ended.pid}.tmp").write_text("half")
    (tmp_path / f".val.npz.{os.getpid()}.tmp").write_text("half")
    files.write_text(tmp_path / "val.json", "whole")
    assert names(tmp_path) == [f".notes.{ended.pid}.tmp", f".val.npz.{os.getpid()}.tmp", "val.json"]


def test_errors_name_the_file_that_is_wanted(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(OSError) as caught, files.replace_file(path) as new:
        raise OSError(28, "No space left on device", str(new))
    assert caught.value.filename == str(path)
    with pytest.raises(OSError) as caught, files.replace_file(path):
        raise OSError("Unable to write (errno = 28, error message = 'No space left on device')")
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    # But not errors about other files.
    with pytest.raises(FileNotFoundError) as caught, files.replace_file(path):
        (tmp_path / "other").read_text()
    assert caught.value.filename == str(tmp_path / "other")
    assert names(tmp_path) == []


def test_messages_without_temporary_names(tmp_path):
    with files.replace_file(tmp_path / "file") as new:
        new.write_text("")
        assert files.final_name(f"{new}: full") == f"{tmp_path}/file: full"
        assert files.final_name(f"{new.parents[1]}: full") == f"{tmp_path}: full"
