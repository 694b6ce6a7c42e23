"""`kseg serve` as a process: it starts, answers, and ends without losing a request."""

import concurrent.futures
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import cv2
import numpy as np
import pytest

from kseg.commands import serve
from kseg.errors import UserError
from kseg.serving import export_saved_model, load_saved_model
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
        line = process.stdout.readline()
        assert line.startswith("serving at http://127.0.0.1:"), process.stderr.read()
        url = line.split()[-1]
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (24, 32, 3)).astype("uint8") for _ in range(4)]

        def ask(image):
            with urllib.request.urlopen(url + "predict", png(image[..., ::-1]), 60) as answer:
                return cv2.imdecode(np.frombuffer(answer.read(), "uint8"), cv2.IMREAD_UNCHANGED)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            masks = list(pool.map(ask, images))
            expected = serve.load(model, None, False)[0](np.stack(images))[0]
            np.testing.assert_array_equal(np.stack(masks), expected)
            # Asked to end while three wait for a fourth: each is answered.
            under_way = [pool.submit(ask, image) for image in images[:3]]
            while waiting_images(url) < 3 and not all(f.done() for f in under_way):
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            for future, mask in zip(under_way, masks[:3], strict=True):
                np.testing.assert_array_equal(future.result(60), mask)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def waiting_images(url):
    with urllib.request.urlopen(url + "metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(x.split()[1] for x in lines if x.startswith("kseg_waiting_images ")))


def test_an_address_in_use_is_one_line():
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(UserError, match="in use or not of this machine"),
    ):
        serve.run_server(None, "127.0.0.1", other.getsockname()[1])


def test_runs_and_files_are_served(tiny_run, model, tmp_path):
    export_onnx(tiny_run.segmenter("best"), tmp_path / "model.onnx", tiny_run.classes)
    images = np.random.default_rng(1).integers(0, 256, (2, 20, 24, 3)).astype("uint8")
    logits = load_saved_model(model)(images).numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for path, is_run in ((tiny_run.path, True), (model, False), (tmp_path / "model.onnx", False)):
        label, classes, _, needs = serve.load(path, None, is_run)
        labels, confidence = label(images)
        np.testing.assert_array_equal(labels, logits.argmax(-1))
        np.testing.assert_allclose(confidence, probabilities.max(-1), rtol=1e-4)
        assert len(classes) == 3 and (needs is None) == (path.suffix == ".onnx")


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


def test_a_limit_above_the_memory_is_refused():
    serve.check_memory(None, 1e6)
    serve.check_memory(lambda size: 1 << 20, 4.0)
    with pytest.raises(UserError, match=r"2000 x 2000 .*Lower --max-megapixels. Received: 4"):
        serve.check_memory(lambda size: 1 << 50, 4.0)
