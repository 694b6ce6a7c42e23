import base64
import threading

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from kseg.classes import Classes
from kseg.commands.serve import decode
from kseg.evaluation import drawing
from kseg.serving.server import Limits, build_app

CLASSES = Classes(["sky", "<b>road</b>"], [[70, 130, 180], [128, 64, 128]])
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (6, 8, 3)).astype("uint8")


def label(images):
    """Bright pixels of the red channel are road, with a confidence of their brightness."""
    return (images[..., 0] > 127).astype("uint8"), images[..., 0].astype("float32") / 255


def read(content, max_pixels):
    return decode(content, max_pixels, None)


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
        (400, png(IMAGE), {"output": "masks"}, {}, "Received: masks"),
        (413, b"x" * 2001, {}, {}, "at most 2000 bytes"),
        (
            413,
            png(np.zeros((30, 40, 3), "uint8")),
            {},
            {},
            "0.001 million pixels. Received: 40 x 30",
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


def test_a_full_queue_and_an_end_that_answers_what_was_accepted():
    go, started = threading.Event(), threading.Event()

    def slow(images):
        started.set()
        assert go.wait(20)
        return label(images)

    answers = []
    with client(slow, max_batch=1, max_queue=1) as server:

        def ask():
            answers.append(server.post("/predict", content=png(IMAGE)).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert started.wait(20)
        # One is being labeled, one waits: the other two are refused.
        while len(answers) < 2:
            pass
        assert answers == [503, 503]
        go.set()
        for thread in threads:
            thread.join()
    assert sorted(answers) == [200, 200, 503, 503]


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
