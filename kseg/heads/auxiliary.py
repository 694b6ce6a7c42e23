import keras

from kseg.heads.classifier import classifier


def auxiliary_head(conv_norm, x, num_classes, *, channels, dropout, name):
    """Predicts from an inner stage, so that gradients reach it directly.

    3x3 convolution, batch norm, ReLU, dropout of whole channels, classifier (the FCN head of
    torchvision, mmsegmentation and the papers' codes).

    Args:
        conv_norm: function `(filters, kernel_size, **arguments)` to a `kseg.layers.ConvNorm`.
        x: symbolic float tensor `(batch, height, width, any)`.
        num_classes: int, channels of the logits.
        channels: int, width of the convolution.
        dropout: float in [0, 1).
        name: str, prefix of the layers' names.

    Returns:
        `(logits, features)`, symbolic tensors `(batch, height, width, num_classes)` float32 and
        `(batch, height, width, channels)`, the map before the dropout.
    """
    features = conv_norm(channels, 3, name=f"{name}_fusion")(x)
    x = keras.layers.SpatialDropout2D(dropout, name=f"{name}_dropout")(features)
    return classifier(num_classes, name=f"{name}_logits")(x), features
