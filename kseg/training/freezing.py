"""Frozen parts of a network, which training does not change."""

import keras

from kseg.backbones.backbone import Backbone


def freeze(segmenter, parts):
    """Makes parts of a network untrainable.

    Their weights get no gradient, no weight decay and no optimizer state. A frozen batch norm
    normalizes by its moving statistics in training, too, and does not update them. Dropout and
    stochastic depth are not affected.

    Args:
        segmenter: model from `kseg.segmenters.build_segmenter`; changed in place.
        parts: strings: `"backbone"`; a stage of it, such as `"c3"`: every layer that the stage is
            computed from; `"batch_norms"`: scale, offset and statistics of all batch norms;
            `"backbone_batch_norms"`: the same for the backbone's batch norms only.

    Raises:
        ValueError: if the backbone has no such stage, the network has no backbone, or nothing is
            left to train.
    """
    layers = segmenter._flatten_layers(include_self=False)
    backbone = next((layer for layer in layers if isinstance(layer, Backbone)), None)
    for part in parts:
        model = segmenter if part == "batch_norms" else backbone
        if model is None:
            raise ValueError(
                f"The network has no backbone that could be frozen. Received: {part!r}"
            )
        if part.endswith("batch_norms"):
            chosen = [
                layer
                for layer in model._flatten_layers(include_self=False)
                if isinstance(layer, keras.layers.BatchNormalization)
            ]
        elif part == "backbone":
            chosen = [backbone]
        elif part in backbone.output:
            chosen = keras.Model(backbone.input, backbone.output[part]).layers
        else:
            raise ValueError(
                f"`freeze` takes the backbone's stages, {sorted(backbone.output)}, 'backbone', "
                f"'batch_norms' and 'backbone_batch_norms'. Received: {part!r}"
            )
        for layer in chosen:
            layer.trainable = False
    if not segmenter.trainable_variables:
        raise ValueError(f"There is nothing left to train. Received: freeze={list(parts)}")
