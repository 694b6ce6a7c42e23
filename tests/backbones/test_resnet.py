import keras
import numpy as np
import pytest

from kseg.backbones import build_backbone, build_resnet
from kseg.weights import load_torch_state
from kseg.weights.resnet import name_map
from tests.golden_file import Golden

STAGES = {"c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}


@pytest.mark.parametrize("variant, name", [("v1b", "os8"), ("v1c", "v1c_os8"), ("v1d", "v1d_os8")])
def test_timm(variant, name):
    golden = Golden(f"resnet_{name}")
    settings = golden.meta["kw"]
    backbone = build_resnet(
        blocks=settings["layers"],
        channels=settings["channels"],
        variant=variant,
        stem_channels=2 * settings["stem_width"] if "stem_width" in settings else 64,
        output_stride=settings["output_stride"],
    )
    report = load_torch_state(backbone, golden.state, name_map)
    assert not report.missing
    assert all(name.endswith("num_batches_tracked") for name in report.unused)
    for case in golden.cases:
        golden.compare(case, backbone, STAGES)


def tiny_resnet(**arguments):
    return build_resnet(
        **{"blocks": (1, 1, 2, 2), "channels": (4, 6, 8, 12), "stem_channels": 8, **arguments}
    )


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("variant", ["v1b", "v1c", "v1d"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_any_size(block, variant, output_stride):
    backbone = tiny_resnet(block=block, variant=variant, output_stride=output_stride)
    assert backbone.strides == {
        stage: min(stride, output_stride)
        for stage, stride in {"c2": 4, "c3": 8, "c4": 16, "c5": 32}.items()
    }
    size = (75, 131)
    outputs = backbone(np.zeros((1, *size, 3), "float32"))
    widths = (4, 6, 8, 12) if block == "basic" else (16, 24, 32, 48)
    for (stage, stride), width in zip(backbone.strides.items(), widths, strict=True):
        assert tuple(outputs[stage].shape) == (1, *(-(-side // stride) for side in size), width)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_output_contains_the_strided_one(block, output_stride):
    # Atrous consistency: the weights see the same pixels, at more positions.
    strided = tiny_resnet(block=block)
    dilated = tiny_resnet(block=block, output_stride=output_stride)
    dilated.set_weights(strided.get_weights())
    image = np.random.default_rng(0).normal(size=(1, 97, 65, 3)).astype("float32")
    expected, outputs = strided(image), dilated(image)
    for stage, stride in strided.strides.items():
        step = stride // dilated.strides[stage]
        np.testing.assert_allclose(
            outputs[stage][:, ::step, ::step], expected[stage], rtol=1e-4, atol=1e-5
        )


def rates(backbone, block="conv2"):
    return {
        layer.name: layer.convolution.dilation_rate[0]
        for layer in backbone.layers
        if layer.name.endswith(block)
    }


def test_dilation_rates():
    result = rates(build_backbone("resnet50", output_stride=8))
    assert [result[f"layer3_{i}_conv2"] for i in range(6)] == [1, 2, 2, 2, 2, 2]
    assert [result[f"layer4_{i}_conv2"] for i in range(3)] == [2, 4, 4]


def test_multi_grid_multiplies_the_rate_of_the_last_stage():
    result = rates(tiny_resnet(blocks=(1, 1, 2, 3), output_stride=8, multi_grid=(1, 2, 4)))
    assert [result[f"layer3_{i}_conv2"] for i in range(2)] == [1, 2]
    assert [result[f"layer4_{i}_conv2"] for i in range(3)] == [4, 8, 16]


def test_v1d_averages_strided_shortcuts():
    # By hand: a 1x1 convolution of stride 1 after a 2x2 mean over valid pixels only.
    backbone = tiny_resnet(variant="v1d", blocks=(1, 1, 1, 1))
    pool = backbone.get_layer("layer2_0_downsample_pool")
    x = np.arange(9.0).reshape((1, 3, 3, 1)).astype("float32")
    np.testing.assert_allclose(pool(x)[0, :, :, 0], [[2.0, 3.5], [6.5, 8.0]])
    assert backbone.get_layer("layer2_0_downsample").convolution.strides == (1, 1)


@pytest.mark.parametrize(
    "name, variant, parameters",
    [  # The feature extractors of torchvision (v1b) and timm, without classifiers.
        ("resnet18", "v1b", 11_176_512),
        ("resnet34", "v1b", 21_284_672),
        ("resnet50", "v1b", 23_508_032),
        ("resnet101", "v1b", 42_500_160),
        ("resnet50", "v1c", 23_527_264),
        ("resnet50", "v1d", 23_527_264),
    ],
)
def test_parameters(name, variant, parameters):
    backbone = build_backbone(name, variant=variant)
    assert sum(np.prod(weight.shape) for weight in backbone.trainable_weights) == parameters


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"block": "wide"}, "block='wide'"),
        ({"variant": "v1e"}, "variant='v1e'"),
        ({"output_stride": 4}, "output_stride=4"),
        ({"variant": "v1c", "stem_channels": 7}, "stem_channels=7"),
        ({"multi_grid": ()}, "multi_grid"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_resnet(**arguments)


def test_v1d_shortcut_keeps_its_size_where_it_is_dilated():
    backbone = tiny_resnet(variant="v1d", output_stride=8)
    pool = keras.Sequential(
        [backbone.get_layer(f"layer4_0_downsample_pool{end}") for end in ("_pad", "")]
    )
    y = pool(np.array([[1.0, 2.0], [3.0, 4.0]], "float32").reshape((1, 2, 2, 1)))
    # timm counts the zeros beyond the end.
    np.testing.assert_allclose(y[0, :, :, 0], [[2.5, 1.5], [1.75, 1.0]])
