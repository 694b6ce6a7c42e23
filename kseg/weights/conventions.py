"""Naming conventions of the code bases that publish checkpoints, and their recognition."""

import dataclasses
import functools
import re
import typing

from kseg.weights import deeplabv3, efficientnet_lite, hrnet, resnet, swin, upernet

# Prefixes of array names: those of wrappers, and of a network within a larger model.
PREFIXES = (
    "module.",
    "model.",
    "_orig_mod.",
    "network.",
    "net.",
    "backbone.",
    "encoder.",
    "swin.",
    "ema.",
    "model_ema.",
    "ema_model.",
)
_IMAGENET = "classifier of the pretraining"


@dataclasses.dataclass(frozen=True)
class Convention:
    """The array names that certain code bases use for one network or one head.

    Attributes:
        name: str, a description for users: the network and the code base.
        signature: tuple of regular expressions. The convention applies if each of them matches the
            beginning of an array's name.
        name_map: function from the name of an array, without prefixes, to a path, a tuple of paths
            or None, as in `kseg.weights.load_torch_state`.
        head: bool, whether the network is a head. False: it is a backbone.
        leftovers: dict from a regular expression, matched from the start of a name, to the reason
            why such an array has no weight in kseg.
        bind: function from the model to keyword arguments of `name_map`, or None.
        prepare: function from all arrays, a dict by name, to those that `name_map` expects, for
            code bases that differ by more than names; or None.
        lacks: regular expressions of weight paths. Such files have arrays either for some of these
            weights, and then for all, or for none of them.
    """

    name: str
    signature: tuple
    name_map: typing.Callable
    head: bool = False
    leftovers: dict = dataclasses.field(default_factory=dict)
    bind: typing.Callable | None = None
    prepare: typing.Callable | None = None
    lacks: tuple = ()

    def recognises(self, names):
        """Returns True if each part of the signature matches one of the names."""
        return all(any(re.match(pattern, name) for name in names) for pattern in self.signature)

    def bound(self, model):
        """Returns the name map for this model."""
        if self.bind is None:
            return self.name_map
        return functools.partial(self.name_map, **self.bind(model))


CONVENTIONS = (
    Convention(
        "HRNet of timm, mmsegmentation or the official code",
        (r"stage2\.0\.branches\.", r"transition1\."),
        hrnet.backbone_name_map,
        leftovers=dict.fromkeys(hrnet.CLASSIFIER, _IMAGENET),
    ),
    Convention(
        "head of HRNet's official segmentation code",
        (r"last_layer\.0\.|cls_head\.",),
        hrnet.head_name_map,
        head=True,
        leftovers={r"loss\.": "part of the loss"},
    ),
    Convention(
        "OCRNet of mmsegmentation",
        (r"decode_head\.1\.object_context_block\.",),
        hrnet.mmsegmentation_head_name_map,
        head=True,
        prepare=hrnet.add_biases,
    ),
    Convention(
        "ResNet of timm, torchvision or mmsegmentation",
        (r"layer1\.0\.conv1\.", r"layer4\.0\.conv1\."),
        resnet.name_map,
        leftovers=dict.fromkeys(resnet.CLASSIFIER, _IMAGENET),
        bind=resnet.arguments_for,
    ),
    Convention(
        "DeepLabV3 of torchvision",
        (r"classifier\.0\.convs\.",),
        deeplabv3.name_map,
        head=True,
        bind=deeplabv3.arguments_for,
    ),
    Convention(
        "DeepLabV3 of RegionContrast",
        (r"(decoder\.)?aspp\.conv1\.",),
        deeplabv3.name_map,
        head=True,
        leftovers=dict.fromkeys(deeplabv3.MEMORY, "memory of training"),
        bind=deeplabv3.arguments_for,
    ),
    Convention(
        "DeepLabV3 of mmsegmentation",
        (r"decode_head\.aspp_modules\.",),
        deeplabv3.name_map,
        head=True,
        bind=deeplabv3.arguments_for,
    ),
    Convention(
        "Swin of Microsoft, timm, Hugging Face or mmsegmentation",
        (r"(encoder\.)?(layers|stages)\.0\.blocks\.0\.(attn|attention)\.",),
        swin.name_map,
        leftovers={
            **dict.fromkeys(swin.CLASSIFIER, _IMAGENET),
            **dict.fromkeys(swin.CONSTANTS, "follows from the size of windows and images"),
        },
        prepare=swin.prepare,
        lacks=swin.OUTPUT_NORMS,
    ),
    Convention(
        "UPerNet of mmsegmentation or Hugging Face",
        (r"decode_head\.psp_modules\.", r"decode_head\.fpn_convs\."),
        upernet.name_map,
        head=True,
    ),
    Convention(
        "EfficientNet-Lite of efficientnet_lite_pytorch or timm",
        (r"_?conv_stem\.", r"_blocks\.0\._depthwise_conv\.|blocks\.0\.0\.conv_dw\."),
        efficientnet_lite.name_map,
        leftovers=dict.fromkeys(efficientnet_lite.CLASSIFIER, _IMAGENET),
        bind=efficientnet_lite.arguments_for,
    ),
)


def recognise(names, prefixes=PREFIXES):
    """Finds the conventions that the names of arrays follow.

    Args:
        names: iterable of str, the names of all arrays of a checkpoint.
        prefixes: as in `without_prefixes`.

    Returns:
        list of `Convention`: one for a backbone, one for a head, or both.
    """
    variants = {variant for name in names for variant in without_prefixes(name, prefixes)}
    return [convention for convention in CONVENTIONS if convention.recognises(variants)]


def without_prefixes(name, prefixes=PREFIXES):
    """Strips prefixes from a name, one after the other.

    Args:
        name: str, such as `"module.backbone.conv1.weight"`.
        prefixes: tuple of str.

    Returns:
        list of str, from the name itself to the shortest: `["module.backbone.conv1.weight",
        "backbone.conv1.weight", "conv1.weight"]`.
    """
    variants = [name]
    while prefix := next((prefix for prefix in prefixes if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
        variants.append(name)
    return variants
