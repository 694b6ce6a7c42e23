"""Checks and measures kseg on one GPU with JAX, against PyTorch, in one command.

    python scripts/benchmarks/gpu.py --output gpu.jsonl --time-limit 300
    python scripts/benchmarks/gpu.py --list
    python scripts/benchmarks/gpu.py --toy --only 'numerics/*' network/jax/hrnet_w48

Needs JAX and Keras, PyTorch with timm for its side, and no TensorFlow. Each case runs in a process
of its own; several are built and compiled at once, but what is timed has the GPU alone: the other
processes are stopped meanwhile. Whole networks take the compiler so long that only two at a time
are compiled, with two small cases beside them, and timings wait for them, half a minute at most.
Every result is a line of JSON, written at once. The cases start in the order of `--list`, the most
important first, as far as these rules allow; those that do not fit into the time are skipped, and a
line says so. `--toy` runs all of them in tiny sizes, on a CPU too.
"""

import argparse
import contextlib
import dataclasses
import fnmatch
import importlib
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import _gpu_shared

HERE = pathlib.Path(__file__).resolve().parent
NETWORKS = ("hrnet_w48", "deeplabv3_r101", "ocrnet_w48", "upernet_swin_t")
BESIDE = 2  # Cases that run beside those that compile a network.
PATIENCE = 30.0  # Seconds that a case waits for its turn while a network is compiled.
PART_BYTES = 15 * 2**20  # Of the packed compilation cache; what a lent machine hands back is small.


@dataclasses.dataclass(frozen=True)
class Case:
    """One process.

    Attributes:
        name: str.
        side: `"jax"` or `"torch"`, the module that runs it.
        function: str, its function there.
        arguments: tuple of str.
        seconds: float, expected, on an H100 with 16 cores; a case that would not end in time is
            not started.
        limit: float, seconds after which it is ended; those in which it waits for its turn or is
            stopped do not count.
        compiles: bool, whether it compiles a whole network.
    """

    name: str
    side: str
    function: str
    arguments: tuple = ()
    seconds: float = 30.0
    limit: float = 120.0
    compiles: bool = False


def all_cases():
    """Lists the cases, the most important first."""
    cases = [Case(f"ceilings/{side}", side, "ceilings", seconds=20.0) for side in ("jax", "torch")]
    methods = [method for method in _gpu_shared.METHODS if method != "ce"]
    cases += [
        Case(f"network/jax/{network}/ce", "jax", "network", (network, "ce"), 130.0, 280.0, True)
        for network in NETWORKS
    ]
    cases += [
        Case(f"numerics/{name}", "jax", "numerics", (name,), 60.0, 200.0)
        for name in (*methods, "logits", "similarities")
    ]
    cases += [
        Case(f"network/torch/{network}/ce", "torch", "network", (network, "ce"), 40.0, 150.0)
        for network in NETWORKS
    ]
    cases += [
        Case(f"objectives/jax/{method}", "jax", "objectives", (method,), 50.0, 200.0)
        for method in methods
    ]
    cases += [Case("objectives/torch", "torch", "objectives", (), 40.0, 150.0)]
    cases += [
        Case(
            f"network/jax/{network}/ce/fused_norm",
            "jax",
            "network",
            (network, "ce", "fused_norm"),
            130.0,
            280.0,
            True,
        )
        for network in ("hrnet_w48", "deeplabv3_r101")
    ]
    for network in NETWORKS:
        cases += [
            Case(f"network/jax/{network}/{m}", "jax", "network", (network, m), 140.0, 280.0, True)
            for m in methods
        ]
        cases.append(
            Case(
                f"network/torch/{network}/methods",
                "torch",
                "network",
                (network, *methods),
                60.0,
                200.0,
            )
        )
    cases += [
        Case(
            f"network/torch_compiled/{network}/ce",
            "torch",
            "compiled_network",
            (network,),
            120.0,
            280.0,
            True,
        )
        for network in NETWORKS
    ]
    return cases


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", help="file that the lines of JSON are appended to")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="cases, with * and ?")
    parser.add_argument("--skip", nargs="+", metavar="PATTERN", default=[], help="cases, likewise")
    parser.add_argument("--list", action="store_true", help="name the cases, and stop")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--time-limit", type=float, default=540.0, metavar="SECONDS")
    parser.add_argument(
        "--jobs",
        type=int,
        default=max(1, min(10, (os.cpu_count() or 2) - 2)),
        help="cases at once, those that wait for their turn not counted",
    )
    parser.add_argument(
        "--compile-jobs", type=int, default=2, help="networks that are compiled at once"
    )
    parser.add_argument(
        "--autotune-level",
        type=int,
        choices=range(5),
        help="how thoroughly XLA tries algorithms, 0 to 4 (default: XLA's own)",
    )
    parser.add_argument(
        "--cache", help="folder of the compilation cache, kept (default: a new one, dropped)"
    )
    parser.add_argument(
        "--pack", help="folder into which the cache is packed at the end, in parts of 15 MiB"
    )
    parser.add_argument("--parts", type=int, default=4, help="largest number of parts")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # Runs one, in this process.
    arguments = parser.parse_args()
    if min(arguments.jobs, arguments.compile_jobs) < 1 or arguments.time_limit <= 0:
        parser.error(
            "--jobs and --compile-jobs must be at least 1 and --time-limit positive. Received: "
            f"{arguments.jobs}, {arguments.compile_jobs} and {arguments.time_limit:g}"
        )
    return arguments


def chosen_cases(arguments):
    cases = all_cases()
    for pattern in [*(arguments.only or []), *arguments.skip]:
        if not any(matches(case.name, [pattern]) for case in cases):
            print(f"error: no case fits {pattern!r}. See --list", file=sys.stderr)
            sys.exit(2)
    if arguments.only:
        cases = [case for case in cases if matches(case.name, arguments.only)]
    return [case for case in cases if not matches(case.name, arguments.skip)]


def matches(name, patterns):
    """Returns True if a name fits a pattern, or a pattern names its first parts."""
    return any(fnmatch.fnmatch(name, p) or name.startswith(p.rstrip("/") + "/") for p in patterns)


def main():
    arguments = parse_arguments()
    if arguments.case:
        return run_case(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Ends the cases on the way out.
    cases = chosen_cases(arguments)
    if arguments.list:
        for case in cases:
            print(f"{case.name:<48}{case.seconds:>6.0f} s")
        return 0
    with contextlib.ExitStack() as stack:
        output = None
        if arguments.output:
            output = stack.enter_context(open(arguments.output, "a", encoding="utf-8"))
        cache = arguments.cache or stack.enter_context(tempfile.TemporaryDirectory())
        pathlib.Path(cache).mkdir(parents=True, exist_ok=True)
        unpack(cache)
        driver = Driver(arguments, cases, cache, output)
        driver.run()
        if arguments.pack:
            packed = pack(cache, pathlib.Path(arguments.pack), arguments.parts)
            driver.write({"case": "cache", "packed_bytes": packed})
    return 1 if driver.failed else 0


def run_case(arguments):
    """Runs one case in this process."""
    if os.environ.get(_gpu_shared.TAKES_TURNS):
        _gpu_shared.die_with_parent()
    (case,) = [case for case in all_cases() if case.name == arguments.case]
    sizes = _gpu_shared.TOY if arguments.toy else _gpu_shared.PAPERS
    module = importlib.import_module(f"_gpu_{case.side}")
    getattr(module, case.function)(sizes, *case.arguments)
    return 0


class Process:
    """A running case, whose lines enter the driver's queue."""

    def __init__(self, case, arguments, cache, lines):
        self.case, self.started = case, time.monotonic()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process.
        command = [sys.executable, str(HERE / "gpu.py"), "--case", case.name]
        command += ["--toy"] if arguments.toy else []
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "KERAS_BACKEND": "jax",
            "PYTHONUNBUFFERED": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
            "TORCHINDUCTOR_COMPILE_THREADS": "4",
            _gpu_shared.TAKES_TURNS: "1",
        }
        flags = [os.environ.get("XLA_FLAGS", "")]
        if arguments.autotune_level is not None:
            flags.append(f"--xla_gpu_autotune_level={arguments.autotune_level}")
        if arguments.toy:  # What is compiled runs only a few times.
            flags.append("--xla_backend_optimization_level=0")
        environment["XLA_FLAGS"] = " ".join(filter(None, flags))
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,  # A group of its own, so that it is stopped with its children.
        )
        self.stopped = False
        self.idle = 0.0  # Seconds in which it waited or was stopped.
        self.asked = None  # When it asked for its turn.
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def _read(self, lines):
        for line in self._process.stdout:
            line = line.decode(errors="replace")
            if line.startswith(_gpu_shared.PREFIX):
                lines.put((self, json.loads(line[len(_gpu_shared.PREFIX) :])))
        lines.put((self, {"returncode": self._process.wait()}))

    def grant(self):
        """Assigns the GPU to the case."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def stop(self, stopped):
        if stopped != self.stopped:
            self.signal(signal.SIGSTOP if stopped else signal.SIGCONT)
            self.stopped = stopped

    def end(self):
        self.signal(signal.SIGKILL)

    def errors(self):
        """Returns the end of its stderr."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-3000:]


class Driver:
    """Starts the cases, assigns turns on the GPU, and writes results.

    Attributes:
        failed: number of cases that failed.
    """

    def __init__(self, arguments, cases, cache, output):
        self._arguments, self._cases, self._cache = arguments, list(cases), cache
        self._output = output
        self._start = time.monotonic()
        self._lines = queue.Queue()
        self._running, self._waiting, self._holder = [], [], None
        self._granted = 0.0
        self._ticked = self._start
        self._timing = False  # Whether turns are given until nobody waits.
        self._again = []  # Cases that lacked memory: once more, alone, at the end.
        self._retried = set()
        self.failed = 0

    def run(self):
        """Runs all cases, or as many as fit."""
        try:
            while self._cases or self._running or self._again:
                self._count_idle()
                self._start_cases()
                self._enforce_limits()
                self._give_turn()
                try:
                    process, line = self._lines.get(timeout=0.2)
                except queue.Empty:
                    continue
                self._take(process, line)
        finally:
            for process in self._running:
                process.end()
        self.write({"case": "all", "seconds": self._elapsed(), "failed": self.failed})

    def write(self, found):
        """Writes a line to the file and, shortened, to the terminal."""
        found = {"at": round(self._elapsed(), 1), **found}
        if self._output:
            self._output.write(json.dumps(found) + "\n")
            self._output.flush()
            os.fsync(self._output.fileno())
        print(json.dumps(found)[:700], flush=True)

    def _elapsed(self):
        return time.monotonic() - self._start

    def _left(self):
        return self._arguments.time_limit - self._elapsed()

    def _start_cases(self):
        if self._again and not self._cases and not self._running:
            self._cases.append(self._again.pop(0))
        # A case that would not end in time is passed over; a shorter one may still fit.
        for case in list(self._cases):
            busy = [p.case for p in self._running if p not in self._waiting]
            compiling = sum(c.compiles for c in busy)
            jobs = self._arguments.jobs
            if compiling:
                jobs = min(jobs, compiling + BESIDE)
            if case.compiles:
                jobs = min(self._arguments.jobs, self._arguments.compile_jobs + BESIDE)
                if compiling >= self._arguments.compile_jobs:
                    continue
            if len(busy) >= jobs or len(self._running) >= 2 * self._arguments.jobs:
                continue
            self._cases.remove(case)
            if not self._arguments.toy and case.seconds > self._left():
                self.write({"case": case.name, "skipped": f"needs about {case.seconds:.0f} s"})
                continue
            process = Process(case, self._arguments, self._cache, self._lines)
            self._running.append(process)
            process.stop(self._holder is not None)

    def _count_idle(self):
        now = time.monotonic()
        for process in self._running:
            if process.stopped or process in self._waiting:
                process.idle += now - self._ticked
        self._ticked = now

    def _enforce_limits(self):
        now = time.monotonic()
        for process in list(self._running):
            slower = 10 if self._arguments.toy else 1  # A CPU, and one that is shared.
            over = now - process.started - process.idle > slower * process.case.limit
            holds_long = process is self._holder and now - self._granted > slower * 90
            if over or holds_long or self._left() <= 0:
                reason = "of the run" if self._left() <= 0 else "of the case"
                process.end()
                self._forget(process)
                self.failed += self._left() > 0
                ended = {"case": process.case.name, "ended": f"time limit {reason}"}
                self.write({**ended, "stderr": process.errors()[-400:]})
        if self._left() <= 0:
            for case in [*self._cases, *self._again]:
                self.write({"case": case.name, "skipped": "no time left"})
            self._cases, self._again = [], []

    def _give_turn(self):
        self._timing = bool(self._waiting) and (self._timing or self._is_time_for_turns())
        if self._holder is None and self._timing:
            self._holder = self._waiting.pop(0)
            self._granted = time.monotonic()
            for process in self._running:
                process.stop(process is not self._holder)
            time.sleep(0.05)  # What was launched before the stop ends.
            self._holder.grant()
        elif self._holder is None:
            for process in self._running:
                process.stop(False)

    def _is_time_for_turns(self):
        """Returns True if no network is being compiled, or the waiting ones cannot wait longer."""
        busy = [p.case for p in self._running if p not in self._waiting]
        waited = time.monotonic() - min(p.asked for p in self._waiting)
        needed = 20.0 + 10.0 * len(self._waiting)
        return not any(c.compiles for c in busy) or waited > PATIENCE or self._left() < needed

    def _take(self, process, line):
        if process not in self._running:
            return  # It was ended.
        if line.get("turn") == "ask":
            self._waiting.append(process)
            process.asked = time.monotonic()
        elif line.get("turn") == "over":
            self._holder = None
        elif "returncode" in line:
            seconds = round(time.monotonic() - process.started, 1)
            self._forget(process)
            found = {"case": process.case.name, "process_seconds": seconds}
            if line["returncode"]:
                found["failed"] = process.errors()
                out_of_memory = re.search("out of memory|RESOURCE_EXHAUSTED", found["failed"], re.I)
                if out_of_memory and process.case.name not in self._retried:
                    self._retried.add(process.case.name)
                    self._again.append(process.case)
                    found["again"] = True
                else:
                    self.failed += 1
            self.write(found)
        else:
            self.write({"case": process.case.name, **line})

    def _forget(self, process):
        self._running.remove(process)
        if process in self._waiting:
            self._waiting.remove(process)
        if self._holder is process:
            self._holder = None


def pack(cache, folder, parts):
    """Packs files of the cache, the small ones first, into `cache-N.tar.gz` of at most 15 MiB.

    Returns:
        int, bytes of the files that were packed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted((p for p in pathlib.Path(cache).rglob("*") if p.is_file()), key=_size)
    packed, files = 0, iter(files)
    pending = next(files, None)
    for number in range(parts):
        path = folder / f"cache-{number}.tar.gz"
        if pending is None:
            break
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            room = PART_BYTES
            while pending is not None and _size(pending) <= room:
                archive.add(pending, arcname=str(pending.relative_to(cache)))
                room -= _size(pending)
                packed += _size(pending)
                pending = next(files, None)
    return packed


def _size(path):
    return path.stat().st_size


def unpack(cache):
    """Unpacks the archives of `pack` in the folder of the cache."""
    for path in sorted(pathlib.Path(cache).glob("cache-*.tar.gz")):
        with tarfile.open(path) as archive:
            archive.extractall(cache, filter="data")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
