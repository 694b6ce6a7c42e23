"""HTTP server for a network: from an image to a mask, an overlay or JSON."""

import asyncio
import base64
import contextlib
import importlib.resources
import math
import time
import traceback

import cv2
import fastapi
import numpy as np
import prometheus_client
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from kseg.evaluation import drawing
from kseg.serving.batching import Batcher
from kseg.serving.limits import Limits

OUTPUTS = ("mask", "overlay", "confidence", "json", "all")
_ROUTES = "POST /predict, GET /, /health, /metrics"
_CLIENTS = 10_000  # Allowances are cleaned up above this number.
# The page is self-contained: no external scripts or styles.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
_POLICY += "img-src 'self' blob: data:; connect-src 'self'"


class RejectedError(Exception):
    """Raised to answer a request with an error.

    Attributes:
        status: int, HTTP status code.
        headers: dict, headers of the response.
    """

    def __init__(self, status, message, **headers):
        super().__init__(message)
        self.status, self.headers = status, headers


class _Metrics:
    """Metrics served at `/metrics` in the text format of Prometheus."""

    def __init__(self, progress, waiting):
        self.registry = prometheus_client.CollectorRegistry()
        make = {"registry": self.registry, "namespace": "kseg"}
        self.requests = prometheus_client.Counter(
            "requests", "Requests to /predict by status.", ["status"], **make
        )
        self.seconds = prometheus_client.Histogram(
            "request_seconds", "Seconds from a request's first byte to its answer.", **make
        )
        self.batch_size = prometheus_client.Histogram(
            "batch_size", "Images in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), **make
        )
        for name, text, value in (
            ("requests_in_progress", "Requests to /predict in progress.", progress),
            ("waiting_images", "Images that wait for their batch.", waiting),
        ):
            prometheus_client.Gauge(name, text, **make).set_function(value)


class _Allowances:
    """Token buckets, one for each client."""

    def __init__(self, rate):
        self._rate = rate
        self._burst = max(1.0, 2 * rate) if rate else math.inf
        self._left = {}  # Client -> (tokens, time).
        self._cleaned = 0.0

    def take(self, client):
        """Takes a token and returns 0, or returns the seconds until one is available."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        if len(self._left) > _CLIENTS and now > self._cleaned + 1:
            # A full bucket is that of a new client.
            used = {k: v for k, v in self._left.items() if self._tokens(*v, now) < self._burst}
            self._left = used
            self._cleaned = now
        tokens = self._tokens(*self._left.get(client, (self._burst, now)), now)
        self._left[client] = tokens - (tokens >= 1), now
        return 0.0 if tokens >= 1 else (1 - tokens) / self._rate

    def _tokens(self, tokens, before, now):
        return min(self._burst, tokens + (now - before) * self._rate)


def build_app(label, classes, decode, *, limits=None, name="kseg"):
    """Builds the ASGI application.

    Routes: `POST /predict?output=mask|overlay|confidence|json|all` takes the bytes of a picture as
    body; `GET /` returns a page for a browser, `/health` JSON, `/metrics` Prometheus text. The
    first three outputs are PNG images; `json` lists the classes that occur; `all` adds mask and
    overlay as data URLs.

    Args:
        label: function from uint8 `(batch, height, width, 3)` to `(classes, confidence)`: uint8
            and float32 `(batch, height, width)`.
        classes: `kseg.classes.Classes`.
        decode: function from bytes and `limits` to uint8 RGB `(height, width, 3)`; raises
            `RejectedError`.
        limits: `Limits`; None: the defaults.
        name: str, name of the network, for `/health`.

    Returns:
        `fastapi.FastAPI`, which answers all accepted requests before it shuts down.
    """
    limits = limits or Limits()
    in_progress = set()
    metrics = _Metrics(lambda: len(in_progress), lambda: len(batcher))
    batcher = Batcher(label, limits, on_batch=metrics.batch_size.observe)
    allowances = _Allowances(limits.rate)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await asyncio.to_thread(batcher.close)

    # Without FastAPI's own pages, which load scripts from elsewhere.
    app = fastapi.FastAPI(title="kseg", lifespan=lifespan, docs_url=None, redoc_url=None)
    page = (importlib.resources.files("kseg.serving") / "page.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index():
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    @app.get("/health")
    async def health():
        return {"status": "ok", "model": name, "classes": list(classes.names)}

    @app.get("/metrics")
    async def report():
        content = prometheus_client.generate_latest(metrics.registry)
        return Response(content, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @app.exception_handler(HTTPException)
    async def refuse(request, error):
        hint = {404: f". Routes: {_ROUTES}", 405: f" ({request.method}). Routes: {_ROUTES}"}
        detail = f"{error.detail}{hint.get(error.status_code, '')}"
        return JSONResponse({"error": detail}, error.status_code, headers=error.headers)

    async def answer(request, output):
        if output not in OUTPUTS:
            raise RejectedError(
                400, f"`output` must be one of {', '.join(OUTPUTS)}. Received: {output[:40]!r}"
            )
        client = request.client.host if request.client else ""
        if wait := allowances.take(client):
            raise RejectedError(
                429,
                f"At most {limits.rate:g} requests per second. Try again in {wait:.1f} s",
                **{"Retry-After": str(math.ceil(wait))},
            )
        if len(in_progress) > limits.max_requests:
            raise RejectedError(
                503, "The server is busy. Try again in a second", **{"Retry-After": "1"}
            )
        content = await _body(request, limits)
        image = await asyncio.to_thread(decode, content, limits)
        labels, confidence = await asyncio.wrap_future(batcher.submit(image))
        return await asyncio.to_thread(_encode, output, image, labels, confidence, classes)

    @app.post("/predict")
    async def predict(request: fastapi.Request, output: str = "mask"):
        start = time.perf_counter()
        in_progress.add(request)
        try:
            response = await answer(request, output)
        except RejectedError as error:
            response = JSONResponse({"error": str(error)}, error.status, headers=error.headers)
        except asyncio.CancelledError:  # By a second signal.
            response = JSONResponse({"error": "The server was stopped"}, 503)
        except ClientDisconnect:
            response = Response(status_code=499)  # For the metrics; nobody receives it.
        except Exception:  # No error of the network may end the server.
            traceback.print_exc()
            text = "The network failed on this picture. The server's log says why"
            response = JSONResponse({"error": text}, 500)
        finally:
            in_progress.discard(request)
        metrics.requests.labels(response.status_code).inc()
        metrics.seconds.observe(time.perf_counter() - start)
        return response

    return app


async def _body(request, limits):
    """Reads a body of limited size in limited time."""
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/"):
        raise RejectedError(
            415,
            "The body must be the bytes of the picture, not a form: "
            "curl --data-binary @photo.jpg http://.../predict",
        )

    async def read():
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > limits.max_bytes:
                raise RejectedError(413, f"A picture may have at most {limits.max_bytes} bytes")
        return bytes(content)

    try:
        content = await asyncio.wait_for(read(), limits.body_seconds)
    except asyncio.TimeoutError:
        raise RejectedError(
            408, f"The picture must arrive within {limits.body_seconds:g} seconds"
        ) from None
    if not content:
        raise RejectedError(400, "The body must be a picture. Received: nothing")
    return content


def _encode(output, image, labels, confidence, classes):
    """Builds the response to a request from its image, labels and confidence."""
    pictures = {
        "mask": lambda: labels,
        "overlay": lambda: drawing.overlay(image, labels, classes.palette)[..., ::-1],
        "confidence": lambda: np.round(confidence * 255).astype("uint8"),
    }
    if output in pictures:
        return Response(_png(pictures[output]()), media_type="image/png")
    height, width = labels.shape
    content = {"height": height, "width": width, "classes": _count(labels, confidence, classes)}
    if output == "all":
        for name in ("mask", "overlay"):
            encoded = base64.b64encode(_png(pictures[name]())).decode()
            content[name] = f"data:image/png;base64,{encoded}"
    return JSONResponse(content)


def _count(labels, confidence, classes):
    """Lists the classes that occur, the most frequent first."""
    counts = np.bincount(labels.ravel(), minlength=len(classes.names))
    return [
        {
            "id": int(i),
            "name": classes.names[i],
            "color": list(map(int, classes.palette[i])),
            "pixels": int(counts[i]),
            "share": round(float(counts[i] / labels.size), 6),
            "confidence": round(float(confidence[labels == i].mean()), 6),
        }
        for i in np.argsort(-counts, kind="stable")
        if counts[i]
    ]


def _png(picture):
    return cv2.imencode(".png", picture)[1].tobytes()
