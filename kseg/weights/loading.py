"""Loading of weights from any supported source into a backbone or a segmenter, all or none."""

import dataclasses
import typing

import numpy as np

from kseg.backbones.backbone import Backbone
from kseg.errors import UserError
from kseg.weights import stem as stems
from kseg.weights.conventions import CONVENTIONS, PREFIXES, recognise, without_prefixes
from kseg.weights.files import read_file
from kseg.weights.hub import check_source, fetch_from_hugging_face, read_keras_cv_preset
from kseg.weights.keras_file import keras_names
from kseg.weights.torch_state import (
    COUNTER,
    assign,
    choose_path,
    first_match,
    keras_layout,
    weights_by_path,
)

_PROJECTOR = "embedding_"  # Prefix of the names of a segmenter's projectors.
_CLASSIFIER = "logits"  # Suffix of the names of layers with one channel per class.
# Prefixes of the heads of segmentation networks, whether or not kseg has that head.
_HEADS = (r"(decode|auxiliary|aux|segmentation|seg)_head\.", r"(aux_)?classifier\.", r"decoder\.")
_TRAINING = ("ema/", "optimizer/", "seed/", "objective/")  # Prefixes in the checkpoints of a run.


def load_weights(
    model,
    source,
    *,
    name_map=None,
    prefixes=PREFIXES,
    backbone_only=False,
    ignore=(),
    allow_missing=(),
    stem=None,
):
    """Loads pretrained weights into a backbone or a segmenter; assigns nothing unless all fit.

    The code base that wrote the file is recognized by the names of its arrays: timm, torchvision,
    mmsegmentation, Hugging Face transformers, the official code of a network, keras-cv, or kseg
    itself. Every array must have a weight, or a known reason to have none. Every weight must have
    an array, except

    * the head and the projectors of a segmenter, if the file contains a backbone only,
    * the projectors of a segmenter, if the file has none,
    * the norms of a Swin's outputs, which classification networks do not have,
    * a classifier, if the one in the file has another number of classes.

    These keep their current values and are listed in the report.

    Args:
        model: built `Backbone`, or a segmenter from `kseg.segmenters.build_segmenter`.
        source: str. A file: `.weights.h5`, `.keras`, `.safetensors`, `.npz` (also a checkpoint of
            a run), or PyTorch's `.pth`, `.pth.tar`, `.pt`, `.bin`, `.ckpt`, which are read without
            running any of their code; several files by their `*.index.json`, or its folder. Or
            `hf://owner/name`, `hf://owner/name/file`, `hf://owner/name@revision/file` on the
            Hugging Face hub. Or `keras_cv://preset`, for a keras_cv backbone.
        name_map: None, or a function as in `load_torch_state`, for names that kseg does not know.
        prefixes: tuple of str, stripped from the names of arrays where needed.
        backbone_only: bool. If True, load only the backbone of a segmenter, and leave the head of a
            segmentation checkpoint unused.
        ignore: regular expressions, matched from the start of an array's name with or without its
            prefixes: arrays that may remain unused.
        allow_missing: regular expressions, matched from the start of a weight's path: weights that
            may keep their values.
        stem: what becomes of a first convolution for RGB in a network for other channels, see
            `kseg.weights.stem.adapt`.

    Returns:
        `LoadReport`, with a readable `str()`. Queries, keys and values, which Hugging Face stores
        separately, appear in it as one array, `qkv`.

    Raises:
        UserError: if the file is missing or damaged, its names are unknown or belong to another
            network, or anything does not fit. The message is one line; the model is unchanged.
        UnavailableError: a `UserError`, if the weights cannot be downloaded.
    """
    backbone = _find_backbone(model)
    if backbone_only and backbone is None:
        raise ValueError(f"{model.name!r} has no separate backbone to load.")
    target = backbone if backbone_only else model
    weights = weights_by_path(target)
    checkpoint = _read(str(source))
    if not checkpoint.arrays:
        raise UserError(f"{source} holds no arrays")
    if name_map is None and any("/" in name for name in checkpoint.arrays):
        match = _match_keras(target, weights, checkpoint.arrays, source)
    else:
        match = _match_torch(target, weights, checkpoint.arrays, source, name_map, prefixes)
    for name in match.arrays:
        for variant in without_prefixes(name, prefixes):
            if pattern := first_match(ignore, variant):
                match.unused[name] = f"ignored by {pattern!r}"
    named = f"{source} ({'; '.join(match.conventions)})" if match.conventions else str(source)
    if not any(path in weights for path in match.paths.values()):
        raise UserError(
            f"{named} is for another network: none of its {len(match.arrays)} arrays has a weight "
            f"in {target.name!r}. Arrays: {_some(match.arrays)}. Weights: {_some(weights)}"
        )
    adapted = _adapt_stem(match, weights, backbone, stem)
    reset = _drop_classifiers_of_other_classes(match, weights)
    arrays, layout = match.values()
    report = assign(
        weights,
        arrays,
        match.paths,
        layout=layout,
        unused=match.unused,
        may_miss=_permission(match, weights, backbone, reset, allow_missing),
        complaint=f"{named} does not fit {target.name!r}",
    )
    return dataclasses.replace(
        report,
        unused={**report.unused, **checkpoint.beside},
        source=str(source),
        conventions=match.conventions,
        adapted=adapted,
    )


@dataclasses.dataclass(frozen=True)
class _Match:
    """The assignment of arrays to weights.

    Attributes:
        arrays: dict from name to array.
        paths: dict from the name of an array to the path of a weight, which the model need not
            have, or None.
        unused: dict from the name of an array without a weight to the reason.
        layout: as in `assign`.
        conventions: tuple of str, descriptions for users.
        lacks: tuples of regular expressions, see `Convention`.
        adapted: dict from the name of an array to what is loaded in its place, in Keras' layout.
    """

    arrays: dict
    paths: dict
    unused: dict
    layout: typing.Callable
    conventions: tuple
    lacks: tuple = ()
    adapted: dict = dataclasses.field(default_factory=dict)

    def values(self):
        """Builds the arrays to load, and the layout of the others, as `assign` takes them."""
        own = {id(array) for array in self.adapted.values()}

        def layout(array, weight):
            return array if id(array) in own else self.layout(array, weight)

        return {**self.arrays, **self.adapted}, layout


def _permission(match, weights, backbone, reset, allow_missing):
    """Returns a function from a path to bool: whether that weight may keep its values."""
    reached = {path for path in match.paths.values() if path in weights}
    own = None if backbone is None else {weight.path for weight in backbone.weights}
    has_head = own is None or bool(reached - own)
    has_projectors = any(path.startswith(_PROJECTOR) for path in reached)
    lacks = [
        patterns
        for patterns in match.lacks
        if not any(first_match(patterns, path) for path in reached)
    ]

    def may_miss(path):
        if path.split("/")[0] in reset or first_match(allow_missing, path):
            return True
        if any(first_match(patterns, path) for patterns in lacks):
            return True
        if path.startswith(_PROJECTOR):
            return not has_projectors
        return not has_head and path not in own

    return may_miss


def _find_backbone(model):
    """Returns the model itself if it is a backbone, else its only backbone, or None."""
    if isinstance(model, Backbone):
        return model
    inside = [layer for layer in model.layers if isinstance(layer, Backbone)]
    return inside[0] if len(inside) == 1 else None


def _read(source):
    check_source(source)
    scheme, separator, _ = source.partition("://")
    if not separator:
        return read_file(source)
    if scheme == "hf":
        return read_file(fetch_from_hugging_face(source))
    return read_keras_cv_preset(source)


def _match_keras(target, weights, arrays, source):
    """Finds the weights of arrays with the names of Keras layers."""
    known = {
        **keras_names(target),
        **{path: path for path in weights},
        **{f"model/{path}": path for path in weights},  # Checkpoints of a run.
    }
    preset = str(source).startswith("keras_cv://")
    paths, unused = {}, {}
    for name in arrays:
        paths[name] = known.get(name)
        if paths[name] is not None:
            continue
        layer = name.removeprefix("model/")
        if name.startswith(_TRAINING):
            unused[name] = "state of training"
        elif layer.startswith(_PROJECTOR):
            unused[name] = "projector, which the model does not have"
        elif isinstance(target, Backbone):
            unused[name] = "not part of the backbone"
        elif preset:
            unused[name] = "not part of the stages of the backbone"
    convention = "keras-cv" if preset else "names of Keras layers"
    return _Match(arrays, paths, unused, _unchanged, (convention,))


def _unchanged(array, weight):
    return np.asarray(array)


def _match_torch(target, weights, arrays, source, name_map, prefixes):
    """Finds the weights of arrays with the names of PyTorch modules."""
    if name_map is None:
        conventions = recognise(arrays, prefixes)
        if not conventions:
            raise UserError(
                f"The arrays of {source} have unknown names: {_some(arrays)}. Known: "
                + "; ".join(convention.name for convention in CONVENTIONS)
            )
        maps = [(convention, convention.bound(target)) for convention in conventions]
    else:
        conventions, maps = [], [(None, name_map)]
    for convention in conventions:
        if convention.prepare is not None:
            try:
                arrays = convention.prepare(arrays)
            except ValueError as error:
                raise UserError(f"{source} has arrays of impossible shapes: {error}") from None
    paths, unused = {}, {}
    for name, array in arrays.items():
        variants = without_prefixes(name, prefixes)
        candidates = [
            (convention, choose_path(weights, path, array, keras_layout))
            for convention, function in maps
            for variant in variants
            if (path := function(variant)) is not None
        ]
        candidates.sort(key=lambda pair: pair[1] not in weights)
        convention, paths[name] = candidates[0] if candidates else (None, None)
        if name.endswith("num_batches_tracked"):
            unused[name] = COUNTER
        elif name == "n_averaged":
            unused[name] = "counter of the weight average"
        elif paths[name] not in weights:
            is_head = (convention is not None and convention.head) or any(
                first_match(_HEADS, variant) for variant in variants
            )
            if reason := _leftover(conventions, variants):
                unused[name] = reason
            elif is_head and isinstance(target, Backbone):
                unused[name] = "head, and only the backbone is loaded"
    return _Match(
        arrays,
        paths,
        unused,
        keras_layout,
        tuple(convention.name for convention in conventions),
        tuple(convention.lacks for convention in conventions),
    )


def _leftover(conventions, variants):
    for convention in conventions:
        for pattern, reason in convention.leftovers.items():
            if any(first_match([pattern], variant) for variant in variants):
                return reason
    return None


def _adapt_stem(match, weights, backbone, how):
    """Adapts kernels for the RGB of an image to the channels of the network, in the match.

    Returns:
        list of str, what was done.
    """
    channels = 3 if backbone is None else backbone.input_shape[-1]
    lines = []
    for name, path in match.paths.items():
        if channels == 3 or path not in weights or len(weights[path].shape) != 4:
            continue
        shape = tuple(weights[path].shape)
        kernel = match.layout(match.arrays[name], weights[path])
        if shape[2] != channels or kernel.shape != (*shape[:2], 3, shape[3]):
            continue
        adapted, line = stems.adapt(kernel, channels, how)
        match.adapted[name] = adapted
        lines.append(f"{path}: {line}")
    return lines


def _drop_classifiers_of_other_classes(match, weights):
    """Removes classifiers with another number of classes from a match; returns their layers."""
    layers = {}
    for name, path in match.paths.items():
        if path not in weights or not path.split("/")[0].endswith(_CLASSIFIER):
            continue
        shape = tuple(weights[path].shape)
        file_shape = match.layout(match.arrays[name], weights[path]).shape
        if shape != file_shape and shape[:-1] == file_shape[:-1]:
            layers[path.split("/")[0]] = (file_shape[-1], shape[-1])
    for name, path in match.paths.items():
        layer = path and path.split("/")[0]
        if path in weights and layer in layers:
            in_file, in_model = layers[layer]
            match.unused[name] = f"classifier of {in_file} classes, where the model has {in_model}"
            match.paths[name] = None
    return set(layers)


def _some(names):
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
