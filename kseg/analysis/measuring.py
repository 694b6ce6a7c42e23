"""Measurement of time and memory, for reports of cost and for benchmarks."""

import json
import subprocess
import sys
import threading
import time

from kseg.errors import UserError

_ERROR = "error: "  # Begins the line in which a command reports a user error.


class PeakMemory:
    """Measures the extra memory of a block: of the GPUs if there are any, else of this process.

    On a CPU it is resident memory, sampled every 2 ms, which needs psutil. With several GPUs it is
    the memory of the one that used most.
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
    """Times a function several times and returns the shortest time, which noise affects least.

    Args:
        function: callable without arguments.
        rounds: int > 0.

    Returns:
        float, seconds.
    """
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def in_new_process(*arguments):
    """Runs Python and parses its last line of output as JSON.

    Args:
        *arguments: of the interpreter: a script, or `-m` and a module, and their arguments.

    Returns:
        the parsed value.

    Raises:
        UserError: with the message of a process that ended with exit code 2 after one.
        subprocess.CalledProcessError: if it failed in another way. Its standard error has been
            copied to this process's.
    """
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    *before, last = result.stderr.splitlines(keepends=True) or [""]
    if result.returncode == 2 and last.startswith(_ERROR):
        sys.stderr.write("".join(before))
        raise UserError(last.removeprefix(_ERROR).strip())
    sys.stderr.write(result.stderr)
    result.check_returncode()
    return json.loads(result.stdout.splitlines()[-1])


def fill_banks(objectives):
    """Fills the memory banks with random unit vectors, as they are after a long run.

    Args:
        objectives: iterable; those without a memory bank are skipped.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    for objective in objectives:
        if (bank := getattr(objective, "bank", None)) is not None:
            entries = rng.standard_normal(bank.entries.shape, dtype="float32")
            bank.entries.assign(entries / np.linalg.norm(entries, axis=-1, keepdims=True))
            bank.count.assign(np.broadcast_to(bank.capacity, bank.num_classes))
