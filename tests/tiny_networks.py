"""Backbones as small as they get, for tests of what is built on them."""

from kseg.backbones import build_hrnet, build_resnet


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
