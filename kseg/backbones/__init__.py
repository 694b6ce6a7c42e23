"""Backbones, which map an image to feature maps at several strides, and their registry."""

import inspect

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
from kseg.dotted import is_dotted, load_object

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
        name: str, a key of `BACKBONES`, or `"package.module:function"` for a builder outside kseg.
        **arguments: arguments of that builder.

    Returns:
        `Backbone` from normalized images to a dict of feature maps.

    Raises:
        ValueError: if `name` is unknown, or a builder outside kseg does not return a `Backbone`, or
            one whose strides are not those that it declares.
        TypeError: if the builder does not take one of the arguments.
    """
    if is_dotted(name):
        builder = load_object(name)
        if "input_channels" in arguments and not _takes_channels(builder):
            raise ValueError(
                f"The backbone {name!r} must take `input_channels`, for images of "
                f"{arguments['input_channels']} channels. Add that argument to its builder"
            )
        return _check(name, builder(**arguments))
    if name not in BACKBONES:
        raise ValueError(
            f"Unknown backbone. Received: {name=}. Choose from {sorted(BACKBONES)}, or use "
            '"package.module:function"'
        )
    return BACKBONES[name](**arguments)


def _takes_channels(builder):
    """Returns True if a function takes `input_channels`, by name or among any others."""
    try:
        parameters = inspect.signature(builder).parameters.values()
    except (TypeError, ValueError):  # A callable without a signature.
        return True
    return any(p.name == "input_channels" or p.kind == p.VAR_KEYWORD for p in parameters)


def _check(name, backbone):
    """Checks that an external builder returned a `Backbone` with the strides that it declares."""
    if not isinstance(backbone, Backbone) or not {"c2", "c3", "c4", "c5"} <= set(backbone.strides):
        raise ValueError(
            f"The backbone {name!r} must be a `kseg.backbones.Backbone` with strides of c2 to c5. "
            f"Received: {type(backbone).__name__} with strides {getattr(backbone, 'strides', None)}"
        )
    size = 4 * max(backbone.strides.values())
    shapes = backbone.compute_output_shape((1, size, size, backbone.input_shape[-1]))
    for stage, stride in backbone.strides.items():
        if tuple(shapes[stage][1:3]) != (-(-size // stride),) * 2:
            raise ValueError(
                f"The backbone {name!r} must have the strides that it declares. For an image of "
                f"{size} x {size} {stage!r} has {shapes[stage][1:3]}, but declares stride {stride}"
            )
    return backbone


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
