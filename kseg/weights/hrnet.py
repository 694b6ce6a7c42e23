"""Array names of published HRNets and of their heads, mapped to kseg's weights."""

import re

import numpy as np

from kseg.weights.parameters import weight_path

# Modules of an ImageNet checkpoint that are not part of the backbone, for `ignore` of
# `load_torch_state`.
CLASSIFIER = (r"incre_modules\.", r"downsamp_modules\.", r"final_layer\.", r"classifier\.")

# Module of the official segmentation code -> (layer, part). A part of None denotes a bare
# convolution.
_OCR_BLOCK = "ocr_distri_head.object_context_block"
HEADS = {
    "last_layer.0": ("head_fusion", "convolution"),
    "last_layer.1": ("head_fusion", "normalization"),
    "last_layer.3": ("head_logits", None),
    "aux_head.0": ("ocr_aux_fusion", "convolution"),
    "aux_head.1": ("ocr_aux_fusion", "normalization"),
    "aux_head.3": ("ocr_aux_logits", None),
    "conv3x3_ocr.0": ("ocr_pixels", "convolution"),
    "conv3x3_ocr.1": ("ocr_pixels", "normalization"),
    f"{_OCR_BLOCK}.f_pixel.0": ("ocr_query1", "convolution"),
    f"{_OCR_BLOCK}.f_pixel.1.0": ("ocr_query1", "normalization"),
    f"{_OCR_BLOCK}.f_pixel.2": ("ocr_query2", "convolution"),
    f"{_OCR_BLOCK}.f_pixel.3.0": ("ocr_query2", "normalization"),
    f"{_OCR_BLOCK}.f_object.0": ("ocr_key1", "convolution"),
    f"{_OCR_BLOCK}.f_object.1.0": ("ocr_key1", "normalization"),
    f"{_OCR_BLOCK}.f_object.2": ("ocr_key2", "convolution"),
    f"{_OCR_BLOCK}.f_object.3.0": ("ocr_key2", "normalization"),
    f"{_OCR_BLOCK}.f_down.0": ("ocr_value", "convolution"),
    f"{_OCR_BLOCK}.f_down.1.0": ("ocr_value", "normalization"),
    f"{_OCR_BLOCK}.f_up.0": ("ocr_context", "convolution"),
    f"{_OCR_BLOCK}.f_up.1.0": ("ocr_context", "normalization"),
    "ocr_distri_head.conv_bn_dropout.0": ("ocr_fusion", "convolution"),
    "ocr_distri_head.conv_bn_dropout.1.0": ("ocr_fusion", "normalization"),
    "cls_head": ("ocr_logits", None),
}

# The same of mmsegmentation, whose coarse and fine head are the items of a list.
_MMSEG_BLOCK = "decode_head.1.object_context_block"
_MMSEGMENTATION = {
    "decode_head.0.convs.0": "ocr_aux_fusion",
    "decode_head.1.bottleneck": "ocr_pixels",
    f"{_MMSEG_BLOCK}.query_project.0": "ocr_query1",
    f"{_MMSEG_BLOCK}.query_project.1": "ocr_query2",
    f"{_MMSEG_BLOCK}.key_project.0": "ocr_key1",
    f"{_MMSEG_BLOCK}.key_project.1": "ocr_key2",
    f"{_MMSEG_BLOCK}.value_project": "ocr_value",
    f"{_MMSEG_BLOCK}.out_project": "ocr_context",
    f"{_MMSEG_BLOCK}.bottleneck": "ocr_fusion",
}
_CONV_MODULE = {"conv": "convolution", "bn": "normalization"}
MMSEGMENTATION = {
    **{
        f"{module}.{theirs}": (layer, ours)
        for module, layer in _MMSEGMENTATION.items()
        for theirs, ours in _CONV_MODULE.items()
    },
    "decode_head.0.conv_seg": ("ocr_aux_logits", None),
    "decode_head.1.conv_seg": ("ocr_logits", None),
}
# Convolutions that have a bias in the official code, and none in mmsegmentation.
_WITHOUT_BIAS = ("decode_head.0.convs.0.conv", "decode_head.1.bottleneck.conv")

_BACKBONE = re.compile(r"(conv\d|bn\d|layer1\.|transition\d\.|stage\d\.)")
_NAMED = re.compile(r"(?P<parent>.*?)(?P<kind>conv|bn)(?P<index>\d)")
_SEQUENTIAL = re.compile(r"(?P<parent>.*)\.(?P<index>[01])")


def name_map(name):
    """Finds the weight that corresponds to a parameter of a published HRNet.

    Covers the backbone of timm and of the official code, whose names agree, and the heads of
    `seg_hrnet.py` and `seg_hrnet_ocr.py` in github.com/HRNet/HRNet-Semantic-Segmentation. Prefixes
    of their checkpoints (`model.`, `module.`) must be stripped beforehand.

    Args:
        name: str, such as `"stage2.0.branches.0.1.bn2.running_mean"`.

    Returns:
        str, such as `"stage2_0_branches_0_1_conv2/normalization/moving_mean"`, or None.
    """
    return head_name_map(name) or backbone_name_map(name)


def head_name_map(name):
    """Finds the weight as `name_map` does, for the heads only."""
    module, _, parameter = name.rpartition(".")
    return weight_path(*HEADS[module], parameter) if module in HEADS else None


def mmsegmentation_head_name_map(name):
    """Finds the weight as `name_map` does, for the OCR head of mmsegmentation.

    Args:
        name: str, such as `"decode_head.1.object_context_block.key_project.0.bn.weight"`.

    Returns:
        str, such as `"ocr_key1/normalization/gamma"`, or None.
    """
    module, _, parameter = name.rpartition(".")
    return weight_path(*MMSEGMENTATION[module], parameter) if module in MMSEGMENTATION else None


def add_biases(arrays):
    """Adds biases of zero where mmsegmentation's OCR head has none and the official one has.

    Args:
        arrays: dict from the names of parameters, with or without prefixes, to arrays.

    Returns:
        dict of the same kind.
    """
    added = dict(arrays)
    for name, array in arrays.items():
        module = name.removesuffix(".weight")
        if module != name and module.endswith(_WITHOUT_BIAS):
            added.setdefault(f"{module}.bias", np.zeros(np.shape(array)[:1], "float32"))
    return added


def backbone_name_map(name):
    """Finds the weight as `name_map` does, for the backbone only."""
    module, _, parameter = name.rpartition(".")
    if not _BACKBONE.match(module):
        return None
    if match := _NAMED.fullmatch(module):  # conv1 and bn1 side by side.
        layer = f"{match['parent']}conv{match['index']}"
        part = "convolution" if match["kind"] == "conv" else "normalization"
    elif match := _SEQUENTIAL.fullmatch(module):  # 0 and 1 in a torch.nn.Sequential.
        layer = match["parent"]
        part = ("convolution", "normalization")[int(match["index"])]
    else:
        return None
    return weight_path(layer.replace(".", "_"), part, parameter)
