"""Separate learning rates for parts and layers of a network, on any Keras backend."""

import re

from kseg.backbones.backbone import Backbone
from kseg.errors import UserError

PARTS = ("backbone", "head", "projectors")
_PROJECTOR = "embedding_"  # Prefix of the names of a segmenter's projectors.
_SHOWN = 6
_SWIN_BLOCK = re.compile(r"layers_(?P<stage>\d+)_blocks_(?P<block>\d+)/")
_SWIN_MERGING = re.compile(r"layers_(?P<stage>\d+)_downsample/")


def parts_of(segmenter):
    """Maps each trainable weight to the part of the network that it belongs to.

    Args:
        segmenter: model from `kseg.segmenters.build_segmenter`, or any Keras model; without a
            `Backbone` all weights belong to the head.

    Returns:
        dict from the path of a weight to `"backbone"`, `"head"` or `"projectors"`, in the order of
        `segmenter.trainable_variables`.
    """
    backbone = set()
    for layer in [segmenter, *segmenter._flatten_layers(include_self=False)]:
        if isinstance(layer, Backbone):
            backbone |= {id(variable) for variable in layer.variables}
    parts = {}
    for variable in segmenter.trainable_variables:
        if id(variable) in backbone:
            part = "backbone"
        else:
            part = "projectors" if variable.path.startswith(_PROJECTOR) else "head"
        parts[variable.path] = part
    return parts


def learning_rate_factors(parts, factors, layer_decay=None):
    """Computes the learning-rate factor of each weight.

    A key of `factors` is a part, or a prefix of a weight's path, such as `"layers_0"` or
    `"logits/"`. A prefix takes precedence over a part, and a longer prefix over a shorter one.

    `layer_decay` d multiplies the factors of a Swin of L blocks: that of block i = 1..L by
    `d^(L + 1 - i)`, that of a patch merging like the preceding block, that of the patch embedding
    by `d^(L + 1)`. The factors of output norms, head and projectors are unchanged. Source: Clark et
    al., "ELECTRA", ICLR 2020; Bao et al., "BEiT", ICLR 2022; for Swin as in
    github.com/microsoft/SimMIM.

    Args:
        parts: dict as from `parts_of`.
        factors: dict from a part or a path prefix to a float >= 0; 0 freezes the weights. Parts
            that the network does not have may be named.
        layer_decay: float in (0, 1] or None.

    Returns:
        dict from the path of a weight to a float, 1 by default, in the order of `parts`.

    Raises:
        UserError: if a key of `factors` is neither, or `layer_decay` is given and no weight
            belongs to a Swin block.
    """
    for key in factors:
        if key not in PARTS and not (key and any(path.startswith(key) for path in parts)):
            layers = list(dict.fromkeys(path.split("/")[0] for path in parts))
            more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
            raise UserError(
                "`optimizer.learning_rate_factors` takes parts of the network, or the beginning of "
                f"a layer's name. Received: {key!r}. Parts: {', '.join(PARTS)}. Layers: "
                f"{', '.join(layers[:_SHOWN])}{more}"
            )
    result = {}
    for path, part in parts.items():
        prefixes = [key for key in factors if key not in PARTS and path.startswith(key)]
        key = max(prefixes, key=len, default=part)
        result[path] = float(factors.get(key, 1.0))
    if layer_decay is not None:
        for path, exponent in _swin_exponents(parts).items():
            result[path] *= layer_decay**exponent
    return result


def _swin_exponents(parts):
    """Returns the distance of each Swin weight from the head, in blocks."""
    paths = [path for path, part in parts.items() if part == "backbone"]
    blocks = {match[0] for path in paths if (match := _SWIN_BLOCK.match(path))}
    if not blocks:
        raise UserError(
            "`optimizer.layer_decay` is for Swin backbones: this one has no blocks that it knows"
        )
    stages = [int(_SWIN_BLOCK.match(block)["stage"]) for block in blocks]
    depths = [stages.count(stage) for stage in range(max(stages) + 1)]
    exponents = {}
    for path in paths:
        if match := _SWIN_BLOCK.match(path):
            number = sum(depths[: int(match["stage"])]) + int(match["block"]) + 1
        elif match := _SWIN_MERGING.match(path):
            number = sum(depths[: int(match["stage"]) + 1])
        elif path.startswith("patch_embed/"):
            number = 0
        else:
            continue
        exponents[path] = len(blocks) + 1 - number
    return exponents


class LearningRateFactors:
    """Mix-in that gives each variable of a Keras optimizer its own learning rate.

    Use it as `class FactoredAdam(LearningRateFactors, keras.optimizers.Adam)`. Weight decay, which
    Keras multiplies by the learning rate, is scaled along with it.

    Args:
        learning_rate_factors: dict from the path of a variable to the factor of its learning
            rate, see `learning_rate_factors`; others: 1. None: all 1.
        *args, **kwargs: arguments of the optimizer.
    """

    def __init__(self, *args, learning_rate_factors=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.learning_rate_factors = dict(learning_rate_factors or {})
        self._factor = 1.0

    def _factor_of(self, variable):
        index = self._get_variable_index(variable)
        return self.learning_rate_factors.get(self._trainable_variables[index].path, 1.0)

    def _scaled(self, learning_rate, variable):
        """Returns the learning rate of one variable."""
        factor = self._factor_of(variable)
        return learning_rate if factor == 1.0 else learning_rate * factor

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable."""
        super().update_step(gradient, variable, self._scaled(learning_rate, variable))

    def _apply_weight_decay(self, variables):
        if self.weight_decay is None:
            return
        groups = {}
        for variable in variables:
            groups.setdefault(self._factor_of(variable), []).append(variable)
        for self._factor, group in groups.items():
            super()._apply_weight_decay(group)
        self._factor = 1.0

    def _get_current_learning_rate(self):
        learning_rate = super()._get_current_learning_rate()
        return learning_rate if self._factor == 1.0 else learning_rate * self._factor

    def get_config(self):
        """Returns the constructor's arguments."""
        return {**super().get_config(), "learning_rate_factors": dict(self.learning_rate_factors)}
