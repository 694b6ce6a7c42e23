import keras
import numpy as np
import pytest

from kseg.backbones import build_backbone, build_hrnet
from kseg.heads import build_head
from kseg.weights import load_torch_state
from kseg.weights.hrnet import name_map
from tests.golden_file import Golden


def golden_hrnet(meta, **arguments):
    """Builds the backbone that the golden file's configuration describes."""
    config = meta["cfg"]
    if "MODEL" in config:
        config = {
            stage.lower(): {key.lower(): value for key, value in settings.items()}
            for stage, settings in config["MODEL"]["EXTRA"].items()
            if stage.startswith("STAGE")
        }
    stages = [config[f"stage{index}"] for index in (1, 2, 3, 4)]
    return build_hrnet(
        channels=stages[3]["num_channels"],
        modules=[stage["num_modules"] for stage in stages[1:]],
        blocks=[stage["num_blocks"][0] for stage in stages[1:]],
        stage1_channels=stages[0]["num_channels"][0],
        stage1_blocks=stages[0]["num_blocks"][0],
        **arguments,
    )


STRIDES = {"c2": "stride4", "c3": "stride8", "c4": "stride16", "c5": "stride32"}


def test_timm():
    golden = Golden("hrnet_timm")
    backbone = golden_hrnet(golden.meta, interpolation="nearest")
    report = load_torch_state(backbone, golden.state, name_map)
    assert not report.missing
    assert all(name.endswith("num_batches_tracked") for name in report.unused)
    for case in golden.cases:
        golden.compare(case, backbone, STRIDES)


def test_official_segmentation():
    golden = Golden("hrnet_official_seg")
    backbone = golden_hrnet(golden.meta)
    outputs = build_head("hrnet", backbone.output, 5)
    model = keras.Model(backbone.input, {**backbone.output, **outputs})
    load_torch_state(model, golden.state, name_map)
    for case in golden.cases:
        golden.compare(case, model, {**STRIDES, "logits": "logits"})


@pytest.mark.parametrize("case, align_corners", [("", True), ("case1/", True), ("case2/", False)])
def test_official_ocr(case, align_corners):
    golden = Golden("hrnet_official_ocr")
    assert golden.meta["align_corners_per_case"] == [True, True, False]
    backbone = golden_hrnet(golden.meta, align_corners=align_corners)
    outputs = build_head(
        "ocr", backbone.output, 5, channels=16, key_channels=8, align_corners=align_corners
    )
    model = keras.Model(backbone.input, {**backbone.output, **outputs})
    inner = {name: model.get_layer(f"ocr_{name}").output for name in ("pixels", "objects")}
    # (batch, objects, 1, channels) in kseg, (batch, channels, objects, 1) in the original.
    model = keras.Model(model.input, {**model.output, **inner})
    load_torch_state(model, golden.state, name_map)
    names = {
        **STRIDES,
        "aux_logits": "aux_logits",
        "logits": "logits",
        "pixels": "pixel_feats",
        "objects": "object_context",
        "features": "ocr_feats",
    }
    golden.compare(case, model, names)


@pytest.mark.parametrize("size", [(64, 96), (75, 61), (33, 130)])
def test_any_size(size):
    backbone = build_backbone("hrnet_w18_small")
    outputs = backbone(np.zeros((1, *size, 3), "float32"))
    channels = {"c2": 16, "c3": 32, "c4": 64, "c5": 128}
    assert list(outputs) == list(backbone.strides) == list(channels)
    for name, stride in backbone.strides.items():
        expected = (1, *(-(-extent // stride) for extent in size), channels[name])
        assert tuple(outputs[name].shape) == expected
        assert backbone.output[name].shape == (None, None, None, channels[name])
