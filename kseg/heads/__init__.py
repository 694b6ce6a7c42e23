"""Segmentation heads, which map features to logits, and their registry.

A head is a function `(features, num_classes, *, synchronized_batch_norm, **arguments)` of the
symbolic outputs of a backbone. It returns a dict of symbolic tensors: `logits` in float32;
`aux_logits` in float32 if it has an auxiliary classifier; `features`, the map just before the
classifier and its dropout. It may return further maps, such as those of a feature pyramid, which
can be projected.
"""

from kseg.classes import check_num_classes
from kseg.dotted import is_dotted, load_object
from kseg.heads.deeplabv3 import deeplabv3_head
from kseg.heads.hrnet import hrnet_head
from kseg.heads.ocr import ocr_head
from kseg.heads.upernet import upernet_head

HEADS = {
    "deeplabv3": deeplabv3_head,
    "hrnet": hrnet_head,
    "ocr": ocr_head,
    "upernet": upernet_head,
}


def build_head(name, features, num_classes, **arguments):
    """Applies a head by name.

    Args:
        name: str, a key of `HEADS`, or `"package.module:function"` for a head outside kseg; or such
            a function itself.
        features: dict from `c2` ... `c5` to symbolic float tensors
            `(batch, height, width, channels)`.
        num_classes: int, 1 to `kseg.classes.MAX_CLASSES`.
        **arguments: arguments of that head.

    Returns:
        dict of symbolic tensors, see the module's docstring.

    Raises:
        ValueError: if `name` is unknown, a stage is missing, `num_classes` is out of range, or the
            result of a head outside kseg is not as described in the module's docstring.
        TypeError: if the head does not take one of the arguments.
    """
    check_num_classes(num_classes)
    if callable(name) or is_dotted(name):
        head = name if callable(name) else load_object(name)
        return _check(name, head(features, num_classes, **arguments), num_classes)
    if name not in HEADS:
        raise ValueError(
            f"Unknown head. Received: {name=}. Choose from {sorted(HEADS)}, or use "
            '"package.module:function"'
        )
    needed = ("c4", "c5") if name == "deeplabv3" else ("c2", "c3", "c4", "c5")
    missing = [stage for stage in needed if stage not in features]
    if missing:
        raise ValueError(
            f"The head {name!r} needs the stages {list(needed)}. Received: {sorted(features)}, "
            f"without {missing}. Every backbone of kseg.backbones has c2 to c5"
        )
    return HEADS[name](features, num_classes, **arguments)


def _check(name, maps, num_classes):
    """Checks that a head outside kseg returned `logits` and `features` in the required form."""
    if not isinstance(maps, dict) or not {"logits", "features"} <= set(maps):
        received = sorted(maps) if isinstance(maps, dict) else type(maps).__name__
        raise ValueError(
            f"The head {name!r} must return a dict with `logits` and `features`. "
            f"Received: {received}"
        )
    for key in ("logits", "aux_logits"):
        if key in maps and (maps[key].shape[-1], maps[key].dtype) != (num_classes, "float32"):
            raise ValueError(
                f"The head {name!r} must return `{key}` in float32 with one channel for each of "
                f"the {num_classes} classes. Received: {maps[key].dtype} {tuple(maps[key].shape)}"
            )
    return maps


__all__ = ["HEADS", "build_head", "deeplabv3_head", "hrnet_head", "ocr_head", "upernet_head"]
