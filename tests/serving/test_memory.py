import tempfile

import keras
import pytest
import tensorflow as tf

from kseg import serving
from kseg.classes import Classes
from kseg.serving import memory


@pytest.fixture(scope="module")
def signature(tmp_path_factory):
    image = keras.Input((None, None, 3), name="image")
    wide = keras.layers.Conv2D(64, 3, padding="same", name="wide")(image)
    model = keras.Model(image, {"logits": keras.layers.Conv2D(2, 1, name="logits")(wide)})
    path = tmp_path_factory.mktemp("memory") / "model"
    serving.export_saved_model(model, path, Classes(["a", "b"], [[0, 0, 0], [1, 1, 1]]))
    return tf.saved_model.load(str(path)).signatures["serving_default"]


@pytest.mark.parametrize("size", [(30, 40), (300, 400)])
def test_the_largest_maps_are_counted(signature, size):
    # At the peak either the images (3) and the wide map (64), or that and the logits (2).
    pixels = size[0] * size[1]
    found = memory.estimate(signature, size)
    assert 4 * (64 + 3) * pixels <= found <= 4 * (64 + 3 + 2) * pixels


def test_images_of_other_channels():
    image = keras.Input((None, None, 5))
    network = keras.Model(image, keras.layers.Conv2D(16, 3, padding="same")(image))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 5), name="image")])
    def serve(image):
        return {"logits": network(image)}

    module = tf.Module()
    module.network = network
    signature = serve.get_concrete_function()
    assert signature.structured_input_signature[0][0].shape[-1] == 5
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": signature})
        loaded = tf.saved_model.load(folder).signatures["serving_default"]
        found = memory.estimate(loaded, (30, 40))
    assert found >= 4 * (5 + 16) * 30 * 40


def test_maps_that_are_too_long(signature):
    # 64 channels of 5,793 x 5,793 pixels are 2^31 and a few more.
    assert memory.estimate(signature, (5792, 5792)) < float("inf")
    assert memory.estimate(signature, (5793, 5793)) == float("inf")


def test_what_is_free():
    found = memory.available()
    assert found is None or found > 0
