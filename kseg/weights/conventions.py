"""How the code bases that publish checkpoints name their arrays, and how to tell them apart."""

import dataclasses
import functools
import re
import typing

from kseg.weights import deeplabv3, efficientnet_lite, hrnet, resnet, swin, upernet

# What code bases put before the names of a network: wrappers, and the part of a whole model.
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
    """The names that some code bases give to one network, or to one head.

    Attributes:
        name: str, for people: which network, of which code.
        signature: tuple of regular expressions. Arrays bear these names if each of them matches
            the beginning of one.
        name_map: function from the name of an array, without prefixes, to a path, a tuple of paths
            or None, as `kseg.weights.load_torch_state` takes it.
        head: bool. False: the network is a backbone.
        leftovers: dict from a regular expression, matched from the start of a name, to the reason
            why such an array has no weight here.
        bind: function from the model to keyword arguments of `name_map`, or None.
        prepare: function from all arrays, a dict by name, to those that `name_map` is for, or
            None: where code bases differ by more than names.
        lacks: regular expressions of the paths of weights that such files may have no arrays for,
            and then for none of them.
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
        """Whether each part of the signature matches one of the names."""
        return all(any(re.match(pattern, name) for name in names) for pattern in self.signature)

    def bound(self, model):
        """The name map for this model."""
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
    """Finds the conventions that arrays are named by.

    Args:
        names: iterable of str, the names of all arrays of a checkpoint.
        prefixes: as in `without_prefixes`.

    Returns:
        list of `Convention`, of a backbone, of a head, or of both.
    """
    variants = {variant for name in names for variant in without_prefixes(name, prefixes)}
    return [convention for convention in CONVENTIONS if convention.recognises(variants)]


def without_prefixes(name, prefixes=PREFIXES):
    """Cuts prefixes off a name, one after the other.

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
