"""Residual blocks (He et al., CVPR 2016), shared by the networks that consist of them.

Their layers are named after torchvision's: `<name>_conv1` is convolution and batch norm in one.
"""


def basic_block(conv_norm, x, channels, *, strides=1, dilation_rates=(1, 1), shortcut=None, name):
    """Adds two 3x3 convolutions to the shortcut.

    Args:
        conv_norm: function `(filters, kernel_size, **arguments)` to a `kseg.layers.ConvNorm`.
        x: symbolic float tensor `(batch, height, width, any)`.
        channels: int, width of the block and of its output.
        strides: int, of the first convolution.
        dilation_rates: two ints, of the convolutions.
        shortcut: symbolic tensor of the output's shape, or None: `x`.
        name: str, prefix of the layers' names.

    Returns:
        symbolic float tensor `(batch, ceil(height / strides), ceil(width / strides), channels)`.
    """
    first, second = dilation_rates
    y = conv_norm(channels, 3, strides=strides, dilation_rate=first, name=f"{name}_conv1")(x)
    layer = conv_norm(channels, 3, dilation_rate=second, name=f"{name}_conv2")
    return layer(y, residual=x if shortcut is None else shortcut)


def bottleneck(conv_norm, x, channels, *, strides=1, dilation_rates=(1, 1), shortcut=None, name):
    """Adds 1x1, 3x3 and 1x1 convolutions to the shortcut; the stride is that of the 3x3 one.

    Args:
        conv_norm, x, strides, shortcut, name: as in `basic_block`.
        channels: int, width of the 3x3 convolution; the output has four times it.
        dilation_rates: two ints, of which the first is that of the 3x3 convolution.

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
