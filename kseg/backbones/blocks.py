"""Residual blocks (He et al., CVPR 2016), shared by ResNet and HRNet.

The layers are named after torchvision's; `<name>_conv1` is a convolution with its batch norm.
"""


def basic_block(conv_norm, x, channels, *, strides=1, dilation_rates=(1, 1), shortcut=None, name):
    """Adds two 3x3 convolutions to the shortcut.

    Args:
        conv_norm: function `(filters, kernel_size, **arguments)` that returns a
            `kseg.layers.ConvNorm`.
        x: symbolic float tensor `(batch, height, width, any)`.
        channels: int, width of the block and of its output.
        strides: int, strides of the first convolution.
        dilation_rates: two ints, one for each convolution.
        shortcut: symbolic tensor of the output's shape, or None: `x`.
        name: str, prefix of the layer names.

    Returns:
        symbolic float tensor `(batch, ceil(height / strides), ceil(width / strides), channels)`.
    """
    first, second = dilation_rates
    y = conv_norm(channels, 3, strides=strides, dilation_rate=first, name=f"{name}_conv1")(x)
    layer = conv_norm(channels, 3, dilation_rate=second, name=f"{name}_conv2")
    return layer(y, residual=x if shortcut is None else shortcut)


def bottleneck(conv_norm, x, channels, *, strides=1, dilation_rates=(1, 1), shortcut=None, name):
    """Adds 1x1, 3x3 and 1x1 convolutions to the shortcut; the 3x3 one is strided.

    Args:
        conv_norm, x, strides, shortcut, name: as in `basic_block`.
        channels: int, width of the 3x3 convolution; the output is four times as wide.
        dilation_rates: two ints; the 3x3 convolution uses the first, the second has no effect.

    Returns:
        symbolic float tensor
        `(batch, ceil(height / strides), ceil(width / strides), 4 * channels)`.
    """
    y = conv_norm(channels, 1, name=f"{name}_conv1")(x)
    y = conv_norm(
        channels, 3, strides=strides, dilation_rate=dilation_rates[0], name=f"{name}_conv2"
    )(y)
    layer = conv_norm(4 * channels, 1, name=f"{name}_conv3")
    return layer(y, residual=x if shortcut is None else shortcut)
