"""Backbones as small as they get, for tests of what is built on them."""

import functools

import keras

from kseg.backbones import build_hrnet, build_resnet
from kseg.backbones.backbone import Backbone
from kseg.layers import ConvNorm

STAGES = {"c2": (4, 4), "c3": (8, 6), "c4": (16, 8), "c5": (32, 10)}  # Stride, channels.


def tiny_backbone(*, synchronized_batch_norm=False, input_channels=3, **of_hrnet):
    """Builds five convolutions with the outputs of an HRNet, which it replaces in configs."""
    assert of_hrnet.keys() <= {"interpolation", "align_corners"}
    conv_norm = functools.partial(ConvNorm, synchronized=synchronized_batch_norm)
    image = keras.Input((None, None, input_channels))
    x = conv_norm(4, 3, strides=2, name="stem")(image)
    outputs = {}
    for stage, (_, channels) in STAGES.items():
        x = outputs[stage] = conv_norm(channels, 3, strides=2, name=f"stage_{stage}")(x)
    strides = {stage: stride for stage, (stride, _) in STAGES.items()}
    return Backbone(image, outputs, strides=strides, name="tiny")


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
