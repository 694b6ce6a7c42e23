"""Array names of published ResNets, mapped to kseg's weights."""

import re

from kseg.weights.parameters import weight_path

# Modules of an ImageNet checkpoint that are not part of the backbone.
CLASSIFIER = (r"fc\.",)

# Modules in the deep stem: convolutions at 0, 3, 6; batch norms at 1, 4 and, in mmsegmentation, 7.
_DEEP_STEM = re.compile(r"(?P<kind>conv1|stem)\.(?P<index>[013467])")
_NAMED = re.compile(r"(?P<parent>layer\d\.\d+\.)(?P<kind>conv|bn)(?P<index>[123])")
# Modules of a shortcut, without and with pooling before its convolution.
_SHORTCUT = {
    False: {0: "convolution", 1: "normalization"},
    True: {1: "convolution", 2: "normalization"},
}
_DOWNSAMPLE = re.compile(r"(?P<parent>layer\d\.\d+\.downsample)\.(?P<index>[012])")


def name_map(name, average_shortcut=None):
    """Finds the weight that corresponds to a parameter of a published ResNet.

    Covers torchvision and timm, whose names agree, with a stem of one 7x7 convolution (v1b) or
    three 3x3 ones (v1c, v1d), and mmsegmentation, which calls the latter `stem`.

    Two names are ambiguous: `bn1` belongs to the only convolution of the stem or to its third;
    `downsample.1` is the batch norm, or the convolution after v1d's pooling. If the variant is not
    known, both paths are returned, and the model and the shape decide.

    Args:
        name: str, such as `"layer1.0.bn2.running_mean"`, without prefixes such as `backbone.`.
        average_shortcut: bool, whether the model is a v1d, whose weights have the same shapes as
            v1c's; None if unknown.

    Returns:
        str, such as `"layer1_0_conv2/normalization/moving_mean"`, a tuple of such paths, or None.
    """
    module, _, parameter = name.rpartition(".")
    if module == "conv1":
        return weight_path("conv1", "convolution", parameter)
    if module == "bn1":
        return _either(
            weight_path(layer, "normalization", parameter) for layer in ("conv1", "conv1_6")
        )
    if match := _DEEP_STEM.fullmatch(module):
        index = int(match["index"])
        part = "convolution" if index % 3 == 0 else "normalization"
        if match["kind"] == "conv1" and index == 7:
            return None
        return weight_path(f"conv1_{index - index % 3}", part, parameter)
    if match := _NAMED.fullmatch(module):
        part = "convolution" if match["kind"] == "conv" else "normalization"
        return weight_path(
            f"{match['parent']}conv{match['index']}".replace(".", "_"), part, parameter
        )
    if match := _DOWNSAMPLE.fullmatch(module):
        layer = match["parent"].replace(".", "_")
        index = int(match["index"])
        variants = _SHORTCUT.values() if average_shortcut is None else [_SHORTCUT[average_shortcut]]
        parts = [modules[index] for modules in variants if index in modules]
        return _either(weight_path(layer, part, parameter) for part in parts)
    return None


def arguments_for(model):
    """Derives the arguments of `name_map` from a model.

    Args:
        model: built `keras.Model`.

    Returns:
        dict of arguments of `name_map`.
    """
    layers = model._flatten_layers()
    return {"average_shortcut": any(layer.name.endswith("_downsample_pool") for layer in layers)}


def _either(paths):
    paths = tuple(filter(None, paths))
    return paths if len(paths) > 1 else (paths[0] if paths else None)
