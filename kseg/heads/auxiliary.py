"""The last layers of heads: classifiers of the fused map and of an inner stage."""

import keras

from kseg.heads.classifier import classifier


def auxiliary_head(conv_norm, x, num_classes, *, channels, dropout, name):
    """Classifies the pixels of an inner stage, so that gradients reach it directly.

    3x3 convolution, batch norm, ReLU, channel dropout, classifier (the FCN head of torchvision,
    mmsegmentation and the papers' code).

    Args:
        conv_norm: function `(filters, kernel_size, **arguments)` that returns a
            `kseg.layers.ConvNorm`.
        x: symbolic float tensor `(batch, height, width, any)`.
        num_classes: int, channels of the logits.
        channels: int, width of the convolution.
        dropout: float in [0, 1).
        name: str, prefix of the layer names.

    Returns:
        `(logits, features)`, symbolic tensors: float32 `(batch, height, width, num_classes)`, and
        the map before the dropout, `(batch, height, width, channels)`.
    """
    features = conv_norm(channels, 3, name=f"{name}_fusion")(x)
    x = keras.layers.SpatialDropout2D(dropout, name=f"{name}_dropout")(features)
    return classifier(num_classes, name=f"{name}_logits")(x), features


def classify(conv_norm, fused, inner, num_classes, *, dropout, aux_channels, name):
    """Ends a head: classifies its fused map, and an inner stage by an auxiliary head.

    Args:
        conv_norm: as for `auxiliary_head`.
        fused: symbolic float tensor `(batch, height, width, channels)`, the last map of the head.
        inner: symbolic float tensor, the inner stage.
        num_classes: int, channels of the logits.
        dropout: float in [0, 1), the fraction of channels dropped before each classifier.
        aux_channels: int, width of the auxiliary head.
        name: str, prefix of the layer names.

    Returns:
        dict of symbolic tensors: `logits` and `aux_logits`, float32, and `features`, which is
        `fused`.
    """
    x = keras.layers.SpatialDropout2D(dropout, name=f"{name}_dropout")(fused)
    aux_logits, _ = auxiliary_head(
        conv_norm, inner, num_classes, channels=aux_channels, dropout=dropout, name=f"{name}_aux"
    )
    return {
        "logits": classifier(num_classes, name=f"{name}_logits")(x),
        "aux_logits": aux_logits,
        "features": fused,
    }
