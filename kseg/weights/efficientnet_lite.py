import re

from kseg.weights.parameters import PARAMETERS

# What an ImageNet checkpoint has beyond the backbone.
CLASSIFIER = (r"_fc\.", r"classifier\.")

# Repeats of the stages of EfficientNet-Lite0: blocks are numbered through there, by stage here.
LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)
# Images are normalised so, in units of 0 to 255 (`MEAN_RGB` and `STDDEV_RGB` of the original).
MEAN = (127.0, 127.0, 127.0)
STD = (128.0, 128.0, 128.0)

_MODULES = {
    "_conv_stem": "stem_conv",
    "_bn0": "stem_bn",
    "_conv_head": "top_conv",
    "_bn1": "top_bn",
}
_PARTS = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "dwconv",
    "_bn1": "bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}
_BLOCK = re.compile(r"_blocks\.(?P<block>\d+)\.(?P<part>\w+)")

_TIMM_MODULES = {
    "conv_stem": "stem_conv",
    "bn1": "stem_bn",
    "conv_head": "top_conv",
    "bn2": "top_bn",
}
# The first stage, whose blocks do not expand, and all others.
_TIMM_FIRST_PARTS = {
    "conv_dw": "dwconv",
    "bn1": "bn",
    "conv_pw": "project_conv",
    "bn2": "project_bn",
}
_TIMM_PARTS = {
    "conv_pw": "expand_conv",
    "bn1": "expand_bn",
    "conv_dw": "dwconv",
    "bn2": "bn",
    "conv_pwl": "project_conv",
    "bn3": "project_bn",
}
_TIMM_BLOCK = re.compile(r"blocks\.(?P<stage>\d+)\.(?P<block>\d+)\.(?P<part>\w+)")
_LAYER = re.compile(r"block(\d+)([a-z])_dwconv/")


def name_map(name, repeats=LITE0_REPEATS):
    """Finds the weight of keras-cv's `EfficientNetLiteBackbone` that a parameter belongs to.

    Covers the names of the package efficientnet_lite_pytorch, and those of timm, of whose networks
    only `tf_efficientnet_lite*` pad their strided convolutions on the far side, as keras-cv does.

    Args:
        name: str, such as `"_blocks.3._depthwise_conv.weight"`.
        repeats: ints, the number of blocks in each stage of the model.

    Returns:
        str, such as `"block3a_dwconv/kernel"`, or None.
    """
    module, _, parameter = name.rpartition(".")
    layer = _MODULES.get(module) or _TIMM_MODULES.get(module)
    if match := _BLOCK.fullmatch(module):
        place = _place(int(match["block"]), repeats)
        part = _PARTS.get(match["part"])
        layer = f"block{place}_{part}" if place and part else None
    elif match := _TIMM_BLOCK.fullmatch(module):
        parts = _TIMM_PARTS if int(match["stage"]) else _TIMM_FIRST_PARTS
        part = parts.get(match["part"])
        letter = chr(ord("a") + int(match["block"]))
        layer = part and f"block{int(match['stage']) + 1}{letter}_{part}"
    if layer is None:
        return None
    kind = "normalization" if layer.endswith("bn") else "convolution"
    parameter = PARAMETERS[kind].get(parameter)
    return parameter and f"{layer}/{parameter}"


def _place(block, repeats):
    """Stage and letter of a block: `"3a"` is the first of the third stage."""
    for stage, repeat in enumerate(repeats, start=1):
        if block < repeat:
            return f"{stage}{chr(ord('a') + block)}"
        block -= repeat
    return None


def arguments_for(model):
    """Reads off a model what `name_map` has to know about it.

    Args:
        model: built `keras.Model`.

    Returns:
        dict of arguments of `name_map`.
    """
    stages = {}
    for weight in model.weights:
        if match := _LAYER.match(weight.path):
            stages[int(match[1])] = stages.get(int(match[1]), 0) + 1
    return {"repeats": tuple(stages[stage] for stage in sorted(stages))} if stages else {}
