import functools
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.backbones import (
    build_efficientnet_lite,
    build_keras_cv,
    build_swin,
)
from kseg.classes import Classes
from kseg.errors import UserError
from kseg.layers import Conv2D, ResizeLike
from kseg.segmenters import build_segmenter, inference_model
from kseg.serving import portable
from kseg.serving.litert import export_tflite
from kseg.serving.onnx import export_onnx
from tests.serving.test_saved_model import CLASSES, small_segmenter
from tests.tiny_networks import tiny_hrnet, tiny_resnet

RESNET = functools.partial(tiny_resnet, channels=(4, 4, 8, 8))
BACKBONES = {
    "hrnet": tiny_hrnet,
    "resnet": lambda: RESNET(variant="v1c"),
    "dilated resnet": lambda: RESNET(output_stride=8),
    "swin": lambda: build_swin(
        embed_dim=4, depths=(2, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4
    ),
    "efficientnet_lite": lambda: build_efficientnet_lite(
        channels=(4, 6, 8, 8, 8, 8, 8),
        repeats=(1, 1, 1, 1, 1, 1, 1),
        stem_channels=4,
        top_channels=8,
        output_stride=8,
    ),
    "efficientnet": lambda: build_keras_cv(
        class_name="EfficientNetLiteBackbone",
        arguments={
            "stackwise_kernel_sizes": [3, 3, 5, 5],
            "stackwise_num_repeats": [1, 1, 1, 1],
            "stackwise_input_filters": [8, 8, 8, 8],
            "stackwise_output_filters": [8, 8, 8, 8],
            "stackwise_expansion_ratios": [1, 2, 2, 2],
            "stackwise_strides": [2, 2, 2, 2],
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
        },
        output_stride=16,
    ),
}
HEADS = {
    "hrnet": {},
    "deeplabv3": {"channels": 8, "aspp_channels": 8, "aux_channels": 8},
    "upernet": {"channels": 8, "aux_channels": 8},
}
EXPORTS = {"tflite": export_tflite, "onnx": export_onnx}
NETWORKS = [
    ("hrnet", "hrnet"),
    ("resnet", "upernet"),
    ("swin", "upernet"),
    ("dilated resnet", "deeplabv3"),
    ("efficientnet_lite", "deeplabv3"),
    ("efficientnet", "deeplabv3"),
]


def build(backbone, head):
    """A network whose weights are all far from those that do nothing."""
    segmenter = build_segmenter(BACKBONES[backbone](), head, 3, head_arguments=HEADS[head])
    rng = np.random.default_rng(0)
    for weight in segmenter.weights:
        shift = rng.normal(0, 0.3, weight.shape) if len(weight.shape) == 1 else 0.0
        weight.assign(np.abs(weight + shift) if "variance" in weight.path else weight + shift)
    return segmenter


def images(*size, batch=1):
    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3)).astype("uint8")


def check(segmenter, model, *batches):
    for batch in batches:
        expected = inference_model(segmenter)(batch).numpy()
        spread = expected.std(axis=(0, 1, 2)).min()
        assert spread > 1e-3, "the test would be weak"
        found = model(batch)
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=spread / 100)


# Sides that are no multiples of strides, windows or pooling grids.
@pytest.mark.parametrize("network", NETWORKS, ids=" + ".join)
def test_litert_and_onnx_compute_what_each_network_does(network, tmp_path):
    segmenter = build(*network)
    export_tflite(segmenter, tmp_path / "model.tflite", CLASSES, (33, 47))
    export_onnx(segmenter, tmp_path / "model.onnx", CLASSES, overwrite=True)
    model = portable.load(tmp_path / "model.tflite")
    assert (model.size, model.classes) == ((33, 47), CLASSES)
    check(segmenter, model, images(33, 47))
    model = portable.load(tmp_path / "model.onnx")
    assert (model.size, model.classes) == (None, CLASSES)
    check(segmenter, model, images(33, 47), images(40, 72, batch=2))


def test_onnx_of_one_size(tmp_path):
    # From 3 rows to 5: in 32 bits 5 / 3 is less than that, and 3 times it less than 5.
    image = keras.Input((None, None, 3))
    fine, coarse = (Conv2D(3, 1, strides=stride)(image) for stride in (8, 16))
    logits = keras.layers.Add()([fine, ResizeLike()(coarse, like=fine)])
    segmenter = keras.Model(image, {"logits": logits})
    export_onnx(segmenter, tmp_path / "model.onnx", CLASSES, (33, 47))
    model = portable.load(tmp_path / "model.onnx", threads=1)
    assert model.size == (33, 47)
    check(segmenter, model, images(33, 47))
    with pytest.raises(Exception, match="Got invalid dimensions"):
        model(images(33, 48))


@pytest.fixture(scope="module", params=["tflite", "onnx"])
def colours(request, tmp_path_factory):
    """A file of 8 x 12 pixels that takes the channels of an image for logits."""
    segmenter = small_segmenter()
    segmenter.get_layer("logits").set_weights([np.eye(3)[None, None], np.zeros(3)])
    path = tmp_path_factory.mktemp("colours") / f"model.{request.param}"
    EXPORTS[request.param](segmenter, path, CLASSES, (8, 12))
    return path


def test_labels_images_of_another_size(colours):
    labels = np.random.default_rng(0).integers(0, 3, (4, 6))
    blocks = labels.repeat(10, axis=0).repeat(10, axis=1)
    model = portable.load(colours)
    for repeat in (2, 4):  # To the size of the file, and reduced to it.
        expected = labels.repeat(repeat, axis=0).repeat(repeat, axis=1)
        found = model.label((200 * np.eye(3)[expected]).astype("uint8"))
        assert found.dtype == "uint8"
        np.testing.assert_array_equal(found, expected)
    found = model.label((200 * np.eye(3)[blocks]).astype("uint8"))
    assert found.shape == blocks.shape
    assert np.mean(found == blocks) > 0.9, "all but the seams"


@keras.saving.register_keras_serializable(package="test")
class Unusual(keras.layers.Layer):
    """An operation that no other runtime has."""

    def call(self, inputs):
        return tf.math.igamma(tf.nn.relu(inputs) + 1.0, 1.0)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape)


@pytest.mark.parametrize("kind, target", [("tflite", "LiteRT"), ("onnx", "ONNX")])
def test_network_that_cannot_be_converted_leaves_what_was_there(kind, target, tmp_path):
    path = tmp_path / f"model.{kind}"
    write = EXPORTS[kind]
    write(small_segmenter(), path, CLASSES, (8, 12))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {f"model.{kind}", "model.classes.json"}
    image = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(2, 1)(Unusual()(image))
    unusual = keras.Model(image, {"logits": logits})
    others = Classes(CLASSES.names[:2], CLASSES.palette[:2])
    with pytest.raises(
        UserError, match=f"to {target} cannot do this network.*(?i:igamma)"
    ) as caught:
        write(unusual, path, others, (8, 12), overwrite=True)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    export_tflite(small_segmenter(), path, CLASSES, (8, 12))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write_bytes = type(path).write_bytes

    def fail(file, data):
        write_bytes(file, data[:10])
        if "tflite" in file.name:
            raise OSError("disk full")

    monkeypatch.setattr(type(path), "write_bytes", fail)
    others = Classes(CLASSES.names[::-1], CLASSES.palette)
    with pytest.raises(OSError, match=r"disk full: .\S+/model\.tflite'"):
        export_tflite(small_segmenter(), path, others, (8, 12), overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_names_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    write = functools.partial(export_tflite, small_segmenter(), classes=CLASSES, size=(8, 8))
    with pytest.raises(UserError, match="is a folder"):
        write(path=tmp_path)
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
        write(path=tmp_path / "file" / "model.tflite")
    with pytest.raises(ValueError, match="must have the 2 classes"):
        write(path=tmp_path / "model", classes=Classes(["a", "b"], [[0, 0, 0]] * 2))
    assert os.listdir(tmp_path) == ["file"]


def test_files_of_one_name_share_their_classes(tmp_path):
    """Each keeps its checksum there; a file of other classes takes the place for itself."""
    lite, onnx = tmp_path / "model.tflite", tmp_path / "model.onnx"
    export_onnx(small_segmenter(), onnx, CLASSES, (8, 12))
    export_tflite(small_segmenter(), lite, CLASSES, (8, 12))
    assert portable.load(lite).classes == portable.load(onnx).classes == CLASSES
    others = Classes(CLASSES.names[::-1], CLASSES.palette)
    export_tflite(small_segmenter(), lite, others, (8, 12), overwrite=True)
    assert portable.load(lite).classes == others
    with pytest.raises(UserError, match="belongs to another file"):
        portable.load(onnx)


def test_load_names_what_is_wrong(colours, tmp_path):
    with pytest.raises(UserError, match=r"No such file or directory\. Write"):
        portable.load(tmp_path / "model.onnx")
    path = tmp_path / colours.name
    path.write_bytes(colours.read_bytes()[:100])
    with pytest.raises(UserError, match="No such file"):  # The classes are missing.
        portable.load(path)
    path.with_suffix(".classes.json").write_text(json.dumps({"names": ["a"], "palette": [[0] * 3]}))
    with pytest.raises(UserError, match="or is damaged") as caught:
        portable.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("colours", ["tflite", "onnx"], indirect=True)
def test_names_a_runtime_that_is_missing(colours, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'kseg\[(litert|onnx)\]'"):
        portable.load(colours)
