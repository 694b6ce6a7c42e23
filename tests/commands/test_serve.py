"""`kseg serve` as a process: it starts, answers, and ends without losing a request."""

import concurrent.futures
import http.client
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import cv2
import numpy as np
import pytest

from kseg.commands import networks, serve
from kseg.commands.networks import load, memory_needs
from kseg.errors import UserError
from kseg.serving import export_saved_model, load_saved_model
from kseg.serving.labeling import labeler
from kseg.serving.limits import Limits
from kseg.serving.onnx import export_onnx
from tests.commands.tiny_run import png
from tests.commands.tiny_run import tiny_run as tiny_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tiny_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "model"
    export_saved_model(tiny_run.segmenter("best"), path, tiny_run.classes)
    return path


def test_it_answers_labels_as_predict_does_and_ends_well(model):
    command = [sys.executable, "-m", "kseg.commands", "serve", "--saved-model", str(model)]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")
    process = subprocess.Popen(
        [*command, "--port", "0", "--max-batch", "4", "--max-wait-ms", "3000"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = address_of(process)
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (24, 32, 3)).astype("uint8") for _ in range(4)]

        def ask(image):
            with urllib.request.urlopen(url + "predict", png(image[..., ::-1]), 60) as answer:
                return cv2.imdecode(np.frombuffer(answer.read(), "uint8"), cv2.IMREAD_UNCHANGED)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            masks = list(pool.map(ask, images))
            expected = labeler(load_saved_model(model))(np.stack(images))
            np.testing.assert_array_equal(np.stack(masks), expected)
            # A client that connects before the end and sends its request after it is answered, too.
            late = http.client.HTTPConnection(url.split("/")[2], timeout=60)
            late.connect()
            # Asked to end while three wait for a fourth: each is answered.
            under_way = [pool.submit(ask, image) for image in images[:3]]
            while waiting_images(url) < 3 and not all(f.done() for f in under_way):
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            late.request("GET", "/health")
            assert late.getresponse().status == 200
            late.close()
            for future, mask in zip(under_way, masks[:3], strict=True):
                np.testing.assert_array_equal(future.result(60), mask)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def address_of(process):
    """Reads the line that a server prints when it is ready; a hanging one is killed."""
    timer = threading.Timer(120, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    assert line.startswith("serving at http://127.0.0.1:"), process.stderr.read()
    return line.split()[-1]


def waiting_images(url):
    with urllib.request.urlopen(url + "metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(x.split()[1] for x in lines if x.startswith("kseg_waiting_images ")))


@pytest.mark.parametrize("host", ["127.0.0.1", "no host", "256.1.1.1"])
def test_an_address_that_cannot_be_had_is_one_line(host, capfd):
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(UserError, match=rf"cannot listen at {host}:\d+ \(.+\). Choose another"),
    ):
        serve.bind(host, other.getsockname()[1])
    assert capfd.readouterr().err == ""


def test_runs_and_files_are_served(tiny_run, model, tmp_path):
    export_onnx(tiny_run.segmenter("best"), tmp_path / "model.onnx", tiny_run.classes)
    images = np.random.default_rng(1).integers(0, 256, (2, 20, 24, 3)).astype("uint8")
    logits = load_saved_model(model)(images).numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for path, is_run in ((tiny_run.path, True), (model, False), (tmp_path / "model.onnx", False)):
        loaded = load(path, "best" if is_run else None)
        labels, confidence = labeler(loaded, confidence=True)(images)
        np.testing.assert_array_equal(labeler(loaded)(images), labels)
        np.testing.assert_array_equal(labels, logits.argmax(-1))
        np.testing.assert_allclose(confidence, probabilities.max(-1), rtol=1e-4)
        assert len(loaded.classes) == 3 and labels.dtype == "uint8"
        assert (memory_needs(loaded) is None) == (path.suffix == ".onnx")


@pytest.mark.parametrize(
    "arguments",
    [["--port", "65536"], ["--rate", "0"], ["--max-batch", "x"], ["--max-wait-ms", "-1"]],
)
def test_mistakes_on_the_command_line(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        serve.parse_arguments(["--saved-model", "model", *arguments])
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and f"not {arguments[1]}" in message


def test_a_limit_above_the_memory_is_refused(monkeypatch):
    limits = Limits(max_pixels=4_000_000)
    serve.check_memory(None, limits)
    for shape in ((2000, 2000), (8000, 500), (500, 8000)):
        monkeypatch.setattr(
            networks,
            "memory_needs",
            lambda model, shape=shape: lambda size: 1 << (50 if size == shape else 20),
        )
        with pytest.raises(UserError, match=f"{shape[1]} x {shape[0]} .*Lower --max-megapixels"):
            serve.check_memory(None, limits)


def test_limits_of_the_page_are_the_defaults():
    page = (ROOT / "docs/serving.md").read_text()
    options = serve.parse_arguments(["--saved-model", "model"])
    found = dict(re.findall(r"`--([a-z-]+)` \((\d+)\)", page))
    expected = {
        "max-megabytes": options.max_megabytes,
        "max-megapixels": options.max_megapixels,
        "max-requests": options.max_requests,
        "max-wait-ms": options.max_wait_ms,
        "max-batch": options.max_batch,
    }
    assert {name: float(value) for name, value in found.items()} == expected
