"""The framework of benchmarks: options, and measurements in separate processes.

Imports the standard library alone until a function needs more: `_torch_peers.py` runs where kseg
and TensorFlow may be missing, and `startup.py` times the imports.
"""

import argparse
import collections
import inspect
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time


def build_parser(description):
    """Builds the parser of a benchmark.

    Args:
        description: str, the script's docstring.

    Returns:
        `argparse.ArgumentParser` with `--toy`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--toy",
        action="store_true",
        help="tiny sizes for the other options; shows that the benchmark runs, its figures mean "
        "nothing",
    )
    parser.add_argument("--measure", metavar="JSON", help=argparse.SUPPRESS)
    return parser


def add_torch_argument(parser):
    """Adds `--torch`, the interpreter that runs `_torch_peers.py`."""
    parser.add_argument(
        "--torch", metavar="INTERPRETER", help="a Python with torch and timm: times these as well"
    )


def positive(text):
    """Parses an int of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def main(parser, argv, *, compare, measure=None, toy):
    """Runs a benchmark, or one of its measurements in a process that `in_new_process` started.

    Args:
        parser: from `build_parser`, with the options of the benchmark.
        argv: list of str, or None for the arguments of the process.
        compare: function of the parsed arguments; measures everything and prints it.
        measure: function of the arguments; makes one measurement and returns values for JSON, or
            None if it has printed its own.
        toy: dict from option to its default with `--toy`.

    Returns:
        int, the exit code.

    Raises:
        UserError: if `--torch` is no interpreter with torch and timm.
    """
    arguments = parser.parse_args(argv)
    if arguments.measure:
        found = measure(argparse.Namespace(**json.loads(arguments.measure)))
        if found is not None:
            print(json.dumps(found))
        return 0
    if arguments.toy:
        parser.set_defaults(**toy)
        arguments = parser.parse_args(argv)
    if getattr(arguments, "torch", None):
        _check_torch(arguments.torch)
    compare(arguments)
    return 0


def _check_torch(interpreter):
    from kseg.errors import UserError

    command = [interpreter, "-c", "import torch, timm"]
    try:
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        reason = result.stderr.strip().rpartition("\n")[2] if result.returncode else None
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise UserError(
            f"--torch must be a Python with torch and timm. Received: {interpreter} ({reason})"
        )


def torch_command(interpreter, *arguments):
    """Builds the command line of `_torch_peers.py`, a list of str."""
    script = pathlib.Path(__file__).with_name("_torch_peers.py")
    return [interpreter, *map(str, [script, *arguments])]


def in_torch(interpreter, *arguments):
    """Runs `_torch_peers.py` and returns the JSON of its last line of output.

    Raises:
        UserError: if it fails.
    """
    from kseg.errors import UserError

    line = torch_command(interpreter, *arguments)
    result = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise UserError(f"{' '.join(line)!r} failed, see above (exit code {result.returncode})")
    return json.loads(result.stdout.splitlines()[-1])


def command(measure, arguments, **changes):
    """Builds the command line of a measurement, a list of str; arguments as `in_new_process`."""
    values = json.dumps({**vars(arguments), **changes})
    return [sys.executable, inspect.getfile(measure), "--measure", values]


def in_new_process(measure, arguments, *, always=False, **changes):
    """Performs a measurement in a new process, so that nothing else is in memory before it.

    Args:
        measure: function of a benchmark's script, as passed to `main`.
        arguments: `argparse.Namespace`. With `toy` the measurement is made in this process, which
            saves starting TensorFlow again.
        always: bool, in a new process with `toy`, too.
        **changes: values that replace or join the arguments.

    Returns:
        what `measure` returned.

    Raises:
        UserError: if the process failed, with its own message if it had one for the user.
    """
    from kseg.analysis import measuring
    from kseg.errors import UserError

    _, script, flag, values = command(measure, arguments, **changes)
    if arguments.toy and not always:
        return measure(argparse.Namespace(**json.loads(values)))
    try:
        return measuring.in_new_process(script, flag, values)
    except subprocess.CalledProcessError as error:
        shown = ", ".join(f"{key} {value}" for key, value in changes.items())
        raise UserError(
            f"Measuring {shown} failed, see above (exit code {error.returncode}). If memory was "
            "short, use smaller sizes"
        ) from None


def seconds_in_onednn(function):
    """Times a call and the primitives of oneDNN in it.

    In a process with the environment variable `ONEDNN_VERBOSE=profile_exec`, set before TensorFlow
    is imported, and with one operation at a time; else primitives overlap, and their times with
    them.

    Args:
        function: callable without arguments.

    Returns:
        `(seconds, primitives)`: of the whole call; and a dict from the kind of a primitive, such as
        `"convolution"` or `"reorder"`, to the seconds of all its executions.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    with tempfile.TemporaryFile() as output:
        os.dup2(output.fileno(), 1)
        try:
            start = time.perf_counter()
            function()
            seconds = time.perf_counter() - start
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        output.seek(0)
        lines = output.read().decode().splitlines()
    primitives = collections.Counter()
    for fields in (line.split(",") for line in lines if line.startswith("onednn_verbose")):
        if "exec" in fields:  # ..., exec, cpu, kind, implementation, ..., milliseconds
            primitives[fields[fields.index("exec") + 2]] += float(fields[-1]) / 1e3
    return seconds, dict(primitives)


def peak_of_tensors(function):
    """Measures the most memory that tensors take at a time during a call.

    In a process whose CPU allocator reports to TensorFlow's profiler (the environment variable
    `TF_CPU_ALLOCATOR_USE_BFC`, set before the first tensor) or on an accelerator.

    Args:
        function: callable without arguments.

    Returns:
        float, MB above what is allocated before the call, as requested: without an allocator's
        rounding. 0 if nothing was reported.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        function()
        tf.profiler.experimental.stop()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    changes = []
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                kind = plane.event_metadata[event.metadata_id].name
                if kind not in ("MemoryAllocation", "MemoryDeallocation"):
                    continue
                (size,) = (
                    stat.int64_value or stat.uint64_value
                    for stat in event.stats
                    if plane.stat_metadata[stat.metadata_id].name == "requested_bytes"
                )
                moment = line.timestamp_ns * 1000 + event.offset_ps
                changes.append((moment, size if kind == "MemoryAllocation" else -size))
    totals = itertools.accumulate(size for _, size in sorted(changes))
    return max(totals, default=0) / 1e6


def choose(names, known):
    """Checks the names that `--only` selects.

    Args:
        names: list of str, or None for all.
        known: str names to choose from.

    Returns:
        list of str.

    Raises:
        UserError: if a name is unknown.
    """
    from kseg.errors import UserError

    known = list(known)
    if unknown := sorted(set(names or []) - set(known)):
        raise UserError(
            f"--only must name some of: {', '.join(known)}. Received: {', '.join(unknown)}"
        )
    return names or known


def time_on_request(prepare):
    """Times a function once for each line of standard input, as `TimedProcess` asks.

    Prints a line of JSON each: the seconds of preparation and first call, then `[seconds,
    processor seconds]` of one more call.

    Args:
        prepare: function that returns the function to time, and a dict to print with the first
            line.
    """
    start = time.perf_counter()
    function, found = prepare()
    function()
    print(json.dumps({"ready": time.perf_counter() - start, **found}), flush=True)
    for _ in sys.stdin:
        before = time.perf_counter(), time.process_time()
        function()
        after = time.perf_counter(), time.process_time()
        print(json.dumps([end - begin for begin, end in zip(before, after, strict=True)]))
        sys.stdout.flush()


class TimedProcess:
    """A process that times one call on request.

    Several of them are measured in turn: each has the machine to itself while it is measured, and
    noise affects all alike.

    Args:
        command: list, a program that calls `time_on_request`, and its arguments.

    Attributes:
        found: dict that the process printed when it was ready.
        times: list of `[seconds, processor seconds]`.

    Raises:
        UserError: if the process ends before it is closed.
    """

    def __init__(self, command):
        command = [str(part) for part in command]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.times = []
        self.found = self._read()

    def measure(self):
        """Times one call."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.times.append(self._read())

    def best(self):
        """The shortest time and the shortest processor time, in seconds."""
        return tuple(min(times) for times in zip(*self.times, strict=True))

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            from kseg.errors import UserError

            raise UserError(f"The process {' '.join(self._process.args)!r} failed, see above")
        return json.loads(line)
