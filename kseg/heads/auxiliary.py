"""The auxiliary head that other heads attach to an inner stage."""

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
