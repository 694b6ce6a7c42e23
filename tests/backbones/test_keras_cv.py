import keras
import keras_cv
import numpy as np
import pytest

from kseg import layers
from kseg.backbones import build_backbone
from kseg.backbones.keras_cv import CropToStride, PadToMultiple
from kseg.segmenters import build_segmenter

CLASSES = {
    "CSPDarkNetBackbone": {"stackwise_channels": [8, 16, 24, 32], "stackwise_depth": [1, 1, 1, 1]},
    "DenseNetBackbone": {"stackwise_num_repeats": [1, 1, 1, 1], "growth_rate": 8},
    "EfficientNetLiteBackbone": {
        "stackwise_kernel_sizes": [3, 3, 5, 3, 5],
        "stackwise_num_repeats": [1, 1, 1, 1, 1],
        "stackwise_input_filters": [32, 16, 24, 32, 40],
        "stackwise_output_filters": [16, 24, 32, 40, 48],
        "stackwise_expansion_ratios": [1, 2, 2, 2, 2],
        "stackwise_strides": [1, 2, 2, 2, 2],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    },
    "EfficientNetV2Backbone": {
        "stackwise_kernel_sizes": [3, 3, 3, 3, 3],
        "stackwise_num_repeats": [1, 1, 1, 1, 1],
        "stackwise_input_filters": [8, 8, 16, 24, 32],
        "stackwise_output_filters": [8, 16, 24, 32, 40],
        "stackwise_expansion_ratios": [1, 2, 2, 2, 2],
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.0, 0.0, 0.25, 0.25],
        "stackwise_strides": [1, 2, 2, 2, 2],
        "stackwise_conv_types": ["fused", "fused", "fused", "unfused", "unfused"],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    },
    "MobileNetV3Backbone": {
        "stackwise_expansion": [1, 2, 2, 2],
        "stackwise_filters": [16, 24, 40, 96],
        "stackwise_kernel_size": [3, 3, 5, 5],
        "stackwise_stride": [2, 2, 2, 2],
        "stackwise_se_ratio": [0.25, None, 0.25, 0.25],
        "stackwise_activation": ["relu", "relu", "hard_swish", "hard_swish"],
    },
    "ResNetV2Backbone": {
        "stackwise_filters": [8, 16, 24, 32],
        "stackwise_blocks": [2, 2, 2, 2],
        "stackwise_strides": [1, 2, 2, 2],
    },
    "MiTBackbone": {
        "depths": [1, 1, 1, 1],
        "embedding_dims": [8, 16, 40, 64],
        "input_shape": [64, 64, 3],
    },
}


@pytest.mark.parametrize("class_name", CLASSES)
def test_stages_of_any_size(class_name):
    backbone = build_backbone("keras_cv", class_name=class_name, arguments=CLASSES[class_name])
    size = (64, 64) if class_name == "MiTBackbone" else (75, 61)
    outputs = backbone(np.zeros((2, *size, 3), "float32"))
    assert backbone.strides == {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
    for stage, stride in backbone.strides.items():
        assert tuple(outputs[stage].shape[:3]) == (2, *(-(-side // stride) for side in size))
    paths = [weight.path for weight in backbone.weights]
    assert len(set(paths)) == len(paths)


def test_maps_are_those_of_keras_cv():
    arguments = CLASSES["EfficientNetLiteBackbone"]
    theirs = keras_cv.models.EfficientNetLiteBackbone(include_rescaling=False, **arguments)
    rng = np.random.default_rng(0)
    for weight in theirs.weights:
        low, high = (0.5, 1.5) if "variance" in weight.path else (-0.5, 0.5)
        weight.assign(rng.uniform(low, high, weight.shape))
    ours = build_backbone("keras_cv", class_name="EfficientNetLiteBackbone", arguments=arguments)
    ours.set_weights(theirs.get_weights())
    levels = theirs.pyramid_level_inputs
    expected = keras.Model(
        theirs.input,
        {f"c{i}": theirs.get_layer(levels[f"P{i}"]).output for i in (2, 3, 4, 5)},
    )
    image = rng.normal(size=(1, 64, 96, 3)).astype("float32")
    outputs = ours(image)
    for stage, value in expected(image).items():
        np.testing.assert_allclose(outputs[stage], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("synchronized", [False, True])
def test_batch_norms_are_ours(synchronized):
    backbone = build_backbone(
        "keras_cv",
        class_name="ResNetV2Backbone",
        arguments=CLASSES["ResNetV2Backbone"],
        synchronized_batch_norm=synchronized,
    )
    norms = [
        layer
        for layer in backbone._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) > 10
    assert all(isinstance(norm, layers.BatchNormalization) for norm in norms)
    assert {norm.synchronized for norm in norms} == {synchronized}
    assert {norm.epsilon for norm in norms} == {1.001e-5}  # Theirs, not our default.


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_output_contains_the_strided_one(output_stride):
    arguments = CLASSES["EfficientNetLiteBackbone"]
    strided, dilated = (
        build_backbone(
            "keras_cv",
            class_name="EfficientNetLiteBackbone",
            arguments=arguments,
            output_stride=stride,
        )
        for stride in (32, output_stride)
    )
    assert dilated.strides["c5"] == output_stride
    dilated.set_weights(strided.get_weights())
    assert [w.path for w in dilated.weights] == [w.path for w in strided.weights]
    image = np.random.default_rng(0).normal(size=(1, 128, 96, 3)).astype("float32")
    expected, outputs = strided(image), dilated(image)
    for stage, stride in strided.strides.items():
        step = stride // dilated.strides[stage]
        np.testing.assert_allclose(
            outputs[stage][:, ::step, ::step], expected[stage], rtol=1e-3, atol=1e-5
        )


def test_segmenter_normalizes_as_the_backbone_expects():
    backbone = build_backbone(
        "keras_cv",
        class_name="ResNetV2Backbone",
        arguments=CLASSES["ResNetV2Backbone"],
        mean=(127, 127, 127),
        std=(128, 128, 128),
    )
    segmenter = build_segmenter(backbone, "deeplabv3", 3, head_arguments={"rates": (1, 2, 3)})
    normalization = segmenter.get_layer("image_normalization")
    assert normalization.mean == (127, 127, 127)
    np.testing.assert_allclose(normalization(np.full((1, 1, 1, 3), 255.0)), 1.0)


def test_saves_and_loads(tmp_path):
    backbone = build_backbone(
        "keras_cv", class_name="DenseNetBackbone", arguments=CLASSES["DenseNetBackbone"]
    )
    backbone.save_weights(tmp_path / "b.weights.h5")
    again = build_backbone(
        "keras_cv", class_name="DenseNetBackbone", arguments=CLASSES["DenseNetBackbone"]
    )
    again.load_weights(tmp_path / "b.weights.h5")
    image = np.random.default_rng(0).normal(size=(1, 40, 33, 3)).astype("float32")
    expected = backbone(image)
    for stage, value in again(image).items():
        np.testing.assert_allclose(value, expected[stage], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "class_name=None, preset=None"),
        ({"class_name": "NoBackbone"}, "no backbone 'NoBackbone'.*ResNetV2Backbone"),
        ({"class_name": "ResNetV2Backbone"}, "ResNetV2Backbone cannot be built: .*stackwise"),
        (
            {
                "class_name": "DenseNetBackbone",
                "arguments": CLASSES["DenseNetBackbone"],
                "output_stride": 8,
            },
            "output_stride=8, and 'pool",
        ),
        ({"preset": "no_such_preset"}, "no preset 'no_such_preset'.*'resnet50_v2_imagenet'"),
        (
            {
                "class_name": "ResNetV2Backbone",
                "arguments": {
                    "stackwise_filters": [8, 8],
                    "stackwise_blocks": [2, 2],
                    "stackwise_strides": [1, 2],
                },
            },
            r"four pyramid levels. ResNetV2Backbone has \['P2', 'P3'\]",
        ),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("keras_cv", **arguments)


def test_preset(monkeypatch):
    cls = keras_cv.models.ResNetV2Backbone

    def from_preset(preset, load_weights=None, **arguments):
        if preset == "resnet18_v2":
            raise Exception("URL fetch failure")
        assert (preset, load_weights) == ("resnet50_v2_imagenet", True)
        return cls(**CLASSES["ResNetV2Backbone"], **arguments)

    monkeypatch.setattr(cls, "from_preset", from_preset)
    backbone = build_backbone("keras_cv", preset="resnet50_v2_imagenet")
    assert backbone.output["c5"].shape[-1] == 128
    with pytest.raises(ValueError, match="cannot load the preset 'resnet18_v2': URL fetch failure"):
        build_backbone("keras_cv", preset="resnet18_v2")


def test_padding_and_cropping():
    image = np.ones((1, 5, 8, 1), "float32")
    padded = PadToMultiple(4)(image)
    assert padded.shape == (1, 8, 8, 1)
    np.testing.assert_array_equal(padded[0, :, 0, 0], [1] * 5 + [0] * 3)
    assert CropToStride(2)(np.zeros((1, 4, 4, 3)), image).shape == (1, 3, 4, 3)
