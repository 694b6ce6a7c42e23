import keras
import pytest

from kseg.weights.resnet import arguments_for, name_map
from tests.tiny_networks import tiny_resnet


@pytest.mark.parametrize(
    "name, path",
    [
        ("conv1.weight", "conv1/convolution/kernel"),
        ("bn1.bias", ("conv1/normalization/beta", "conv1_6/normalization/beta")),
        ("layer1.0.conv3.weight", "layer1_0_conv3/convolution/kernel"),
        ("layer3.22.bn2.running_var", "layer3_22_conv2/normalization/moving_variance"),
        ("conv1.0.weight", "conv1_0/convolution/kernel"),
        ("conv1.1.weight", "conv1_0/normalization/gamma"),
        ("conv1.3.weight", "conv1_3/convolution/kernel"),
        ("conv1.4.running_mean", "conv1_3/normalization/moving_mean"),
        ("conv1.6.weight", "conv1_6/convolution/kernel"),
        ("conv1.7.weight", None),
        ("stem.0.weight", "conv1_0/convolution/kernel"),
        ("stem.4.bias", "conv1_3/normalization/beta"),
        ("stem.6.weight", "conv1_6/convolution/kernel"),
        ("stem.7.weight", "conv1_6/normalization/gamma"),
        ("layer2.0.downsample.0.weight", "layer2_0_downsample/convolution/kernel"),
        (
            "layer2.0.downsample.1.weight",
            ("layer2_0_downsample/normalization/gamma", "layer2_0_downsample/convolution/kernel"),
        ),
        ("layer2.0.downsample.1.running_mean", "layer2_0_downsample/normalization/moving_mean"),
        ("layer2.0.downsample.2.bias", "layer2_0_downsample/normalization/beta"),
        ("fc.weight", None),
        ("layer2.0.conv4.weight", None),
        ("layer2.0.conv1.scale", None),
    ],
)
def test_name_map(name, path):
    assert name_map(name) == path


@pytest.mark.parametrize(
    "average, expected",
    [
        (False, ["convolution/kernel", "normalization/gamma", None]),
        (True, [None, "convolution/kernel", "normalization/gamma"]),
    ],
)
def test_shortcuts_of_v1d_are_told_from_those_of_v1c(average, expected):
    paths = [name_map(f"layer2.0.downsample.{i}.weight", average) for i in range(3)]
    assert paths == [path and f"layer2_0_downsample/{path}" for path in expected]


@pytest.mark.parametrize("variant", ["v1b", "v1c", "v1d"])
def test_arguments_are_derived_from_the_model(variant):
    backbone = tiny_resnet(variant=variant)
    image = keras.Input((None, None, 3))
    outer = keras.Model(image, backbone(image)["c5"])
    assert arguments_for(outer) == arguments_for(backbone) == {"average_shortcut": variant == "v1d"}
