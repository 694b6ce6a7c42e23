import keras
import pytest

from kseg.heads import build_head
from kseg.weights.deeplabv3 import arguments_for, name_map


@pytest.mark.parametrize(
    "name, path",
    [
        # torchvision: 1x1, three rates, pooling; project; 3x3; classifier.
        ("classifier.0.convs.0.0.weight", "aspp_1x1/convolution/kernel"),
        ("classifier.0.convs.1.1.bias", "aspp_rate12/normalization/beta"),
        ("classifier.0.convs.3.0.weight", "aspp_rate36/convolution/kernel"),
        ("classifier.0.convs.4.1.weight", "aspp_pool/convolution/kernel"),
        ("classifier.0.convs.4.2.weight", "aspp_pool/normalization/gamma"),
        ("classifier.0.project.0.weight", "project/convolution/kernel"),
        ("classifier.1.weight", "fusion/convolution/kernel"),
        ("classifier.2.running_var", "fusion/normalization/moving_variance"),
        ("classifier.4.bias", "logits/bias"),
        ("aux_classifier.0.weight", "aux_fusion/convolution/kernel"),
        ("aux_classifier.1.weight", "aux_fusion/normalization/gamma"),
        ("aux_classifier.4.weight", "aux_logits/kernel"),
        # RegionContrast: pooling, 1x1, three rates.
        ("decoder.aspp.conv1.1.weight", "aspp_pool/convolution/kernel"),
        ("decoder.aspp.conv1.2.weight", "aspp_pool/normalization/gamma"),
        ("aspp.conv2.0.weight", "aspp_1x1/convolution/kernel"),
        ("aspp.conv3.0.weight", "aspp_rate12/convolution/kernel"),
        ("decoder.aspp.conv5.1.bias", "aspp_rate36/normalization/beta"),
        ("decoder.head.0.weight", "fusion/convolution/kernel"),
        ("decoder.final.weight", "logits/kernel"),
        ("auxor.aux.0.bias", "aux_fusion/convolution/bias"),
        ("auxor.aux.4.bias", "aux_logits/bias"),
        # mmsegmentation.
        ("decode_head.image_pool.1.conv.weight", "aspp_pool/convolution/kernel"),
        ("decode_head.aspp_modules.0.bn.weight", "aspp_1x1/normalization/gamma"),
        ("decode_head.aspp_modules.2.conv.weight", "aspp_rate24/convolution/kernel"),
        ("decode_head.bottleneck.bn.running_mean", "fusion/normalization/moving_mean"),
        ("decode_head.conv_seg.weight", "logits/kernel"),
        ("auxiliary_head.convs.0.conv.weight", "aux_fusion/convolution/kernel"),
        ("auxiliary_head.conv_seg.bias", "aux_logits/bias"),
    ],
)
def test_name_map(name, path):
    assert name_map(name) == f"deeplabv3_{path}"


@pytest.mark.parametrize("name", ["decoder.queue3", "classifier.weight", "classifier.4.scale"])
def test_what_has_no_weight(name):
    assert name_map(name) is None


def test_rates_are_derived_from_the_model():
    x = keras.Input((None, None, 4))
    outputs = build_head("deeplabv3", {"c4": x, "c5": x}, 3, channels=2, rates=(6, 12, 18))
    arguments = arguments_for(keras.Model(x, outputs))
    assert arguments == {"rates": (6, 12, 18)}
    path = name_map("aspp.conv4.0.weight", **arguments)
    assert path == "deeplabv3_aspp_rate12/convolution/kernel"
    assert name_map("aspp.conv5.0.weight", rates=(6, 12)) is None
