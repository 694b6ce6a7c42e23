"""Serves a network over HTTP: from an image to a mask, an overlay or JSON.

    python scripts/serve.py --saved-model exports/mine
    curl --data-binary @photo.jpg http://127.0.0.1:8000/predict --output mask.png
    curl --data-binary @photo.jpg "http://127.0.0.1:8000/predict?output=json"

http://127.0.0.1:8000/ is a page onto which a picture can be dropped; /health answers while the
server runs, /metrics has its counters for Prometheus. Images of equal size that arrive together are
labeled in one batch. After SIGTERM or Ctrl-C it exits once all accepted requests are answered; a
second signal ends it at once.

The server has no encryption and no passwords: before exposing it to other machines, put it behind a
proxy that has both.
"""

import asyncio
import contextlib
import logging
import math
import pathlib
import signal
import socket
import sys
import time

from kseg.commands import console
from kseg.serving.limits import Limits

_ABOVE_ZERO = console.number(float, "above 0", lambda n: 0 < n < math.inf)
_SHUTDOWN = 60  # Seconds for clients to receive their answers.
_ARRIVAL = 2.0  # Seconds for the request of an accepted connection to arrive during a shutdown.


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    console.add_model(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; default: %(default)s"
    )
    parser.add_argument(
        "--port",
        type=console.number(int, "0 to 65535", lambda n: 0 <= n < 1 << 16),
        default=8000,
        help="default: %(default)s; 0: any free one",
    )
    console.add_value_range(parser, "; default: those of the training data, which the model knows")
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-megabytes",
        metavar="MB",
        type=console.number(float, "0.001 to 1000", lambda n: 1e-3 <= n <= 1e3),
        default=Limits.max_bytes / 1e6,
        help="size of a picture's file; default: %(default)g",
    )
    group.add_argument(
        "--max-megapixels",
        metavar="N",
        type=console.number(float, "0.001 to 500", lambda n: 1e-3 <= n <= 500),
        default=Limits.max_pixels / 1e6,
        help="height times width of a picture, and of all pictures of a batch, in millions; "
        "default: %(default)g",
    )
    group.add_argument(
        "--rate",
        type=_ABOVE_ZERO,
        metavar="N",
        help="average requests per second from one address; default: no limit",
    )
    group.add_argument(
        "--max-requests",
        metavar="N",
        type=console.positive,
        default=Limits.max_requests,
        help="requests in progress; default: %(default)s",
    )
    group = parser.add_argument_group("batches")
    group.add_argument(
        "--max-batch",
        metavar="N",
        type=console.positive,
        default=Limits.max_batch,
        help="images in a batch; default: %(default)s",
    )
    group.add_argument(
        "--max-wait-ms",
        metavar="MS",
        type=console.number(float, "0 or more", lambda n: 0 <= n < math.inf),
        default=1e3 * Limits.max_wait,
        help="time that an image waits for others of its size; default: %(default)g",
    )
    options = parser.parse_args(arguments)
    console.check_model(parser, options)
    return options


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = parse_arguments(arguments)
    from kseg.serving import checks

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        checks.require(package)
    path = pathlib.Path(options.run or options.saved_model)
    if options.saved_model:
        from kseg.commands.networks import check_model

        check_model(path)
    limits = Limits(
        max_bytes=int(options.max_megabytes * 1e6),
        max_pixels=int(options.max_megapixels * 1e6),
        max_batch=options.max_batch,
        max_wait=options.max_wait_ms / 1e3,
        max_requests=options.max_requests,
        rate=options.rate,
    )
    with bind(options.host, options.port) as listening:
        from kseg.commands.networks import load
        from kseg.progress import Progress

        with Progress("loading the model"):
            model = load(path, (options.checkpoint or "best") if options.run else None)
        check_images(model)
        check_memory(model, limits)

        from kseg.serving.labeling import labeler
        from kseg.serving.server import build_app

        value_range = tuple(options.range) if options.range else model.value_range

        def read(content, limits):
            return decode(content, limits, value_range)

        label = labeler(model, confidence=True)
        app = build_app(label, model.classes, read, limits=limits, name=path.name)
        return run_server(app, listening)


def check_images(model):
    """Rejects a network for images that are not 8-bit RGB, which browsers and clients send.

    Args:
        model: result of `kseg.load`.

    Raises:
        UserError: if the network takes other images.
    """
    from kseg.errors import UserError

    pixels = getattr(model, "pixel_format", None)
    if pixels is not None:
        raise UserError(
            f"The server takes pictures of 8-bit RGB. This network takes {pixels}. Label files "
            "with `kseg predict`, or serve its SavedModel with TensorFlow Serving"
        )


def bind(host, port):
    """Reserves an address without listening on it yet.

    Args:
        host: str.
        port: int; 0: any free one.

    Returns:
        `socket.socket`.

    Raises:
        UserError: if the address cannot be used.
    """
    from kseg.errors import UserError

    listening = None
    try:
        family, kind, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError) as error:
        if listening:
            listening.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The server cannot listen at {host}:{port} ({reason}). Choose another --port or --host"
        ) from None
    return listening


def run_server(app, listening):
    """Serves an application until SIGINT or SIGTERM, then answers all accepted requests.

    Args:
        app: ASGI application.
        listening: result of `bind`.

    Returns:
        int, exit code: 0, or 130 if a second SIGINT cut off requests.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        # Otherwise clients could choose the address that `--rate` counts.
        proxy_headers=False,
        timeout_graceful_shutdown=_SHUTDOWN,
    )

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self):
            # uvicorn itself would re-raise the signal after a clean shutdown, killing the process.
            before = {n: signal.signal(n, self._stop) for n in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def shutdown(self, sockets=None):
            # uvicorn closes a connection at once if its request has not arrived yet.
            await asyncio.sleep(0)  # Accepts the connections that are in the queue.
            for server in self.servers:
                server.close()
            end = time.monotonic() + _ARRIVAL
            while time.monotonic() < end and not self.force_exit:
                connections = self.server_state.connections
                # Upgraded to a web socket, a connection has no cycle, and nothing to wait for.
                if all(getattr(connection, "cycle", True) for connection in connections):
                    break
                await asyncio.sleep(0.01)
            await super().shutdown(sockets)

        def _stop(self, number, frame):
            # `timeout` of the coreutils sends SIGTERM twice.
            self.force_exit = self.should_exit and number == signal.SIGINT
            # Suppresses messages about the canceled tasks.
            logging.getLogger("uvicorn.error").disabled = self.force_exit
            self.should_exit = True

    listening.listen(config.backlog)  # Requests may arrive as soon as the line is printed.
    address, number = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    print(f"serving at http://{shown}:{number}/", flush=True)
    server = Server(config)
    server.run(sockets=[listening])
    if server.force_exit:
        print("interrupted: some requests may be unanswered", file=sys.stderr)
        return 130
    print("all accepted requests are answered", file=sys.stderr)
    return 0


def check_memory(model, limits):
    """Rejects limits that allow a single picture to need more memory than is available.

    Args:
        model: result of `kseg.load`. What files for ONNX and LiteRT need, and what is needed on a
            GPU, is not known.
        limits: `kseg.serving.limits.Limits`.

    Raises:
        UserError: if the estimate exceeds the available memory, for a square picture or one as
            long as allowed.
    """
    from kseg.commands.networks import memory_needs, too_large
    from kseg.errors import UserError

    needs = memory_needs(model)
    if needs is None:
        return
    side, longest = math.isqrt(limits.max_pixels), limits.max_side
    shortest = max(limits.max_pixels // longest, 1)
    for size in ((side, side), (longest, shortest), (shortest, longest)):
        if reason := too_large(size, needs):
            raise UserError(
                f"{reason}. Lower --max-megapixels. Received: {limits.max_pixels / 1e6:g}"
            )


def decode(content, limits, value_range):
    """Reads a picture for the server as `kseg predict` does.

    Args:
        content: bytes of the file.
        limits: `kseg.serving.limits.Limits`.
        value_range: as for `pipelines.pictures.read`.

    Returns:
        uint8 RGB array `(height, width, 3)`.

    Raises:
        RejectedError: if it has too many pixels (413) or cannot be read (422).
    """
    from kseg.serving.server import RejectedError
    from pipelines import pictures
    from pipelines.errors import DataError

    try:
        image = pictures.read(content, value_range, max_pixels=limits.max_pixels).pixels
    except pictures.TooLargeError as error:
        raise RejectedError(413, f"The picture cannot be read: {error}") from None
    except DataError as error:
        raise RejectedError(422, f"The picture cannot be read: {error}") from None
    if max(image.shape[:2]) > limits.max_side:
        height, width = image.shape[:2]
        raise RejectedError(
            413,
            f"A picture may be at most {limits.max_side} pixels high or wide. Received: {width} x "
            f"{height}",
        )
    return image
