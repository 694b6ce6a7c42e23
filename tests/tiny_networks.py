"""Backbones as small as they get, for tests of what is built on them."""

import keras

from kseg.backbones import build_hrnet, build_resnet
from kseg.backbones.backbone import Backbone
from kseg.layers import ConvNorm


def tiny_backbone(
    width=2, *, synchronized_batch_norm=False, input_channels=3, name="tiny", **of_hrnet
):
    """Builds five convolutions with the outputs of an HRNet, in whose place a config takes it."""
    assert of_hrnet.keys() <= {"interpolation", "align_corners"}
    image = keras.Input((None, None, input_channels), name="image")
    x, outputs = image, {}
    for stage in ("stem", "c2", "c3", "c4", "c5"):
        layer = ConvNorm(
            width, 3, strides=2, synchronized=synchronized_batch_norm, name=f"conv_{stage}"
        )
        x = outputs[stage] = layer(x)
        width = width if stage == "stem" else 2 * width
    del outputs["stem"]
    strides = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
    return Backbone(image, outputs, strides=strides, name=name)


def tiny_hrnet(width=2, **arguments):
    """Builds an HRNet of one block a stage, with `width` channels in its finest branch."""
    return build_hrnet(
        **{
            "channels": (width, 2 * width, 4 * width, 8 * width),
            "modules": (1, 1, 1),
            "blocks": (1, 1, 1),
            "stage1_channels": width,
            "stage1_blocks": 1,
            "stem_channels": 2 * width,
            **arguments,
        }
    )


def tiny_resnet(**arguments):
    """Builds a ResNet of one block a stage."""
    return build_resnet(
        **{
            "blocks": (1, 1, 1, 1),
            "channels": (4, 6, 8, 12),
            "stem_channels": 4,
            **arguments,
        }
    )
