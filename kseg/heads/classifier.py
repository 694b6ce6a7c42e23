"""The classifier layer that ends every head."""

import keras

from kseg.layers import Conv2D


def classifier(num_classes, name):
    """Creates the last layer of a head: a 1x1 convolution with bias, in float32.

    Small initial weights (standard deviation 0.01, as in mmsegmentation) make the first predictions
    nearly uniform.

    Args:
        num_classes: int, channels of the logits.
        name: str, the layer's name.

    Returns:
        `Conv2D` layer.
    """
    return Conv2D(
        num_classes,
        1,
        use_bias=True,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        dtype="float32",
        name=name,
    )
