"""EfficientNet-Lite with dilation for lower output strides, and its published sizes 0 to 2."""

import functools
import math

import keras

from kseg.backbones.backbone import Backbone
from kseg.layers import ConvNorm, DropPath
from kseg.layers.depthwise import DepthwiseConvNorm

# Lite0: output channels, blocks, kernel size, expansion and stride of each of the seven stages.
CHANNELS = (16, 24, 40, 80, 112, 192, 320)
REPEATS = (1, 2, 2, 3, 3, 4, 1)
_KERNEL_SIZES = (3, 3, 5, 3, 5, 5, 3)
_EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)

# Image normalization, in units of 0 to 255 (`MEAN_RGB` and `STDDEV_RGB` of the original).
MEAN = (127.0, 127.0, 127.0)
STD = (128.0, 128.0, 128.0)
BATCH_NORM_EPSILON = 1e-3


def build_efficientnet_lite(
    *,
    channels=CHANNELS,
    repeats=REPEATS,
    stem_channels=32,
    top_channels=1280,
    output_stride=32,
    drop_path_rate=0.2,
    depthwise=None,
    synchronized_batch_norm=False,
    input_channels=3,
    name="efficientnet_lite",
):
    """Builds an EfficientNet-Lite: inverted residual blocks with ReLU6, no squeeze-and-excitation.

    Layers are named after timm's parameters, with `_` for `.`; a convolution and its batch norm are
    one layer. Strided convolutions pad as in TensorFlow, for every input size.

    A stage whose stride would exceed `output_stride` multiplies the dilation of the later blocks
    instead, as in `kseg.backbones.build_resnet`: at every `stride`-th position the outputs of the
    dilated network equal those of the strided one.

    Sources: Tan and Le, "EfficientNet", ICML 2019; github.com/tensorflow/tpu,
    `models/official/efficientnet/lite`. Departure: batch norms have momentum 0.9 in Keras' sense,
    not the 0.99 of the original, which suits runs of 10^5 steps and more.

    Args:
        channels: seven ints, output channels of the stages.
        repeats: seven ints, blocks of the stages.
        stem_channels: int, channels of the first convolution.
        top_channels: int, channels of the 1x1 convolution after the last block, which is `c5`.
        output_stride: 8, 16 or 32, the stride of `c5`.
        drop_path_rate: float in [0, 1). In training, block i of n drops its residual branch with
            probability `drop_path_rate * i / n`, independently for each sample (stochastic depth).
        depthwise: str or None, `implementation` of `kseg.layers.DepthwiseConv2D`.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas.
        input_channels: int, channels of the images.
        name: str, the model's name.

    Returns:
        `Backbone` with outputs `c2` to `c5` (24, 40, 112 and 1280 channels in Lite0): the maps
        before each stride, and the last. Any input size; images normalized by `(x - 127) / 128`.

    Raises:
        ValueError: if there are not seven stages, `output_stride` is not 8, 16 or 32, or
            `drop_path_rate` is not in [0, 1).
    """
    if len(channels) != 7 or len(repeats) != 7:
        raise ValueError(
            f"`channels` and `repeats` must have seven numbers. Received: {channels=}, {repeats=}"
        )
    if output_stride not in (8, 16, 32):
        raise ValueError(f"`output_stride` must be 8, 16 or 32. Received: {output_stride=}")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"`drop_path_rate` must be in [0, 1). Received: {drop_path_rate=}")
    settings = {"synchronized": synchronized_batch_norm, "epsilon": BATCH_NORM_EPSILON}
    conv_norm = functools.partial(ConvNorm, max_value=6.0, **settings)
    depthwise_conv_norm = functools.partial(
        DepthwiseConvNorm, max_value=6.0, implementation=depthwise, **settings
    )

    image = keras.Input((None, None, input_channels), name="image")
    x = conv_norm(stem_channels, 3, strides=2, tensorflow_padding=True, name="conv_stem")(image)
    maps, strides = [], []
    stride, dilation, block, num_blocks = 2, 1, 0, sum(repeats)
    for stage in range(7):
        # A convolution whose stride is removed keeps the dilation of the preceding blocks.
        step, first_dilation, removed_stride = 1, dilation, False
        if _STRIDES[stage] == 2:
            maps.append(x)
            strides.append(stride)
            if stride < output_stride:
                stride, step = 2 * stride, 2
            else:
                removed_stride = True
                dilation *= 2
        for index in range(repeats[stage]):
            x = _inverted_residual(
                conv_norm,
                depthwise_conv_norm,
                x,
                channels[stage],
                kernel_size=_KERNEL_SIZES[stage],
                expansion=_EXPANSIONS[stage],
                strides=1 if index else step,
                dilation_rate=dilation if index else first_dilation,
                removed_stride=removed_stride and index == 0,
                drop_path_rate=drop_path_rate * block / num_blocks,
                name=f"blocks_{stage}_{index}",
            )
            block += 1
    maps.append(conv_norm(top_channels, 1, name="conv_head")(x))
    strides.append(stride)
    stages = ("c2", "c3", "c4", "c5")  # Without `maps[0]`, which has stride 2.
    return Backbone(
        image,
        dict(zip(stages, maps[1:], strict=True)),
        strides=dict(zip(stages, strides[1:], strict=True)),
        mean=MEAN,
        std=STD,
        name=name,
    )


def _inverted_residual(
    conv_norm,
    depthwise_conv_norm,
    x,
    channels,
    *,
    kernel_size,
    expansion,
    strides,
    dilation_rate,
    removed_stride,
    drop_path_rate,
    name,
):
    """Expands a map, filters each channel, projects, and adds the shortcut if shapes allow."""
    shortcut = x if x.shape[-1] == channels and strides == 1 and not removed_stride else None
    project = "conv_pw"  # timm's name in blocks without expansion.
    if expansion > 1:
        x = conv_norm(expansion * x.shape[-1], 1, name=f"{name}_conv_pw")(x)
        project = "conv_pwl"
    x = depthwise_conv_norm(
        kernel_size,
        strides=strides,
        dilation_rate=dilation_rate,
        removed_stride=removed_stride,
        name=f"{name}_conv_dw",
    )(x)
    project = conv_norm(channels, 1, relu=False, name=f"{name}_{project}")
    if shortcut is None or drop_path_rate == 0:
        return project(x, residual=shortcut)
    x = DropPath(drop_path_rate, name=f"{name}_drop_path")(project(x))
    return keras.layers.Add(name=f"{name}_add")([x, shortcut])


def scaled(width, depth):
    """Scales Lite0, except its stem, its top and the repeats of its first and last stage.

    Args:
        width: float, factor for the channels, which are rounded to multiples of 8, downward by at
            most 10 %.
        depth: float, factor for the repeats, which are rounded up.

    Returns:
        dict, the arguments `channels` and `repeats` of `build_efficientnet_lite`.
    """

    def rounded(number):
        near = max(8, int(number + 4) // 8 * 8)
        return near + 8 if near < 0.9 * number else near

    first, *middle, last = REPEATS
    return {
        "channels": tuple(rounded(width * number) for number in CHANNELS),
        "repeats": (first, *(math.ceil(depth * number) for number in middle), last),
    }


def _published(name, width, depth):
    def build(**arguments):
        return build_efficientnet_lite(**{"name": name, **scaled(width, depth), **arguments})

    build.__name__ = build.__qualname__ = name
    build.__doc__ = (
        f"Builds EfficientNet-Lite{name[-1]}. Takes the arguments of `build_efficientnet_lite`."
    )
    return build


efficientnet_lite0 = _published("efficientnet_lite0", 1.0, 1.0)
efficientnet_lite1 = _published("efficientnet_lite1", 1.0, 1.1)
efficientnet_lite2 = _published("efficientnet_lite2", 1.1, 1.2)
