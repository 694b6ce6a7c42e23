import pytest

from kseg.weights.upernet import name_map


@pytest.mark.parametrize(
    "name, path",
    [
        # Hugging Face.
        ("decode_head.psp_modules.0.1.conv.weight", "psp0/convolution/kernel"),
        (
            "decode_head.psp_modules.3.1.batch_norm.running_var",
            "psp3/normalization/moving_variance",
        ),
        ("decode_head.bottleneck.batch_norm.weight", "psp_fusion/normalization/gamma"),
        ("decode_head.lateral_convs.2.conv.weight", "c4_lateral/convolution/kernel"),
        ("decode_head.fpn_convs.0.batch_norm.bias", "c2_fpn/normalization/beta"),
        ("decode_head.fpn_bottleneck.conv.weight", "fusion/convolution/kernel"),
        ("decode_head.classifier.bias", "logits/bias"),
        ("auxiliary_head.convs.0.conv.weight", "aux_fusion/convolution/kernel"),
        ("auxiliary_head.classifier.weight", "aux_logits/kernel"),
        # mmsegmentation.
        ("decode_head.psp_modules.1.1.bn.running_mean", "psp1/normalization/moving_mean"),
        ("decode_head.bottleneck.conv.weight", "psp_fusion/convolution/kernel"),
        ("decode_head.lateral_convs.0.bn.weight", "c2_lateral/normalization/gamma"),
        ("decode_head.fpn_convs.2.conv.weight", "c4_fpn/convolution/kernel"),
        ("decode_head.conv_seg.weight", "logits/kernel"),
        ("auxiliary_head.convs.0.bn.bias", "aux_fusion/normalization/beta"),
        ("auxiliary_head.conv_seg.bias", "aux_logits/bias"),
    ],
)
def test_name_map(name, path):
    assert name_map(name) == f"upernet_{path}"


@pytest.mark.parametrize(
    "name",
    [
        "backbone.norm0.weight",
        "decode_head.bottleneck.weight",
        "decode_head.aspp_modules.0.conv.weight",
        "auxiliary_head.convs.1.conv.weight",
        "decode_head.classifier.scale",
    ],
)
def test_what_has_no_weight(name):
    assert name_map(name) is None
