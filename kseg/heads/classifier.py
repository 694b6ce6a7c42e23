import keras

from kseg.layers import Conv2D


def classifier(num_classes, name):
    """Makes the last layer of a head: a 1x1 convolution with bias, in float32.

    Its weights start small (standard deviation 0.01, Long et al. and mmsegmentation), so that the
    first predictions are near uniform.

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
