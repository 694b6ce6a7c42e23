"""Array names of published Swin transformers, mapped to kseg's weights."""

import re

import numpy as np

from kseg.weights.parameters import PARAMETERS

# Modules of an ImageNet checkpoint that are not part of the backbone, including the norm before its
# classifier.
CLASSIFIER = (r"head\.", r"classifier\.", r"norm\.", r"layernorm\.")
# Arrays that follow from the sizes of windows and images.
CONSTANTS = (r".*\.relative_position_index$", r".*\.attn_mask$")
# Weights that an ImageNet checkpoint lacks: the norms of the outputs.
OUTPUT_NORMS = (r"norm[0-3]/",)

# Module names of Hugging Face and mmsegmentation, and the corresponding ones of Microsoft's code.
_SYNONYMS = {
    r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"embeddings\.norm": "patch_embed.norm",
    r"encoder\.layers(\..*)": r"layers\1",
    r"(.*\.)layernorm_before": r"\1norm1",
    r"(.*\.)layernorm_after": r"\1norm2",
    r"(.*\.)attention\.self(\.qkv)?": r"\1attn\2",
    r"(.*\.)attention\.output\.dense": r"\1attn.proj",
    r"(.*\.)intermediate\.dense": r"\1mlp.fc1",
    r"(.*\.)output\.dense": r"\1mlp.fc2",
    r"hidden_states_norms\.stage1": "norm0",
    r"hidden_states_norms\.stage2": "norm1",
    r"hidden_states_norms\.stage3": "norm2",
    r"hidden_states_norms\.stage4": "norm3",
    r"patch_embed\.projection": "patch_embed.proj",
    r"stages(\..*)": r"layers\1",
    r"(.*\.attn)\.w_msa(\..*)?": r"\1\2",
    r"(.*\.)ffn\.layers\.0\.0": r"\1mlp.fc1",
    r"(.*\.)ffn\.layers\.1": r"\1mlp.fc2",
}
_EMBEDDING = re.compile(r"(?P<layer>patch_embed)\.(?P<part>proj|norm)")
_BLOCK = re.compile(
    r"(?P<layer>layers\.\d\.blocks\.\d+)\.(?P<part>norm[12]|attn\.(qkv|proj)|mlp\.fc[12])"
)
_DOWNSAMPLE = re.compile(r"layers\.(?P<stage>\d)\.downsample\.(?P<part>norm|reduction)")
_ATTENTION = re.compile(r"(?P<layer>layers\.\d\.blocks\.\d+)\.attn")
_OUTPUT_NORM = re.compile(r"norm[0-3]")

_QUERY = re.compile(r"(?P<module>.*\.attention\.self\.)query\.(?P<parameter>weight|bias)")
_UNFOLDED = re.compile(r"(.*\.)?stages\.\d\.downsample\.(norm|reduction)\.(weight|bias)")


def name_map(name):
    """Finds the weight that corresponds to a parameter of a published Swin transformer.

    Covers the names of Microsoft's code for classification and segmentation, of timm, of Hugging
    Face and of mmsegmentation; the latter two after `prepare`.

    `layers.1.downsample` follows stage 1 in Microsoft's code and in old files of timm, and precedes
    it in new ones. Both paths are returned, and the shape decides.

    Args:
        name: str, such as `"layers.0.blocks.1.mlp.fc2.bias"`, without prefixes such as `backbone.`
            or `swin.`.

    Returns:
        str, such as `"layers_0_blocks_1/mlp_fc2/bias"`, a tuple of such paths, or None.
    """
    module, _, parameter = name.rpartition(".")
    for pattern, replacement in _SYNONYMS.items():
        if match := re.fullmatch(pattern, module):
            module = match.expand(replacement)
    if match := _ATTENTION.fullmatch(module):
        known = parameter == "relative_position_bias_table"
        return f"{_joined(match['layer'])}/attn_{parameter}" if known else None
    if match := _DOWNSAMPLE.fullmatch(module):
        stage, part = int(match["stage"]), match["part"]
        layers = [f"layers_{i}_downsample" for i in (stage, stage - 1) if i >= 0]
        return tuple(filter(None, (_path(layer, part, parameter) for layer in layers))) or None
    if _OUTPUT_NORM.fullmatch(module):
        return _path(module, None, parameter)
    if match := _EMBEDDING.fullmatch(module) or _BLOCK.fullmatch(module):
        return _path(_joined(match["layer"]), _joined(match["part"]), parameter)
    return None


def _joined(module):
    return module.replace(".", "_")


def _path(layer, part, parameter):
    kind = "normalization" if "norm" in (part or layer) else "convolution"
    if parameter not in ("weight", "bias"):
        return None
    return "/".join(filter(None, (layer, part, PARAMETERS[kind][parameter])))


def prepare(arrays):
    """Converts arrays that differ between code bases by more than their names.

    Hugging Face stores queries, keys and values separately: they are stacked. mmsegmentation orders
    the channels of a merged patch differently: pixels row by row, varying faster than channels;
    all others have pixels column by column, varying slower.

    Args:
        arrays: dict from the names of parameters, with or without prefixes, to arrays.

    Returns:
        dict of the same kind; other arrays are unchanged.
    """
    prepared = dict(arrays)
    for name in arrays:
        if match := _QUERY.fullmatch(name):
            module, parameter = match["module"], match["parameter"]
            parts = [f"{module}{part}.{parameter}" for part in ("query", "key", "value")]
            if all(part in arrays for part in parts):
                stacked = np.concatenate([prepared.pop(part) for part in parts])
                prepared[f"{module}qkv.{parameter}"] = stacked
        elif _UNFOLDED.fullmatch(name):
            prepared[name] = _column_by_column(np.asarray(arrays[name]))
    return prepared


def _column_by_column(array):
    """Reorders the last axis from (channel, row, column) to (column, row, channel)."""
    x = array.reshape((*array.shape[:-1], -1, 2, 2))
    return x.swapaxes(-1, -3).reshape(array.shape)
