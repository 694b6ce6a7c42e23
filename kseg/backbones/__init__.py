"""Backbones, which map an image to feature maps at several strides, and their registry."""

from kseg.backbones.backbone import Backbone
from kseg.backbones.efficientnet_lite import (
    build_efficientnet_lite,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
)
from kseg.backbones.hrnet import build_hrnet, hrnet_w18, hrnet_w18_small, hrnet_w32, hrnet_w48
from kseg.backbones.keras_cv import build_keras_cv
from kseg.backbones.resnet import build_resnet, resnet18, resnet34, resnet50, resnet101
from kseg.backbones.swin import (
    build_swin,
    swin_b,
    swin_b_384,
    swin_l,
    swin_l_384,
    swin_s,
    swin_t,
)

BACKBONES = {
    "efficientnet_lite0": efficientnet_lite0,
    "efficientnet_lite1": efficientnet_lite1,
    "efficientnet_lite2": efficientnet_lite2,
    "hrnet_w18": hrnet_w18,
    "hrnet_w18_small": hrnet_w18_small,
    "hrnet_w32": hrnet_w32,
    "hrnet_w48": hrnet_w48,
    "keras_cv": build_keras_cv,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "swin_t": swin_t,
    "swin_s": swin_s,
    "swin_b": swin_b,
    "swin_l": swin_l,
    "swin_b_384": swin_b_384,
    "swin_l_384": swin_l_384,
}


def build_backbone(name, **arguments):
    """Builds a backbone by name.

    Args:
        name: str, a key of `BACKBONES`.
        **arguments: arguments of that builder.

    Returns:
        `Backbone` from normalized images to a dict of feature maps.

    Raises:
        ValueError: if `name` is unknown.
        TypeError: if the builder does not take one of the arguments.
    """
    if name not in BACKBONES:
        raise ValueError(f"Unknown backbone. Received: {name=}. Choose from {sorted(BACKBONES)}.")
    return BACKBONES[name](**arguments)


__all__ = [
    "BACKBONES",
    "Backbone",
    "build_backbone",
    "build_efficientnet_lite",
    "build_hrnet",
    "build_keras_cv",
    "build_resnet",
    "build_swin",
]
