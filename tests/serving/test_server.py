import asyncio
import base64
import concurrent.futures
import struct
import threading
import time

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from kseg.classes import Classes
from kseg.commands.serve import decode
from kseg.evaluation import drawing
from kseg.serving import server as server_module
from kseg.serving.limits import Limits
from kseg.serving.server import build_app

CLASSES = Classes(["sky", "<b>road</b>"], [[70, 130, 180], [128, 64, 128]])
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (6, 8, 3)).astype("uint8")


def label(images):
    """Bright pixels of the red channel are road, with a confidence of their brightness."""
    return (images[..., 0] > 127).astype("uint8"), images[..., 0].astype("float32") / 255


def read(content, limits):
    return decode(content, limits, None)


def with_bad_text(content):
    """Puts a text chunk with a wrong checksum after the header of a PNG, which Pillow refuses."""
    chunk = struct.pack(">I", 3) + b"tEXt" + b"a\0b" + b"\0\0\0\0"
    return content[:33] + chunk + content[33:]


def client(label=label, **limits):
    limits = {"max_wait": 0.0, **limits}
    return TestClient(build_app(label, CLASSES, read, limits=Limits(**limits), name="tiny"))


def png(rgb):
    return cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()


def picture(content):
    return cv2.imdecode(np.frombuffer(content, "uint8"), cv2.IMREAD_UNCHANGED)


def test_outputs():
    labels, confidence = (x[0] for x in label(IMAGE[None]))
    with client() as server:

        def ask(output):
            response = server.post("/predict", params={"output": output}, content=png(IMAGE))
            assert response.status_code == 200
            return response

        mask = ask("mask")
        assert mask.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(picture(mask.content), labels)
        drawn = drawing.overlay(IMAGE, labels, CLASSES.palette)
        np.testing.assert_array_equal(picture(ask("overlay").content)[..., ::-1], drawn)
        np.testing.assert_array_equal(picture(ask("confidence").content), IMAGE[..., 0])
        found = ask("json").json()
        assert (found["height"], found["width"]) == (6, 8)
        for item in found["classes"]:
            mine = labels == item["id"]
            assert item["name"] == CLASSES.names[item["id"]]
            assert item["color"] == CLASSES.palette[item["id"]]
            assert item["pixels"] == mine.sum()
            assert item["share"] == pytest.approx(mine.mean(), abs=1e-6)
            assert item["confidence"] == pytest.approx(confidence[mine].mean(), abs=1e-6)
        assert sum(item["pixels"] for item in found["classes"]) == labels.size
        everything = ask("all").json()
        assert everything["classes"] == found["classes"]
        encoded = everything["mask"].removeprefix("data:image/png;base64,")
        np.testing.assert_array_equal(picture(base64.b64decode(encoded)), labels)


@pytest.mark.parametrize(
    ("status", "content", "parameters", "headers", "message"),
    [
        (400, b"", {}, {}, "Received: nothing"),
        (400, png(IMAGE), {"output": "masks"}, {}, "Received: 'masks'"),
        (400, png(IMAGE), {"output": "a\nb" * 99}, {}, "Received: 'a\\nba\\nb"),
        (413, b"x" * 2001, {}, {}, "at most 2000 bytes"),
        (
            413,
            png(np.zeros((30, 40, 3), "uint8")),
            {},
            {},
            "0.001 million pixels, this has 40 x 30",
        ),
        (415, b"x", {}, {"content-type": "multipart/form-data; boundary=x"}, "--data-binary"),
        (422, b"no picture", {}, {}, "something else"),
        (422, png(IMAGE)[:60], {}, {}, "truncated"),
    ],
)
def test_refusals_are_one_line(status, content, parameters, headers, message):
    with client(max_bytes=2000, max_pixels=1000) as server:
        response = server.post("/predict", params=parameters, content=content, headers=headers)
        assert response.status_code == status
        assert message in response.json()["error"] and "\n" not in response.json()["error"]
        assert f'kseg_requests_total{{status="{status}"}} 1.0' in server.get("/metrics").text


def test_rate_of_a_client():
    with client(rate=0.001) as server:
        assert server.post("/predict", content=png(IMAGE)).status_code == 200
        response = server.post("/predict", content=png(IMAGE))
        assert response.status_code == 429 and int(response.headers["retry-after"]) > 900
        assert server.get("/health").status_code == 200


def waiting(server, name, value):
    """Waits until a metric has a value."""
    deadline = time.monotonic() + 60
    while f"kseg_{name} {value}" not in server.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_busy_server_refuses_further_requests():
    go = threading.Event()

    def slow(images):
        assert go.wait(60)
        return label(images)

    with (
        concurrent.futures.ThreadPoolExecutor(2) as pool,
        client(slow, max_batch=1, max_requests=2) as server,
    ):
        accepted = [pool.submit(server.post, "/predict", content=png(IMAGE)) for _ in range(2)]
        waiting(server, "requests_in_progress", 2.0)
        refused = server.post("/predict", content=png(IMAGE))
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        go.set()
        assert [future.result(60).status_code for future in accepted] == [200, 200]
        waiting(server, "requests_in_progress", 0.0)


def test_a_body_that_does_not_arrive():
    # The client of the tests passes a body on only when it is whole: the application is called.
    received, sent = [], []

    async def receive():
        if received:
            await asyncio.sleep(60)
        received.append(True)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [],
        "client": ("1.2.3.4", 5),
    }
    app = build_app(label, CLASSES, read, limits=Limits(body_seconds=0.05))
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408 and b"within 0.05 seconds" in sent[1]["body"]


def test_other_errors_are_json():
    with client() as server:
        routes = "Routes: POST /predict, GET /, /health, /metrics"
        assert server.get("/nowhere").json() == {"error": f"Not Found. {routes}"}
        assert server.get("/predict").json() == {"error": f"Method Not Allowed (GET). {routes}"}


def test_allowances_of_many_clients_are_forgotten_when_full_again(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(server_module.time, "monotonic", lambda: now[0])
    allowances = server_module._Allowances(1.0)
    monkeypatch.setattr(server_module, "_CLIENTS", 10)
    for number in range(11):
        assert allowances.take(number) == 0
    assert len(allowances._left) == 11
    now[0] += 1.5
    allowances.take("new")
    assert list(allowances._left) == ["new"]
    assert allowances.take("new") == 0 and allowances.take("new") > 0


def test_a_fault_of_the_network_is_answered_and_counted(capsys):
    def broken(images):
        raise ValueError("broken")

    with TestClient(build_app(broken, CLASSES, read)) as server:
        response = server.post("/predict", content=png(IMAGE))
        assert response.status_code == 500 and "log" in response.json()["error"]
        assert "ValueError: broken" in capsys.readouterr().err
        assert 'status="500"} 1.0' in server.get("/metrics").text
        assert server.get("/health").json() == {
            "status": "ok",
            "model": "kseg",
            "classes": CLASSES.names,
        }


def test_the_page_needs_nothing_from_elsewhere():
    with client() as server:
        page = server.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http://" not in page.text and "https://" not in page.text
