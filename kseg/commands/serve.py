"""Serves a network over HTTP: a picture in; mask, overlay or JSON out.

    python scripts/serve.py --saved-model exports/mine
    curl --data-binary @photo.jpg http://127.0.0.1:8000/predict --output mask.png
    curl --data-binary @photo.jpg "http://127.0.0.1:8000/predict?output=json"

http://127.0.0.1:8000/ is a page on which a picture can be dropped; /health answers while the
server runs; /metrics has its counters for Prometheus. Images of equal size that arrive together
are labeled in one batch. After SIGTERM or Ctrl-C the server answers all accepted requests, then
exits.

The server has neither encryption nor authentication. To expose it to other machines, put it behind
a proxy that provides both.
"""

import contextlib
import math
import pathlib
import signal
import sys

from kseg.commands import console

_ABOVE_ZERO = console.number(float, "above 0", lambda n: 0 < n < math.inf)


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
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-megabytes",
        type=_ABOVE_ZERO,
        default=16.0,
        help="size of a picture's file; default: %(default)g",
    )
    group.add_argument(
        "--max-megapixels",
        type=_ABOVE_ZERO,
        default=4.0,
        help="height times width of a picture, and of all pictures of a batch, in millions; "
        "default: %(default)g",
    )
    group.add_argument(
        "--rate",
        type=_ABOVE_ZERO,
        metavar="N",
        help="requests a second of one address, on average; default: no limit",
    )
    group.add_argument(
        "--max-queue",
        type=console.positive,
        default=64,
        help="images that may wait; default: %(default)s",
    )
    group = parser.add_argument_group("batches")
    group.add_argument(
        "--max-batch",
        type=console.positive,
        default=8,
        help="images in a batch; default: %(default)s",
    )
    group.add_argument(
        "--max-wait-ms",
        type=console.number(float, "0 or more", lambda n: 0 <= n < math.inf),
        default=10.0,
        help="time that an image waits for others of its size; default: %(default)g",
    )
    options = parser.parse_args(arguments)
    console.check_model(parser, options)
    return options


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = parse_arguments(arguments)
    from kseg.serving import checks

    checks.require("fastapi")
    checks.require("uvicorn")
    path = pathlib.Path(options.run or options.saved_model)
    if options.saved_model:
        from kseg.commands.predict import check_model

        check_model(path)
    from kseg.progress import Progress

    with Progress("loading the model"):
        label, classes, value_range, needs = load(path, options.checkpoint, bool(options.run))
    check_memory(needs, options.max_megapixels)

    from kseg.serving.server import Limits, build_app

    limits = Limits(
        max_bytes=int(options.max_megabytes * 1e6),
        max_pixels=int(options.max_megapixels * 1e6),
        max_batch=options.max_batch,
        max_wait=options.max_wait_ms / 1e3,
        max_queue=options.max_queue,
        rate=options.rate,
    )

    def read(content, max_pixels):
        return decode(content, max_pixels, value_range)

    run_server(
        build_app(label, classes, read, limits=limits, name=path.name), options.host, options.port
    )
    return 0


def run_server(app, host, port):
    """Serves an application until SIGINT or SIGTERM, then answers what it has accepted.

    Args:
        app: ASGI application.
        host: str.
        port: int; 0: any free one.

    Raises:
        UserError: if the server cannot listen on the address.
    """
    import uvicorn

    from kseg.errors import UserError

    config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False)

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

        def _stop(self, number, frame):
            if self.should_exit and number == signal.SIGINT:
                self.force_exit = True
            self.should_exit = True

    try:
        listening = config.bind_socket()
    except SystemExit:  # Raised by uvicorn after logging the error itself.
        raise UserError(
            f"The address {host}:{port} is in use or not of this machine. Choose another --port or "
            "--host"
        ) from None
    listening.listen(config.backlog)  # Requests may arrive as soon as the line is printed.
    address, number = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    print(f"serving at http://{shown}:{number}/", flush=True)
    Server(config).run(sockets=[listening])
    print("all accepted requests are answered", file=sys.stderr)


def check_memory(needs, megapixels):
    """Refuses limits under which a single picture may need more memory than is available.

    Args:
        needs: as returned by `kseg.commands.predict.load`.
        megapixels: float, of the largest picture.

    Raises:
        UserError: if the estimate exceeds the available memory.
    """
    from kseg.commands.predict import too_large
    from kseg.errors import UserError

    side = math.isqrt(int(megapixels * 1e6))
    if needs and (reason := too_large((side, side), needs)):
        raise UserError(f"{reason}. Lower --max-megapixels. Received: {megapixels:g}")


def load(path, checkpoint, is_run):
    """Loads a network that labels batches.

    Args:
        path: `pathlib.Path` of a run, a SavedModel, or a file for LiteRT or ONNX.
        checkpoint: as for `kseg.runs.Run.checkpoint`; None: the best.
        is_run: bool, whether `path` is the folder of a run.

    Returns:
        `(label, classes, value_range, needs)`: a function in the form that
        `kseg.serving.server.build_app` takes, `kseg.classes.Classes`, the range of deep images or
        None, and as from `kseg.commands.predict.load` the memory for an image size, or None.
    """
    if is_run:
        from kseg.commands.predict import saved_run

        with saved_run(path, checkpoint or "best") as folder:
            return load(folder, None, False)
    from kseg.commands.predict import memory_needs
    from kseg.serving.loading import load as load_network

    model = load_network(path)
    return batch_labeler(model), model.classes, model.value_range, memory_needs(model)


def batch_labeler(model):
    """Returns a function from a batch of images to per-pixel classes and their probabilities.

    Args:
        model: model as returned by `kseg.load`.

    Returns:
        function from uint8 `(batch, height, width, 3)` to uint8 and float32 arrays `(batch, height,
        width)`. For a network of fixed image size, images are resized to it and the results back.
    """
    import numpy as np

    if not hasattr(model, "size"):
        import tensorflow as tf

        @tf.function(
            input_signature=[tf.TensorSpec((None, None, None, 3), "uint8")], autograph=False
        )
        def label(images):
            logits = model(images)
            confidence = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
            return tf.cast(tf.argmax(logits, axis=-1), "uint8"), confidence

        return lambda images: tuple(x.numpy() for x in label(images))

    def label_each(images):
        results = [model.label_with_confidence(image) for image in images]
        return tuple(np.stack(x) for x in zip(*results, strict=True))

    return label_each


def decode(content, max_pixels, value_range):
    """Decodes a picture for the server in the same way as `kseg.commands.predict`.

    Raises:
        RejectedError: if it has too many pixels (413) or cannot be read (422).
    """
    from kseg.serving.server import RejectedError
    from pipelines import pictures
    from pipelines.errors import DataError

    size = pictures.size_of_content(content)
    if size and size[0] * size[1] > max_pixels:
        raise RejectedError(
            413,
            f"A picture may have at most {max_pixels / 1e6:g} million pixels. "
            f"Received: {size[1]} x {size[0]}",
        )
    try:
        return pictures.read(content, value_range).pixels
    except DataError as error:
        raise RejectedError(422, f"The picture cannot be read: {error}") from None
