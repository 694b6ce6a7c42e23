"""Array names of published HRNets and of their heads, mapped to kseg's weights."""

import re

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
