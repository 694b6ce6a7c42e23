"""The GPU kit at toy size: it must be ready whenever a GPU can be had."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "benchmarks" / "gpu.py"


def run(*arguments, timeout=300):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def results(path, case):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["case"] == case and "side" in line]


def test_cases_of_jax_alone(tmp_path):
    pytest.importorskip("jax")
    output = tmp_path / "gpu.jsonl"
    cases = ["ceilings/jax", "numerics/similarities", "network/jax/deeplabv3_r101/region_contrast"]
    result = run("--toy", "--output", output, "--jobs", 2, "--only", *cases)
    assert result.returncode == 0, result.stdout + result.stderr
    assert results(output, "ceilings/jax")[0]["bf16_tflops"] > 0
    # Values of bfloat16 and three temperatures; float32 products err by a few units in the last
    # place of similarities up to 1 / 0.07.
    found = results(output, "numerics/similarities")
    assert {line["temperature"] for line in found} == {0.07, 0.1, 0.2}
    assert max(line["largest_error_divided_after"] for line in found) < 1e-5
    (step,) = results(output, "network/jax/deeplabv3_r101/region_contrast")
    assert step["step_ms"] > 0
    assert "region_contrast/centers" in step["first_losses"]
    assert step["last_losses"]["cross_entropy"] < step["first_losses"]["cross_entropy"]


@pytest.mark.parametrize("method", ["region_contrast", "contextrast"])
def test_objectives_equal_dense_float64(tmp_path, method):
    pytest.importorskip("jax")
    pytest.importorskip("torch")
    output = tmp_path / "gpu.jsonl"
    result = run("--toy", "--output", output, "--only", f"numerics/{method}")
    assert result.returncode == 0, result.stdout + result.stderr
    found = results(output, f"numerics/{method}")
    assert found
    assert all(line["within"] for line in found)


def test_what_does_not_fit_is_skipped_and_said(tmp_path):
    output = tmp_path / "gpu.jsonl"
    result = run("--output", output, "--time-limit", 1, "--only", "network")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert result.returncode == 0
    names = {line["case"] for line in lines if "skipped" in line}
    assert {"network/jax/hrnet_w48/ce", "network/torch_compiled/upernet_swin_t/ce"} <= names
    assert not any("side" in line for line in lines)


def test_an_unknown_case_is_one_line():
    result = run("--only", "no_such_case")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no case fits 'no_such_case'")
    assert len(result.stderr.splitlines()) == 1


def test_a_failing_case_is_reported(tmp_path):
    pytest.importorskip("jax")
    output = tmp_path / "gpu.jsonl"
    kit = load()
    kit.all_cases = lambda: [kit.Case("broken", "jax", "no_such_function")]
    arguments = kit.argparse.Namespace(toy=True, jobs=1, time_limit=60.0)
    with open(output, "w") as file:
        driver = kit.Driver(arguments, kit.all_cases(), tmp_path, file)
        driver.run()
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert driver.failed == 1
    assert lines[0]["case"] == "broken"
    assert "ValueError" in lines[0]["failed"]  # The process does not know the name.


def test_the_cache_is_packed_in_parts_and_unpacked(tmp_path):
    kit = load()
    kit.PART_BYTES = 100
    cache = tmp_path / "cache"
    (cache / "sub").mkdir(parents=True)
    contents = {"a": b"x" * 60, "sub/b": b"y" * 70, "too_large": b"z" * 101}
    for name, content in contents.items():
        (cache / name).write_bytes(content)
    assert kit.pack(cache, tmp_path / "packed", 4) == 130
    parts = sorted((tmp_path / "packed").iterdir())
    names = []
    for part in parts:
        with tarfile.open(part) as archive:
            names.append(archive.getnames())
    assert names[:2] == [["a"], ["sub/b"]]
    kit.unpack(tmp_path / "packed")
    for name in ("a", "sub/b"):
        assert (tmp_path / "packed" / name).read_bytes() == contents[name]


def load():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("gpu_kit", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        sys.modules["gpu_kit"] = module  # Dataclasses look their module up.
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(SCRIPT.parent))
