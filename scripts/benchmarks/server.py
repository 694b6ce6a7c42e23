"""Requests per second and latency of `kseg serve` under load, with and without batches; CPU.

A network is exported with random weights and served by the real command. Clients send one PNG image
after the other, each over a connection of its own; at the end the server gets SIGTERM while
requests are under way, and what it leaves unanswered is counted. Beside it: the same network
called directly, image by image.
"""

import collections
import http.client
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import _measuring
import _networks

TOY_NETWORK = "deeplabv3_toy"


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    parser.add_argument(
        "--network", default="hrnet_w18", help=f"of: {', '.join(_networks.NETWORKS)}"
    )
    parser.add_argument(
        "--size",
        type=_measuring.positive,
        nargs=2,
        default=(256, 512),
        metavar=("HEIGHT", "WIDTH"),
    )
    parser.add_argument("--clients", type=_measuring.positive, default=8)
    parser.add_argument("--requests", type=_measuring.positive, default=200, help="of all clients")
    parser.add_argument("--batches", type=_measuring.positive, nargs="+", default=(1, 8))
    toy = {"network": TOY_NETWORK, "size": (32, 48), "clients": 2, "requests": 6, "batches": (2,)}
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def compare(arguments):
    """Prints a table: the network itself, and the server with each size of batches."""
    height, width = arguments.size
    print(
        f"{arguments.network}, {height} x {width}, PNG, {arguments.clients} clients, "
        f"{arguments.requests} requests"
    )
    print(f"{'':<24}{'images/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'not 200':>10}{'lost':>8}")
    with tempfile.TemporaryDirectory() as folder:
        found = _measuring.in_new_process(measure, arguments, folder=folder)
        print(
            f"{'network alone':<24}{found['rate']:>10.2f}{found['p50']:>10.1f}{found['p99']:>10.1f}"
        )
        content = (pathlib.Path(folder) / "image.png").read_bytes()
        for batch in arguments.batches:
            row = load_server(pathlib.Path(folder) / "model", content, batch, arguments)
            cells = f"{row['rate']:>10.2f}{row['p50']:>10.1f}{row['p99']:>10.1f}"
            name = f"server, batches of {batch}"
            print(f"{name:<24}{cells}{row['refused']:>10}{row['lost']:>8}", flush=True)


def measure(arguments):
    """Exports the network and an image, and times the network alone."""
    import cv2
    import numpy as np

    from kseg.classes import Classes
    from kseg.commands import networks as networks_module
    from kseg.commands import serve
    from kseg.segmenters import build_segmenter
    from kseg.serving import export_saved_model
    from kseg.serving.labeling import labeler
    from kseg.serving.limits import Limits

    networks = _networks.TOY_NETWORKS if arguments.toy else _networks.NETWORKS
    (name,) = _measuring.choose([arguments.network], networks)
    network = networks[name]
    segmenter = build_segmenter(
        network["backbone"],
        network["head"],
        19,
        backbone_arguments=network["backbone_arguments"],
        head_arguments=network["head_arguments"],
    )
    folder = pathlib.Path(arguments.folder)
    classes = Classes([f"class {i}" for i in range(19)], [[i, i, i] for i in range(19)])
    export_saved_model(segmenter, folder / "model", classes)
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype("uint8")
    cv2.imwrite(str(folder / "image.png"), cv2.resize(coarse, arguments.size[::-1]))
    label = labeler(networks_module.load(folder / "model", None), confidence=True)
    content = (folder / "image.png").read_bytes()
    seconds = []
    for i in range(1 + max(arguments.requests // 4, 2)):
        start = time.perf_counter()
        label(serve.decode(content, Limits(max_pixels=1 << 28), None)[None])
        seconds += [time.perf_counter() - start] * (i > 0)  # The first call compiles.
    return {"rate": len(seconds) / sum(seconds), **percentiles(seconds)}


def load_server(model, content, batch, arguments):
    """Starts the server, loads it, and ends it under load.

    Returns:
        dict with `rate` (answers a second), `p50` and `p99` (ms), `refused` (answers other than
        200) and `lost` (requests that got no answer although they were accepted).
    """
    command = [sys.executable, "-m", "kseg.commands", "serve", "--saved-model", str(model)]
    megapixels = str(max(batch * math.prod(arguments.size) / 1e6, 0.1))
    process = subprocess.Popen(
        [*command, "--port", "0", "--max-batch", str(batch), "--max-megapixels", megapixels],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        address = process.stdout.readline().split("//")[1].strip().rstrip("/")
        clients = Clients(address, content)
        clients.run(arguments.clients, 2 * arguments.clients)  # Compiles.
        clients.seconds.clear()
        start = time.perf_counter()
        clients.run(arguments.clients, arguments.requests)
        rate = arguments.requests / (time.perf_counter() - start)
        row = {"rate": rate, **percentiles(clients.seconds)}
        stopper = threading.Timer(2 * row["p50"] / 1e3, process.send_signal, [signal.SIGTERM])
        stopper.start()
        clients.run(arguments.clients, 20 * arguments.clients, until_closed=True)
        stopper.join()
        process.wait(60)
        refused = sum(count for status, count in clients.statuses.items() if status != 200)
        return {**row, "refused": refused, "lost": clients.lost}
    finally:
        process.kill()


class Clients:
    """Threads that send the same picture.

    Args:
        address: str, host:port.
        content: bytes.

    Attributes:
        seconds: list of float, of each answer.
        statuses: `collections.Counter` of the answers.
        lost: int, requests that were sent whole and got no answer.
    """

    def __init__(self, address, content):
        self._address, self._content = address, content
        self.seconds, self.statuses, self.lost = [], collections.Counter(), 0
        self._left = 0
        self._lock = threading.Lock()

    def run(self, count, requests, until_closed=False):
        """Sends requests from several threads, or until the server accepts no more."""
        self._left = requests
        threads = [threading.Thread(target=self._work, args=(until_closed,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, until_closed):
        while self._take():
            connection = http.client.HTTPConnection(self._address, timeout=120)
            try:
                connection.connect()
            except OSError:
                if not until_closed:
                    raise
                return  # Never accepted.
            start = time.perf_counter()
            try:
                connection.request("POST", "/predict", self._content)
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.lost += 1
                return
            finally:
                connection.close()
            with self._lock:
                self.seconds.append(time.perf_counter() - start)
                self.statuses[response.status] += 1

    def _take(self):
        with self._lock:
            self._left -= 1
            return self._left >= 0


def percentiles(seconds):
    """Returns the median and the 99th percentile in ms."""
    ordered = sorted(seconds)
    return {
        name: 1e3 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }


if __name__ == "__main__":
    sys.exit(main())
