"""Time and memory of what a command or a benchmark runs."""

import json
import subprocess
import sys
import threading
import time


class PeakMemory:
    """Extra memory while the block runs, in MB: of the GPUs if there are any, else of this process.

    On a CPU it is the resident memory, looked at every 2 ms; it needs psutil. With several GPUs it
    is that of the one with most.
    """

    def __enter__(self):
        import tensorflow as tf

        self._gpus = [f"GPU:{i}" for i in range(len(tf.config.list_logical_devices("GPU")))]
        if self._gpus:
            for device in self._gpus:
                tf.config.experimental.reset_memory_stats(device)
            self._before = self._on_gpus("current")
            return self
        import psutil

        process = psutil.Process()
        before = self._peak = process.memory_info().rss
        self._stop = threading.Event()

        def watch():
            while not self._stop.wait(0.002):
                self._peak = max(self._peak, process.memory_info().rss)

        self._before, self._thread = before, threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        if self._gpus:
            self._peak = self._on_gpus("peak")
        else:
            self._stop.set()
            self._thread.join()

    @property
    def megabytes(self):
        """Extra memory, MB."""
        return (self._peak - self._before) / 1e6

    def _on_gpus(self, key):
        import tensorflow as tf

        return max(tf.config.experimental.get_memory_info(device)[key] for device in self._gpus)


def best_seconds(function, rounds):
    """The shortest of several times: other work on the machine only ever adds to them."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def in_new_process(*arguments):
    """Runs Python, and gives the JSON that its last line of output is.

    Args:
        *arguments: of the interpreter: a script or `-m`, a module, and what these take.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def time_on_request(prepare):
    """Times a function once for each line of standard input: the other end of `TimedProcess`.

    Prints a line of JSON each: the seconds that preparing and a first call took, then `[seconds,
    processor seconds]` of one more call.

    Args:
        prepare: function that gives the function to time, and a dict of what else to tell.
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
    """A process that times one call at a time, so that several can take turns.

    Each has the machine to itself while it is measured, and noise hits all alike.

    Args:
        command: list of what to run. It calls `time_on_request`.

    Attributes:
        found: dict that the process printed when it was ready.
        times: list of `[seconds, processor seconds]`.
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
        """The shortest time, and the least processor time, in seconds."""
        return tuple(min(times) for times in zip(*self.times, strict=True))

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._process.args)} failed")
        return json.loads(line)


def fill_banks(objectives):
    """Puts random unit vectors into all slots of the memory banks: what a long run comes to."""
    import numpy as np

    rng = np.random.default_rng(0)
    for objective in objectives:
        if (bank := getattr(objective, "bank", None)) is not None:
            entries = rng.standard_normal(bank.entries.shape, dtype="float32")
            bank.entries.assign(entries / np.linalg.norm(entries, axis=-1, keepdims=True))
            bank.count.assign(np.broadcast_to(bank.capacity, bank.num_classes))
