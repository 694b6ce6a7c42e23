import json

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.projector import projector_plugin
from werkzeug.test import Client

from kseg.analysis import projector
from kseg.analysis.embeddings import Points

NAMES, PALETTE = ["sky", "a\ttab"], [[10, 20, 30], [200, 0, 100]]


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)

    def some(count, columns):
        return Points(
            rng.normal(size=(count, 4)).astype("float32"),
            np.arange(count) % 2,
            columns,
            rng.integers(0, 256, (count, 8, 8, 3)).astype("uint8"),
        )

    return {
        "pixels": some(5, {"image": list("abcde"), "predicted": list("00110")}),
        "regions": some(3, {"image": list("abc")}),
    }


@pytest.fixture(scope="module")
def serve(points, tmp_path_factory):
    """The responses of TensorBoard's projector for a run's folder."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "projector").mkdir()
    (folder / "projector" / "old.tsv").write_text("old")
    projector.write(folder / "projector", points, NAMES, PALETTE, description="Some points.")
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder)).Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context = base_plugin.TBContext(logdir=str(folder), data_provider=provider)
    apps = projector_plugin.ProjectorPlugin(context).get_plugin_apps()

    def get(route, **arguments):
        response = Client(apps[route]).get("/", query_string=arguments)
        assert response.status_code == 200, response.get_data(as_text=True)
        return response.get_data()

    assert not (folder / "projector" / "old.tsv").exists()
    return get


def names(serve):
    config = json.loads(serve("/info", run="projector"))
    result = {e["tensorName"].split("/")[0]: e for e in config["embeddings"]}
    return {name: result[name] for name in ("pixels", "regions")}


def test_tensorboard_finds_the_run(serve):
    assert json.loads(serve("/runs")) == ["projector"]
    config = names(serve)
    assert config["pixels"]["tensorShape"] == [5, 4]
    assert config["regions"]["tensorShape"] == [3, 4]
    assert config["pixels"]["sprite"]["singleImageDim"] == [8, 8]


def test_tensorboard_serves_the_vectors(serve, points):
    for name, config in names(serve).items():
        content = serve("/tensor", run="projector", name=config["tensorName"])
        vectors = np.frombuffer(content, "float32").reshape(-1, 4)
        np.testing.assert_array_equal(vectors, points[name].vectors)


def test_tensorboard_serves_the_classes(serve):
    for name, expected in (
        ("pixels", ["class\timage\tpredicted", "sky\ta\tsky", "a tab\tb\tsky", "sky\tc\ta tab"]),
        ("regions", ["class\timage", "sky\ta", "a tab\tb", "sky\tc"]),
    ):
        config = names(serve)[name]
        content = serve("/metadata", run="projector", name=config["tensorName"]).decode()
        assert content.splitlines()[:4] == expected
        assert len(content.splitlines()) == 1 + config["tensorShape"][0]


def test_tensorboard_serves_the_pictures(serve, points):
    for name, side in (("pixels", 3), ("regions", 2)):
        config = names(serve)[name]
        content = serve("/sprite_image", run="projector", name=config["tensorName"])
        sprite = cv2.imdecode(np.frombuffer(content, "uint8"), cv2.IMREAD_COLOR)[..., ::-1]
        assert sprite.shape == (8 * side, 8 * side, 3)
        for i, picture in enumerate(points[name].thumbnails):
            y, x = 8 * (i // side), 8 * (i % side)
            result = sprite[y : y + 8, x : x + 8]
            np.testing.assert_array_equal(result[2:6, 2:6], picture[2:6, 2:6])
            frame = np.concatenate([result[:2].reshape(-1, 3), result[:, -2:].reshape(-1, 3)])
            np.testing.assert_array_equal(frame, [PALETTE[points[name].classes[i]]] * 32)
        assert (sprite[-8:, -8:] == 255).all()
