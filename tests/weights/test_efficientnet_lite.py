import functools
import json
import pathlib

import numpy as np
import pytest

from kseg.backbones import build_backbone
from kseg.weights import load_torch_state
from kseg.weights.efficientnet_lite import CLASSIFIER, arguments_for, name_map
from tests.weights.random_state import random_state

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "efficientnet_lite0.npz"
LITE0 = {
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
}


@pytest.mark.parametrize(
    "name, path, keras_cv",
    [
        ("_conv_stem.weight", "conv_stem/convolution/kernel", "stem_conv/kernel"),
        ("_bn0.running_var", "conv_stem/normalization/moving_variance", "stem_bn/moving_variance"),
        (
            "_blocks.0._depthwise_conv.weight",
            "blocks_0_0_conv_dw/convolution/kernel",
            "block1a_dwconv/kernel",
        ),
        ("_blocks.0._bn1.bias", "blocks_0_0_conv_dw/normalization/beta", "block1a_bn/beta"),
        (
            "_blocks.0._project_conv.weight",
            "blocks_0_0_conv_pw/convolution/kernel",
            "block1a_project_conv/kernel",
        ),
        (
            "_blocks.2._expand_conv.weight",
            "blocks_1_1_conv_pw/convolution/kernel",
            "block2b_expand_conv/kernel",
        ),
        (
            "_blocks.2._bn0.weight",
            "blocks_1_1_conv_pw/normalization/gamma",
            "block2b_expand_bn/gamma",
        ),
        (
            "_blocks.15._project_conv.weight",
            "blocks_6_0_conv_pwl/convolution/kernel",
            "block7a_project_conv/kernel",
        ),
        (
            "_blocks.15._bn2.running_mean",
            "blocks_6_0_conv_pwl/normalization/moving_mean",
            "block7a_project_bn/moving_mean",
        ),
        ("_bn1.weight", "conv_head/normalization/gamma", "top_bn/gamma"),
        ("_blocks.16._bn2.weight", None, None),  # Lite0 has 16 blocks.
        ("_blocks.0._se_reduce.weight", None, None),
        ("_bn1.num_batches_tracked", None, None),
        ("_fc.weight", None, None),
        # timm:
        ("conv_stem.weight", "conv_stem/convolution/kernel", "stem_conv/kernel"),
        ("bn1.weight", "conv_stem/normalization/gamma", "stem_bn/gamma"),
        (
            "blocks.0.0.conv_pw.weight",
            "blocks_0_0_conv_pw/convolution/kernel",
            "block1a_project_conv/kernel",
        ),
        (
            "blocks.0.0.bn2.weight",
            "blocks_0_0_conv_pw/normalization/gamma",
            "block1a_project_bn/gamma",
        ),
        (
            "blocks.1.1.conv_pw.weight",
            "blocks_1_1_conv_pw/convolution/kernel",
            "block2b_expand_conv/kernel",
        ),
        (
            "blocks.6.0.bn3.bias",
            "blocks_6_0_conv_pwl/normalization/beta",
            "block7a_project_bn/beta",
        ),
        ("bn2.running_mean", "conv_head/normalization/moving_mean", "top_bn/moving_mean"),
        ("classifier.weight", None, None),
    ],
)
def test_name_map(name, path, keras_cv):
    assert name_map(name) == path
    assert name_map(name, keras_cv=True) == keras_cv


def test_numbers_of_blocks_are_those_of_the_model():
    # Lite1: 1.1 times the depth, rounded up, except in the first and the last stage.
    repeats = (1, 3, 3, 4, 4, 5, 1)
    lite1 = build_backbone("efficientnet_lite1")
    assert arguments_for(lite1) == {"repeats": repeats, "keras_cv": False}
    path = "blocks_1_2_conv_dw/normalization/gamma"
    assert name_map("_blocks.3._bn1.weight", repeats=repeats) == path
    path = "blocks_2_0_conv_dw/normalization/gamma"
    assert name_map("_blocks.4._bn1.weight", repeats=repeats) == path


def build(native):
    if native:
        return build_backbone("efficientnet_lite0")
    pytest.importorskip("keras_cv")
    return build_backbone("keras_cv", class_name="EfficientNetLiteBackbone", arguments=LITE0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("native", [True, False])
def test_features_equal_those_of_pytorch(native):
    backbone = build(native)
    bound = arguments_for(backbone)
    assert bound == {"repeats": (1, 2, 2, 3, 3, 4, 1), "keras_cv": not native}
    with np.load(FIXTURE) as fixture:
        expected = dict(fixture)
    state = random_state(json.loads(str(expected.pop("shapes"))))
    names = functools.partial(name_map, **bound)
    report = load_torch_state(backbone, state, names, ignore=CLASSIFIER)
    assert not report.missing
    assert set(report.unused) == {"_fc.weight", "_fc.bias"}

    image = np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype("float32")
    outputs = backbone(image.transpose(0, 2, 3, 1), training=False)
    assert set(outputs) == set(expected)
    for stage, output in outputs.items():
        every = max(output.shape[-1] // 40, 1)
        # The reference is float64: the tolerance covers float32 rounding in 50 layers.
        np.testing.assert_allclose(
            output[:, ::4, ::4, ::every].numpy().transpose(0, 3, 1, 2),
            expected[stage],
            rtol=0,
            atol=2e-5 * np.abs(expected[stage]).max(),
            err_msg=stage,
        )
