"""Array names of published EfficientNet-Lites, mapped to the weights of kseg and keras-cv."""

import re

from kseg.weights.parameters import PARAMETERS

# Modules of an ImageNet checkpoint that are not part of the backbone.
CLASSIFIER = (r"_fc\.", r"classifier\.")

_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # Lite0's.
# Module -> (convolution, part): the convolution itself, or its batch norm.
_PACKAGE = {
    "_conv_stem": ("stem", "convolution"),
    "_bn0": ("stem", "normalization"),
    "_conv_head": ("top", "convolution"),
    "_bn1": ("top", "normalization"),
}
_PACKAGE_PARTS = {
    "_expand_conv": ("expand", "convolution"),
    "_bn0": ("expand", "normalization"),
    "_depthwise_conv": ("depthwise", "convolution"),
    "_bn1": ("depthwise", "normalization"),
    "_project_conv": ("project", "convolution"),
    "_bn2": ("project", "normalization"),
}
_PACKAGE_BLOCK = re.compile(r"_blocks\.(?P<block>\d+)\.(?P<part>\w+)")
_TIMM = {
    "conv_stem": ("stem", "convolution"),
    "bn1": ("stem", "normalization"),
    "conv_head": ("top", "convolution"),
    "bn2": ("top", "normalization"),
}
# Modules of blocks in the first stage, which do not expand, and in all others.
_TIMM_FIRST_PARTS = {
    "conv_dw": ("depthwise", "convolution"),
    "bn1": ("depthwise", "normalization"),
    "conv_pw": ("project", "convolution"),
    "bn2": ("project", "normalization"),
}
_TIMM_PARTS = {
    "conv_pw": ("expand", "convolution"),
    "bn1": ("expand", "normalization"),
    "conv_dw": ("depthwise", "convolution"),
    "bn2": ("depthwise", "normalization"),
    "conv_pwl": ("project", "convolution"),
    "bn3": ("project", "normalization"),
}
_TIMM_BLOCK = re.compile(r"blocks\.(?P<stage>\d+)\.(?P<block>\d+)\.(?P<part>\w+)")

# Layer names in kseg, and in keras-cv.
_OURS = {
    "stem": "conv_stem",
    "top": "conv_head",
    "expand": "conv_pw",
    "depthwise": "conv_dw",
    "project": "conv_pwl",
}
_KERAS_CV = {
    ("stem", "convolution"): "stem_conv",
    ("stem", "normalization"): "stem_bn",
    ("top", "convolution"): "top_conv",
    ("top", "normalization"): "top_bn",
    ("expand", "convolution"): "expand_conv",
    ("expand", "normalization"): "expand_bn",
    ("depthwise", "convolution"): "dwconv",
    ("depthwise", "normalization"): "bn",
    ("project", "convolution"): "project_conv",
    ("project", "normalization"): "project_bn",
}
_OUR_BLOCK = re.compile(r"blocks_(\d+)_\d+_conv_dw/convolution/")
_KERAS_CV_BLOCK = re.compile(r"block(\d+)[a-z]_dwconv/")


def name_map(name, *, repeats=_REPEATS, keras_cv=False):
    """Finds the weight that corresponds to a parameter of a published EfficientNet-Lite.

    Covers the names of the package efficientnet_lite_pytorch and of timm. Of timm's networks only
    `tf_efficientnet_lite*` pad strided convolutions as TensorFlow and kseg do.

    Args:
        name: str, such as `"_blocks.3._depthwise_conv.weight"`.
        repeats: ints, the number of blocks in each stage of the model.
        keras_cv: bool, whether the model is keras-cv's `EfficientNetLiteBackbone`, not that of
            `kseg.backbones.build_efficientnet_lite`.

    Returns:
        str, such as `"blocks_2_0_conv_dw/convolution/kernel"`, or `"block3a_dwconv/kernel"` for
        keras-cv; or None.
    """
    module, _, parameter = name.rpartition(".")
    position = None  # (stage, block)
    target = _PACKAGE.get(module) or _TIMM.get(module)
    if match := _PACKAGE_BLOCK.fullmatch(module):
        position = _position(int(match["block"]), repeats)
        target = position and _PACKAGE_PARTS.get(match["part"])
    elif match := _TIMM_BLOCK.fullmatch(module):
        position = int(match["stage"]), int(match["block"])
        target = (_TIMM_PARTS if position[0] else _TIMM_FIRST_PARTS).get(match["part"])
    if not target or (parameter := PARAMETERS[target[1]].get(parameter)) is None:
        return None
    if keras_cv:
        prefix = f"block{position[0] + 1}{chr(ord('a') + position[1])}_" if position else ""
        return f"{prefix}{_KERAS_CV[target]}/{parameter}"
    prefix, layer = "", _OURS[target[0]]
    if position:
        prefix = f"blocks_{position[0]}_{position[1]}_"
        layer = "conv_pw" if position[0] == 0 and target[0] == "project" else layer
    return f"{prefix}{layer}/{target[1]}/{parameter}"


def _position(block, repeats):
    """Finds the stage of a block and its index there; None for a block beyond the last."""
    for stage, repeat in enumerate(repeats):
        if block < repeat:
            return stage, block
        block -= repeat
    return None


def arguments_for(model):
    """Derives the arguments of `name_map` from a model.

    Args:
        model: built `keras.Model`.

    Returns:
        dict of arguments of `name_map`.
    """
    for keras_cv, pattern in ((False, _OUR_BLOCK), (True, _KERAS_CV_BLOCK)):
        stages = [
            int(match[1]) for weight in model.weights if (match := pattern.match(weight.path))
        ]
        if stages:
            repeats = tuple(stages.count(stage) for stage in sorted(set(stages)))
            return {"repeats": repeats, "keras_cv": keras_cv}
    return {}
