import pytest

from kseg.weights.conventions import CONVENTIONS, recognise, without_prefixes
from tests.golden_file import Golden


@pytest.mark.parametrize(
    "golden, prefix, names",
    [
        ("hrnet_timm", "", ["HRNet of"]),
        ("hrnet_official_seg", "module.model.", ["HRNet of", "head of HRNet's"]),
        ("hrnet_official_ocr", "model.", ["HRNet of", "head of HRNet's"]),
        ("resnet_os8", "backbone.", ["ResNet of"]),
        ("resnet_v1c_os8", "module.encoder.", ["ResNet of"]),
        ("resnet_v1d_os8", "", ["ResNet of"]),
        ("aspp_regioncontrast", "module.decoder.", ["DeepLabV3 of RegionContrast"]),
        ("aspp_torchvision", "classifier.0.", ["DeepLabV3 of torchvision"]),
        ("swin_hf", "swin.", ["Swin of"]),
        ("swin_official", "module.backbone.", ["Swin of"]),
        ("swin_timm", "", ["Swin of"]),
        ("upernet_swin_hf", "", ["Swin of", "UPerNet of"]),
    ],
)
def test_published_networks(golden, prefix, names):
    result = recognise(f"{prefix}{name}" for name in Golden(golden).state)
    assert len(result) == len(names)
    for convention, name in zip(result, names, strict=True):
        assert convention.name.startswith(name)


@pytest.mark.parametrize(
    "names, expected",
    [
        (["_conv_stem.weight", "_blocks.0._depthwise_conv.weight"], "EfficientNet-Lite"),
        (["conv_stem.weight", "blocks.0.0.conv_dw.weight"], "EfficientNet-Lite"),
        (["backbone.stages.0.blocks.0.attn.w_msa.qkv.weight"], "Swin of"),
        (
            ["decode_head.psp_modules.0.1.conv.weight", "decode_head.fpn_convs.0.conv.weight"],
            "UPer",
        ),
        (["module.decode_head.aspp_modules.0.conv.weight"], "DeepLabV3 of mmsegmentation"),
    ],
)
def test_networks_without_a_file_in_the_repository(names, expected):
    (convention,) = recognise(names)
    assert convention.name.startswith(expected)


def test_other_names_are_not_recognized():
    assert recognise(["visual.proj", "layer1.0.conv1.weight", "conv1.weight"]) == []


def test_names_are_readable():
    assert len({convention.name for convention in CONVENTIONS}) == len(CONVENTIONS)


def test_prefixes():
    assert without_prefixes("module.backbone.conv1.weight") == [
        "module.backbone.conv1.weight",
        "backbone.conv1.weight",
        "conv1.weight",
    ]
    assert without_prefixes("a.b.c", prefixes=("a.",)) == ["a.b.c", "b.c"]
    assert without_prefixes("c") == ["c"]
