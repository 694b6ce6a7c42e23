"""Array names of published UPerNet heads, mapped to kseg's weights."""

import re

from kseg.weights.parameters import weight_path

_HEADS = {"decode_head": "upernet_", "auxiliary_head": "upernet_aux_"}
_PARTS = {"conv": "convolution", "bn": "normalization", "batch_norm": "normalization"}
_MODULES = {
    r"psp_modules\.(\d)\.1": lambda index: f"psp{index}",
    r"bottleneck": lambda: "psp_fusion",
    r"lateral_convs\.(\d)": lambda index: f"c{int(index) + 2}_lateral",
    r"fpn_convs\.(\d)": lambda index: f"c{int(index) + 2}_fpn",
    r"fpn_bottleneck": lambda: "fusion",
    r"convs\.0": lambda: "fusion",  # In the auxiliary head.
}
_NAME = re.compile(r"(?P<head>decode_head|auxiliary_head)\.(?P<module>.+)\.(?P<parameter>\w+)")


def name_map(name):
    """Finds the weight that corresponds to a parameter of a published UPerNet head.

    Covers mmsegmentation and Hugging Face's `UperNetForSemanticSegmentation`, with an auxiliary
    head of one convolution.

    Args:
        name: str, such as `"decode_head.fpn_convs.0.bn.running_mean"`.

    Returns:
        str, such as `"upernet_c2_fpn/normalization/moving_mean"`, or None.
    """
    if not (match := _NAME.fullmatch(name)):
        return None
    prefix, parameter = _HEADS[match["head"]], match["parameter"]
    if match["module"] in ("conv_seg", "classifier"):
        return weight_path(f"{prefix}logits", None, parameter)
    module, _, part = match["module"].rpartition(".")
    for pattern, layer in _MODULES.items():
        if part in _PARTS and (match_module := re.fullmatch(pattern, module)):
            return weight_path(prefix + layer(*match_module.groups()), _PARTS[part], parameter)
    return None
