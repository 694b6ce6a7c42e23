"""Array names of published DeepLabV3 heads, mapped to kseg's weights."""

import re

from kseg.weights.parameters import weight_path

# Module -> (layer, part), where `rate0` to `rate2` are the dilated convolutions in their order. A
# part of None denotes a bare convolution.
_CONVOLUTION, _NORMALIZATION = "convolution", "normalization"
TORCHVISION = {
    "classifier.0.convs.0.0": ("aspp_1x1", _CONVOLUTION),
    "classifier.0.convs.0.1": ("aspp_1x1", _NORMALIZATION),
    **{
        f"classifier.0.convs.{1 + i}.{j}": (f"rate{i}", part)
        for i in range(3)
        for j, part in enumerate((_CONVOLUTION, _NORMALIZATION))
    },
    "classifier.0.convs.4.1": ("aspp_pool", _CONVOLUTION),
    "classifier.0.convs.4.2": ("aspp_pool", _NORMALIZATION),
    "classifier.0.project.0": ("project", _CONVOLUTION),
    "classifier.0.project.1": ("project", _NORMALIZATION),
    "classifier.1": ("fusion", _CONVOLUTION),
    "classifier.2": ("fusion", _NORMALIZATION),
    "classifier.4": ("logits", None),
    "aux_classifier.0": ("aux_fusion", _CONVOLUTION),
    "aux_classifier.1": ("aux_fusion", _NORMALIZATION),
    "aux_classifier.4": ("aux_logits", None),
}
REGION_CONTRAST = {
    "aspp.conv1.1": ("aspp_pool", _CONVOLUTION),
    "aspp.conv1.2": ("aspp_pool", _NORMALIZATION),
    "aspp.conv2.0": ("aspp_1x1", _CONVOLUTION),
    "aspp.conv2.1": ("aspp_1x1", _NORMALIZATION),
    **{
        f"aspp.conv{3 + i}.{j}": (f"rate{i}", part)
        for i in range(3)
        for j, part in enumerate((_CONVOLUTION, _NORMALIZATION))
    },
    "head.0": ("fusion", _CONVOLUTION),
    "head.1": ("fusion", _NORMALIZATION),
    "final": ("logits", None),
    "aux.0": ("aux_fusion", _CONVOLUTION),
    "aux.1": ("aux_fusion", _NORMALIZATION),
    "aux.4": ("aux_logits", None),
}
MMSEGMENTATION = {
    "decode_head.image_pool.1.conv": ("aspp_pool", _CONVOLUTION),
    "decode_head.image_pool.1.bn": ("aspp_pool", _NORMALIZATION),
    "decode_head.aspp_modules.0.conv": ("aspp_1x1", _CONVOLUTION),
    "decode_head.aspp_modules.0.bn": ("aspp_1x1", _NORMALIZATION),
    **{
        f"decode_head.aspp_modules.{1 + i}.{module}": (f"rate{i}", part)
        for i in range(3)
        for module, part in (("conv", _CONVOLUTION), ("bn", _NORMALIZATION))
    },
    "decode_head.bottleneck.conv": ("fusion", _CONVOLUTION),
    "decode_head.bottleneck.bn": ("fusion", _NORMALIZATION),
    "decode_head.conv_seg": ("logits", None),
    "auxiliary_head.convs.0.conv": ("aux_fusion", _CONVOLUTION),
    "auxiliary_head.convs.0.bn": ("aux_fusion", _NORMALIZATION),
    "auxiliary_head.conv_seg": ("aux_logits", None),
}
# The memory that RegionContrast's decoder keeps for training.
MEMORY = (r"(decoder\.)?(queue|ptr)\d+$",)

_MODULES = TORCHVISION | REGION_CONTRAST | MMSEGMENTATION
_RATE = re.compile(r"deeplabv3_aspp_rate(\d+)/")


def name_map(name, rates=(12, 24, 36)):
    """Finds the weight that corresponds to a parameter of a published DeepLabV3 head.

    Covers the heads of torchvision (`classifier`, `aux_classifier`), of
    github.com/hzhupku/RegionContrast (`decoder`, `auxor`, both optional) and of mmsegmentation
    (`decode_head`, `auxiliary_head`).

    Args:
        name: str, such as `"classifier.0.convs.1.0.weight"`.
        rates: ascending ints, the model's dilation rates, which are part of its layer names.

    Returns:
        str, such as `"deeplabv3_aspp_rate12/convolution/kernel"`, or None.
    """
    module, _, parameter = re.sub(r"^(decoder|auxor)\.", "", name).rpartition(".")
    if module not in _MODULES:
        return None
    layer, part = _MODULES[module]
    if layer.startswith("rate"):
        index = int(layer[4:])
        if index >= len(rates):
            return None
        layer = f"aspp_rate{rates[index]}"
    return weight_path(f"deeplabv3_{layer}", part, parameter)


def arguments_for(model):
    """Derives the arguments of `name_map` from a model.

    Args:
        model: built `keras.Model`.

    Returns:
        dict of arguments of `name_map`.
    """
    rates = {int(match[1]) for weight in model.weights if (match := _RATE.match(weight.path))}
    return {"rates": tuple(sorted(rates))} if rates else {}
