"""Requirements on every backbone and every head, alone and together."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.backbones import (
    build_efficientnet_lite,
    build_keras_cv,
    build_swin,
)
from kseg.segmenters import build_segmenter, inference_model
from tests import tiny_networks
from tests.backbones.test_keras_cv import CLASSES

tiny_hrnet = functools.partial(tiny_networks.tiny_hrnet, 4)
tiny_resnet = functools.partial(
    tiny_networks.tiny_resnet, stem_channels=8, variant="v1d", output_stride=8
)


def tiny_swin(**arguments):
    return build_swin(
        embed_dim=8, depths=(2, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=3, **arguments
    )


def tiny_efficientnet_lite(**arguments):
    return build_efficientnet_lite(
        channels=(4, 6, 8, 10, 12, 14, 16),
        repeats=(1, 2, 1, 1, 1, 1, 1),
        stem_channels=4,
        top_channels=24,
        output_stride=16,
        **arguments,
    )


def tiny_keras_cv(**arguments):
    name = "EfficientNetLiteBackbone"
    return build_keras_cv(class_name=name, arguments=CLASSES[name], output_stride=16, **arguments)


BACKBONES = {
    "efficientnet_lite": tiny_efficientnet_lite,
    "hrnet": tiny_hrnet,
    "resnet": tiny_resnet,
    "swin": tiny_swin,
    "keras_cv": tiny_keras_cv,
}
HEADS = {
    "deeplabv3": {"channels": 8, "aspp_channels": 4, "rates": (1, 2), "aux_channels": 4},
    "hrnet": {},
    "ocr": {"channels": 8, "key_channels": 4},
    "upernet": {"channels": 8, "aux_channels": 4},
}
PAIRS = [
    *((backbone, head) for backbone in BACKBONES for head in HEADS),
    ("resnet", "ocr of the deepest"),
    ("swin", "ocr of the deepest"),
]


def build(backbone, head, **arguments):
    head_arguments = HEADS[head.split(" ")[0]]
    if head.endswith("deepest"):
        head_arguments = {**head_arguments, "source": "deepest"}
    return build_segmenter(
        BACKBONES[backbone](), head.split(" ")[0], 5, head_arguments=head_arguments, **arguments
    )


def images(*size, batch=2):
    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3)).astype("uint8")


@pytest.mark.parametrize("backbone, head", PAIRS)
def test_any_head_on_any_backbone_at_any_size(backbone, head):
    model = inference_model(build(backbone, head))
    function = tf.function(
        lambda image: model(image),
        input_signature=[tf.TensorSpec((None, None, None, 3), "uint8")],
        autograph=False,
    )
    for size in ((64, 96), (75, 41)):
        logits = function(images(*size))
        assert logits.shape == (2, *size, 5)
        assert logits.dtype == "float32"
        np.testing.assert_allclose(logits, model(images(*size)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_stages(backbone, policy):
    keras.config.set_dtype_policy(policy)
    model = BACKBONES[backbone]()
    size = (75, 41)
    outputs = model(np.zeros((1, *size, 3), "float32"), training=True)
    assert list(outputs) == list(model.strides) == ["c2", "c3", "c4", "c5"]
    for stage, stride in model.strides.items():
        assert tuple(outputs[stage].shape[:3]) == (1, *(-(-side // stride) for side in size))
        assert outputs[stage].dtype == policy.removeprefix("mixed_")
        assert model.output[stage].shape[:3] == (None, None, None)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    paths = [weight.path for weight in model.weights]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "backbone, head",
    [
        ("resnet", "deeplabv3"),
        ("swin", "upernet"),
        ("keras_cv", "deeplabv3"),
        ("efficientnet_lite", "upernet"),
    ],
)
def test_gradient_reaches_every_weight(backbone, head, policy):
    keras.config.set_dtype_policy(policy)
    projections = ("c2", "c5") if head == "deeplabv3" else ("fpn_c2", "fpn_c5")
    segmenter = build(backbone, head, projections=projections)
    image = tf.constant(images(64, 96))

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            outputs = dict(segmenter(image, training=True))
            del outputs["features"]
            loss = tf.add_n(
                [
                    tf.reduce_sum(x * tf.random.stateless_normal(tf.shape(x), [0, 1]))
                    for x in outputs.values()
                ]
            )
        return tape.gradient(loss, [weight.value for weight in segmenter.trainable_weights])

    for weight, gradient in zip(segmenter.trainable_weights, gradients(), strict=True):
        assert np.isfinite(gradient).all(), weight.path
        assert np.any(gradient), weight.path


@pytest.mark.parametrize(
    "backbone, head",
    [("resnet", "deeplabv3"), ("swin", "upernet"), ("efficientnet_lite", "upernet")],
)
def test_saves_and_loads(backbone, head, tmp_path):
    segmenter = build(backbone, head)
    segmenter(images(64, 64), training=True)  # Moves the statistics away from their start.
    segmenter.save(tmp_path / "segmenter.keras")
    segmenter.save_weights(tmp_path / "segmenter.weights.h5")
    rebuilt = build(backbone, head)
    rebuilt.load_weights(tmp_path / "segmenter.weights.h5")
    expected = segmenter(images(50, 70))
    for model in (keras.models.load_model(tmp_path / "segmenter.keras"), rebuilt):
        for name, output in model(images(50, 70)).items():
            np.testing.assert_allclose(output, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "head, backbone, arguments, published",
    [  # "#Params (M)" of Table 3a of Pissas et al. (2022): ADE20K, auxiliary head included.
        ("ocr", "hrnet_w48", {}, 71),
        ("upernet", "swin_t", {}, 60),
        ("upernet", "resnet101", {"variant": "v1c"}, 86),
        ("deeplabv3", "resnet101", {"variant": "v1c", "output_stride": 8}, 63),
    ],
)
def test_parameters_are_the_published_ones(head, backbone, arguments, published):
    segmenter = build_segmenter(backbone, head, 150, backbone_arguments=arguments)
    count = sum(np.prod(weight.shape) for weight in segmenter.trainable_weights) / 1e6
    assert abs(count - published) < 0.6
