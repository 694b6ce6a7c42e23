import errno
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from kseg.commands import export
from kseg.commands.console import file_problem

ROOT = pathlib.Path(__file__).parents[2]


def call(name, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_errors_about_files_are_a_path_and_a_reason(tmp_path):
    missing, full = tmp_path / "my [data]: 1" / "x", OSError(errno.ENOSPC, "full", "/a/b")
    assert file_problem(full) == "/a/b: full"
    for read in (missing.read_bytes, tf.io.gfile.GFile(str(missing), "rb").read):
        with pytest.raises((OSError, tf.errors.OpError)) as caught:
            read()
        assert file_problem(caught.value) == f"{missing}: No such file or directory"
    assert file_problem(ValueError("a; No such file or directory")) is None
    assert file_problem(tf.errors.InternalError(None, None, "no file at all")) is None


def test_imports_are_exempt_from_collection_in_processes_of_commands_only():
    """The search for cyclic garbage would take a second of a start; other programs keep theirs."""
    count = "import gc, keras, tensorflow; print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = []
    for first in ("import kseg", "from kseg.commands import console"):
        code = f"{first}; {count}"
        if "console" in first:
            code = f"{first}; console.run(lambda: exec({count!r}))"
        command = [sys.executable, "-c", code]
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False
        )
        printed.append((result.returncode, result.stdout))
    assert printed == [(0, "True False\n"), (0, "True True\n")]


def test_start_is_quiet_and_other_lines_stay(tmp_path):
    """TensorFlow is imported; of all that its library says, only other lines are shown."""
    code = (
        "import os; from kseg.commands import console; from kseg import quiet; "
        "quiet._quietly(lambda: os.write(2, b'oneDNN custom operations\\nreal\\n')); "
        "import tensorflow"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "real\n")


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("export", ["--run", "FOLDER", "--output", "FILE/model"]),
        ("export", ["--run", "FOLDER", "--output", "FILE/model.onnx"]),
    ],
)
def test_what_cannot_be_written_is_known_before_the_work(tmp_path, name, arguments):
    """The run, which would be looked at next, does not exist."""
    (tmp_path / "file").write_text("kept")
    for old, new in (("FOLDER", tmp_path), ("FILE", tmp_path / "file")):
        arguments = [argument.replace(old, str(new)) for argument in arguments]
    result = call(name, *arguments)
    lines = result.stderr.splitlines()
    assert (result.returncode, len(lines)) == (2, 1), result.stderr
    assert lines[0].startswith(f"error: {tmp_path}/file/")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "output, arguments, expected",
    [
        ("model", [], "saved_model"),
        ("model.onnx", [], "onnx"),
        ("model.TFLITE", [], "tflite"),
        ("model", ["--format", "onnx"], "onnx"),
        ("model.onnx", ["--format", "tflite"], None),
        ("model.onnx", ["--format", "saved_model"], None),
    ],
)
def test_the_ending_of_an_exported_file_tells_its_format(output, arguments, expected):
    parse = export.parse_arguments
    arguments = ["--run", "x", "--output", output, *arguments]
    if expected:
        assert parse(arguments).format == expected
    else:
        with pytest.raises(SystemExit):
            parse(arguments)
