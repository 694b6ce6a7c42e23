"""No file may crash, hang or exhaust the machine: see `tests.weights.hostile`."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments, timeout):
    command = [sys.executable, "-m", "tests.weights.hostile", *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False
    )
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    return json.loads(result.stdout.splitlines()[-1])


def test_malicious_files_are_refused_in_one_line(tmp_path):
    result = run("attacks", tmp_path, timeout=300)
    assert len(result) > 80
    # A tree without a tensor is refused; an empty file is harmless.
    harmless = [name for name, what in result.items() if what == "read"]
    assert set(harmless) <= {"claim (0, 10000.npz", "vast empty shape.safetensors"}
    for name, what in result.items():
        if name not in harmless:
            assert "is damaged or not" in what or "holds" in what, (name, what)


def check(found, count):
    assert len(found) == count
    refused = [what for what in found.values() if what != "read"]
    # Formats without a checksum cannot notice a flipped bit in a number.
    assert len(refused) > 0.6 * count
    for what in refused:
        assert what.startswith(("PATH", "The checkpoint PATH")), what
        assert "Error" not in what, what  # No name of a Python exception.


def test_files_damaged_at_random_are_refused_in_one_line(tmp_path):
    check(run("damages", tmp_path, "--count", 160, "--seed", 1, timeout=300), 160)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_1600_files_damaged_at_random_are_refused_in_one_line(seed, tmp_path):
    check(run("damages", tmp_path, "--count", 400, "--seed", seed, timeout=900), 400)
