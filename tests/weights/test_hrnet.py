import re

import pytest

from kseg.weights.hrnet import CLASSIFIER, name_map


@pytest.mark.parametrize(
    "name, path",
    [
        ("conv1.weight", "conv1/convolution/kernel"),
        ("bn2.running_var", "conv2/normalization/moving_variance"),
        ("layer1.0.downsample.1.bias", "layer1_0_downsample/normalization/beta"),
        ("transition1.1.0.0.weight", "transition1_1_0/convolution/kernel"),
        (
            "stage3.1.fuse_layers.2.0.1.1.weight",
            "stage3_1_fuse_layers_2_0_1/normalization/gamma",
        ),
        ("last_layer.3.bias", "head_logits/bias"),
        ("cls_head.weight", "ocr_logits/kernel"),
        ("incre_modules.0.0.conv1.weight", None),
        ("classifier.weight", None),
        ("conv1.scale", None),
    ],
)
def test_name_map(name, path):
    assert name_map(name) == path


def test_classifier_of_an_imagenet_checkpoint_is_no_part_of_a_segmenter():
    for name in ("incre_modules.0.0.bn1.bias", "downsamp_modules.2.0.weight", "classifier.bias"):
        assert any(re.match(pattern, name) for pattern in CLASSIFIER)
        assert name_map(name) is None
