"""The GPU kit at toy size: it must be ready whenever a GPU can be had."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tarfile
import time

import pytest

from tests import jax_process

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "benchmarks" / "gpu.py"


def run(*arguments, timeout=300):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = jax_process.environment(None)
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def results(path, case):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["case"] == case and "side" in line]


def test_cases_of_jax_alone(tmp_path):
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
    output = tmp_path / "gpu.jsonl"
    kit = load()
    kit.all_cases = lambda: [kit.Case("broken", "jax", "no_such_function")]
    arguments = driver_arguments(kit, toy=True, jobs=1)
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


class FakeProcess:
    """A process that does nothing, and holds what the driver told it."""

    def __init__(self, case, *_):
        self.case, self.started = case, time.monotonic()
        self.stopped, self.idle, self.asked, self.granted = False, 0.0, None, False

    def stop(self, stopped):
        self.stopped = stopped

    def grant(self):
        self.granted = True


def driver_arguments(kit, **changes):
    values = {"toy": False, "jobs": 6, "compile_jobs": 2, "time_limit": 500.0}
    return kit.argparse.Namespace(**{**values, "autotune_level": None, **changes})


def test_networks_compile_two_at_a_time_and_timings_wait_for_them(tmp_path):
    kit = load()
    kit.Process = FakeProcess
    cases = [kit.Case(f"network{i}", "jax", "network", compiles=True) for i in range(4)]
    cases += [kit.Case(f"small{i}", "jax", "objectives") for i in range(4)]
    driver = kit.Driver(driver_arguments(kit), cases, tmp_path, None)

    def names(processes):
        return sorted(process.case.name for process in processes)

    driver._start_cases()
    assert names(driver._running) == ["network0", "network1", "small0", "small1"]
    by_name = {process.case.name: process for process in driver._running}
    driver._take(by_name["small0"], {"turn": "ask"})
    driver._give_turn()
    assert driver._holder is None  # Two networks are compiled.
    driver._start_cases()  # Who waits leaves room for another, but not for a third network.
    assert names(driver._running) == ["network0", "network1", "small0", "small1", "small2"]
    driver._take(by_name["network0"], {"turn": "ask"})
    driver._give_turn()
    assert driver._holder is None
    by_name["small0"].asked -= kit.PATIENCE + 1
    driver._give_turn()
    assert driver._holder is by_name["small0"] and by_name["small0"].granted
    assert all(process.stopped for process in driver._running if process is not driver._holder)
    driver._take(by_name["small0"], {"turn": "over"})
    driver._give_turn()  # All who wait have their turns at once, the others stay stopped.
    assert driver._holder is by_name["network0"]
    assert by_name["network1"].stopped
    driver._take(by_name["network0"], {"turn": "over"})
    driver._give_turn()
    assert driver._holder is None
    assert not any(process.stopped for process in driver._running)


def test_waiting_does_not_count_against_the_limit_of_a_case(tmp_path):
    kit = load()
    kit.Process = FakeProcess
    driver = kit.Driver(driver_arguments(kit), [kit.Case("a", "jax", "x")], tmp_path, None)
    driver._start_cases()
    (process,) = driver._running
    driver._take(process, {"turn": "ask"})
    driver._ticked -= 1000.0
    process.started -= 1000.0
    driver._count_idle()
    driver._enforce_limits()
    assert driver._running == [process]


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
