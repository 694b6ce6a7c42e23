"""ResNet with dilation for lower output strides, its variants v1b to v1d and published sizes."""

import functools

import keras

from kseg.backbones.backbone import Backbone
from kseg.backbones.blocks import basic_block, bottleneck
from kseg.layers import ConvNorm

STAGES = ("c2", "c3", "c4", "c5")


def build_resnet(
    *,
    blocks,
    block="bottleneck",
    channels=(64, 128, 256, 512),
    variant="v1b",
    stem_channels=64,
    output_stride=32,
    multi_grid=None,
    synchronized_batch_norm=False,
    input_channels=3,
    name="resnet",
):
    """Builds a residual network whose last stages may be dilated instead of strided.

    Layers are named after the parameters of torchvision and timm, with `_` for `.`; a convolution
    and its batch norm are one `ConvNorm`. In a bottleneck the 3x3 convolution is strided.

    A stage whose stride would exceed `output_stride` doubles the dilation instead. Its first block
    keeps the dilation of the previous stage, so that published weights still apply: at every
    `stride`-th position the outputs of the dilated network equal those of the strided one.

    Sources: He et al., "Deep Residual Learning", CVPR 2016; He et al., "Bag of Tricks", CVPR 2019
    (v1c, v1d: ResNet-C and -D); Chen et al., "Rethinking Atrous Convolution", 2017 (output stride,
    multi-grid). Names and the pooling of dilated v1d shortcuts are those of timm.

    Args:
        blocks: four ints, numbers of blocks of the stages.
        block: `"basic"` (ResNet-18, -34) or `"bottleneck"`.
        channels: four ints, widths of the stages; the output of a bottleneck is four times as wide.
        variant: `"v1b"`: a stem of one 7x7 convolution. `"v1c"`: a deep stem of three 3x3
            convolutions. `"v1d"`: v1c with strided shortcuts that average 2x2 pixels before their
            1x1 convolution.
        stem_channels: int, output channels of the stem; in v1c and v1d its first two convolutions
            have half as many. 64 in the papers, 128 in RegionContrast's code.
        output_stride: 8, 16 or 32, the stride of `c5`.
        multi_grid: ints that multiply the dilation of the last stage's blocks, cyclically from the
            first block on, such as `(1, 2, 4)` (4, 8 and 16 at output stride 8); or None.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas.
        input_channels: int, channels of the images.
        name: str, the model's name.

    Returns:
        `Backbone` with outputs `c2` to `c5`. Any input size.

    Raises:
        ValueError: if `block`, `variant` or `output_stride` is not one of the above,
            `stem_channels` is odd in a deep stem, or `multi_grid` is empty.
    """
    if block not in ("basic", "bottleneck"):
        raise ValueError(f"`block` must be 'basic' or 'bottleneck'. Received: {block=}")
    if variant not in ("v1b", "v1c", "v1d"):
        raise ValueError(f"`variant` must be 'v1b', 'v1c' or 'v1d'. Received: {variant=}")
    if output_stride not in (8, 16, 32):
        raise ValueError(f"`output_stride` must be 8, 16 or 32. Received: {output_stride=}")
    if variant != "v1b" and stem_channels % 2:
        raise ValueError(
            f"`stem_channels` of a deep stem must be even: half of it is the width of its first "
            f"convolutions. Received: {stem_channels=}"
        )
    if multi_grid is not None and not multi_grid:
        raise ValueError("`multi_grid` must not be empty. Received: (). Use None for no grid.")
    conv_norm = functools.partial(ConvNorm, synchronized=synchronized_batch_norm)

    image = keras.Input((None, None, input_channels), name="image")
    if variant == "v1b":
        x = conv_norm(stem_channels, 7, strides=2, name="conv1")(image)
    else:
        x = conv_norm(stem_channels // 2, 3, strides=2, name="conv1_0")(image)
        x = conv_norm(stem_channels // 2, 3, name="conv1_3")(x)
        x = conv_norm(stem_channels, 3, name="conv1_6")(x)
    # Zeros are equivalent to -inf here: no value is negative after a ReLU.
    x = keras.layers.ZeroPadding2D(1, name="maxpool_pad")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, name="maxpool")(x)

    outputs, strides = {}, {}
    stride, dilation = 4, 1
    for index, stage in enumerate(STAGES):
        first_dilation, step = dilation, 1
        if index > 0 and stride < output_stride:
            stride, step = 2 * stride, 2
        elif index > 0:
            dilation *= 2
        x = _stage(
            conv_norm,
            x,
            channels[index],
            block=block,
            strides=step,
            dilations=_dilations(
                blocks[index], first_dilation, dilation, multi_grid if stage == "c5" else None
            ),
            average_shortcut=variant == "v1d",
            name=f"layer{index + 1}",
        )
        outputs[stage], strides[stage] = x, stride
    return Backbone(image, outputs, strides=strides, name=name)


def _dilations(blocks, first, others, grid):
    """Returns the dilation rates of the (first, other) 3x3 convolutions of each block."""
    if grid is None:
        return [(first, others)] + [(others, others)] * (blocks - 1)
    rates = [others * grid[index % len(grid)] for index in range(blocks)]
    return [(rate, rate) for rate in rates]


def _stage(conv_norm, x, channels, *, block, strides, dilations, average_shortcut, name):
    build_block, width = basic_block, channels
    if block == "bottleneck":
        build_block, width = bottleneck, 4 * channels
    shortcut = None
    if strides > 1 or x.shape[-1] != width:
        shortcut = x
        if average_shortcut and (strides > 1 or dilations[0][1] > 1):
            shortcut = _average(x, strides, name=f"{name}_0_downsample_pool")
        shortcut = conv_norm(
            width,
            1,
            strides=1 if average_shortcut else strides,
            relu=False,
            name=f"{name}_0_downsample",
        )(shortcut)
    for index, rates in enumerate(dilations):
        x = build_block(
            conv_norm,
            x,
            channels,
            strides=strides if index == 0 else 1,
            dilation_rates=rates,
            shortcut=shortcut if index == 0 else None,
            name=f"{name}_{index}",
        )
    return x


def _average(x, strides, name):
    """Averages 2x2 pixels. With stride 1, zeros after the last row and column keep the size."""
    if strides > 1:
        return keras.layers.AveragePooling2D(2, padding="same", name=name)(x)
    x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(x)
    return keras.layers.AveragePooling2D(2, strides=1, name=name)(x)


def _published(name, blocks, block, documentation):
    def build(**arguments):
        return build_resnet(**{"name": name, "blocks": blocks, "block": block, **arguments})

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{documentation} Takes the arguments of `build_resnet`."
    return build


resnet18 = _published("resnet18", (2, 2, 2, 2), "basic", "Builds ResNet-18.")
resnet34 = _published("resnet34", (3, 4, 6, 3), "basic", "Builds ResNet-34.")
resnet50 = _published("resnet50", (3, 4, 6, 3), "bottleneck", "Builds ResNet-50.")
resnet101 = _published("resnet101", (3, 4, 23, 3), "bottleneck", "Builds ResNet-101.")
