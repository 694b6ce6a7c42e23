import functools
import json
import os

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

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
from kseg.serving.labeling import as_network, labeler
from kseg.serving.litert import export_tflite
from kseg.serving.onnx import export_onnx
from kseg.serving.openvino import export_openvino
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


@pytest.fixture(scope="module")
def network():
    """A network with convolutions, pooling, concatenation and resizing, and its logits."""
    segmenter = build("resnet", "upernet")
    logits = inference_model(segmenter)(images(40, 56)).numpy()
    return segmenter, logits


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("quantize", ["float16", "int8"])
def test_quantized_files_are_smaller_and_close(kind, quantize, network, tmp_path):
    segmenter, expected = network
    path = tmp_path / f"model.{kind}"
    more = {"calibration": [images(40, 56)[0], images(50, 30)[0]]} if quantize == "int8" else {}
    EXPORTS[kind](segmenter, path, CLASSES, (40, 56), quantize=quantize, **more)
    logits = portable.load(path)(images(40, 56))
    assert logits.dtype == "float32"
    error = np.sqrt(np.mean((logits - expected) ** 2)) / expected.std()
    # float16 has 11 bits. Eight bits over a range of some 6 standard deviations are an error of
    # 6 / 256 / sqrt(12) = 0.7 % in each of about 20 layers: 3 % if they are independent.
    assert 0 < error < {"float16": 0.005, "int8": 0.1}[quantize]
    agreement = np.mean(logits.argmax(-1) == expected.argmax(-1))
    assert agreement > 0.95
    if kind == "onnx" and quantize == "int8":
        check_int8(path)


def check_int8(path):
    """Every convolution but the last has weights of 8 bits with a scale for each channel."""
    graph = onnx.load(path).graph
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    scales = {
        node.output[0]: (weights[node.input[0]], weights[node.input[1]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    }
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    quantized = [scales[node.input[1]] for node in convolutions if node.input[1] in scales]
    assert len(quantized) == len(convolutions) - 1
    assert all(kernel.dtype == "int8" for kernel, _ in quantized)
    assert all(scale.shape == kernel.shape[:1] for kernel, scale in quantized)


@pytest.mark.parametrize("kind", EXPORTS)
def test_files_of_classes_need_no_work_afterwards(kind, network, tmp_path):
    segmenter, logits = network
    path = tmp_path / f"model.{kind}"
    EXPORTS[kind](segmenter, path, CLASSES, (40, 56), result="classes")
    model = portable.load(path)
    labels, confidence = model.classify(images(40, 56))
    assert (labels.dtype, confidence.dtype, model.result) == ("uint8", "float32", "classes")
    np.testing.assert_array_equal(labels, logits.argmax(-1))
    exponentials = np.exp(logits)
    expected = exponentials.max(-1) / exponentials.sum(-1)
    np.testing.assert_allclose(confidence, expected, atol=1e-4)
    np.testing.assert_array_equal(model.label(images(40, 56)[0]), labels[0])
    for result in (labeler(model)(images(40, 56)), labeler(model, confidence=True)(images(40, 56))):
        found = result[0] if isinstance(result, tuple) else result
        np.testing.assert_array_equal(found, labels)
    ones = as_network(model)(tf.constant(images(40, 56)))
    np.testing.assert_array_equal(ones, np.eye(3)[labels])
    with pytest.raises(UserError, match="gives classes and confidence, not logits"):
        model(images(40, 56))


def test_files_say_what_they_take_and_give(tmp_path):
    segmenter = small_segmenter()
    export_tflite(segmenter, tmp_path / "a.tflite", CLASSES, (8, 12))
    interpreter = Interpreter(str(tmp_path / "a.tflite"))
    signatures = interpreter.get_signature_list()
    assert signatures == {"serving_default": {"inputs": ["images"], "outputs": ["logits"]}}
    export_onnx(segmenter, tmp_path / "a.onnx", CLASSES, value_range=(0, 4095), overwrite=True)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type) == ("images", "tensor(uint8)")
    assert taken.shape == ["batch", "height", "width", 3]
    assert (given.name, given.shape) == ("logits", ["batch", "height", "width", 3])
    metadata = session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(value) for key, value in metadata.items()} == {
        "names": CLASSES.names,
        "palette": CLASSES.palette,
        "value_range": [0, 4095],
    }


def test_calibration_needs_images_of_the_network(tmp_path):
    write = functools.partial(export_tflite, small_segmenter(), tmp_path / "a", CLASSES, (8, 12))
    with pytest.raises(ValueError, match="needs images"):
        write(quantize="int8")
    with pytest.raises(UserError, match=r"the network's 3 channels\. Received: 4"):
        write(quantize="int8", calibration=[np.zeros((8, 12, 4), "uint8")])
    assert not list(tmp_path.iterdir())


def test_logits_of_a_file_of_one_size_are_resized(colours):
    model = portable.load(colours)
    image = np.full((1, 20, 30, 3), (10, 200, 30), "float32")
    found = as_network(model)(tf.constant(image)).numpy()
    assert found.shape == (1, 20, 30, 3)
    expected = inference_of_colours(image)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def inference_of_colours(image):
    """Logits that `colours` gives for an image of one color: its values, normalized."""
    segmenter = small_segmenter()
    segmenter.get_layer("logits").set_weights([np.eye(3)[None, None], np.zeros(3)])
    return inference_model(segmenter)(image).numpy()


@pytest.mark.parametrize("result", ["logits", "classes"])
def test_openvino(result, network, tmp_path):
    pytest.importorskip("openvino")
    segmenter, expected = network
    path = tmp_path / "model.xml"
    export_onnx(segmenter, tmp_path / "model.onnx", CLASSES, result=result)
    export_openvino(segmenter, path, CLASSES, result=result)
    assert portable.load(tmp_path / "model.onnx").result == result, "they share the classes"
    model = portable.load(path)
    assert (model.size, model.result) == (None, result)
    labels, _ = model.classify(images(40, 56))
    np.testing.assert_array_equal(labels, expected.argmax(-1))
    if result == "logits":
        check(segmenter, model, images(40, 56), images(33, 47, batch=2))
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(UserError, match="belongs to another file"):
        portable.load(path)


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
