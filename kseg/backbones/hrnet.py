"""HRNet (Wang et al., TPAMI 2020) and its published sizes."""

import functools

import keras

from kseg.backbones.backbone import Backbone
from kseg.backbones.blocks import basic_block, bottleneck
from kseg.layers import ConvNorm, ResizeAndSum

STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}


def build_hrnet(
    *,
    channels,
    modules=(1, 4, 3),
    blocks=(4, 4, 4),
    stage1_channels=64,
    stage1_blocks=4,
    stem_channels=64,
    interpolation="bilinear",
    align_corners=False,
    synchronized_batch_norm=False,
    input_channels=3,
    name="hrnet",
):
    """Builds a high-resolution network: parallel branches that exchange features.

    Layers are named after the parameters of the published checkpoints, with `_` for `.`; a
    convolution and its batch norm are one `ConvNorm`.

    Published code differs in the upsampling of the exchange: timm and the ImageNet code use the
    nearest neighbor, the segmentation code bilinear interpolation with a configurable
    `align_corners`. The weights have the same shapes in each; the default is bilinear without
    `align_corners`, as in every other resize of kseg.

    Source: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition",
    TPAMI 2020, and github.com/HRNet/HRNet-Semantic-Segmentation.

    Args:
        channels: four ints, widths of the branches at strides 4, 8, 16, 32.
        modules: three ints, numbers of modules (each ends in an exchange) in stages 2, 3 and 4.
        blocks: three ints, residual blocks of each branch in a module of those stages.
        stage1_channels: int, width of the bottlenecks of stage 1, whose output is four times as
            wide.
        stage1_blocks: int, number of those bottlenecks.
        stem_channels: int, width of the first convolution. The second has 64.
        interpolation, align_corners: upsampling of the exchange, as in `kseg.layers.resize`.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas.
        input_channels: int, channels of the images.
        name: str, the model's name.

    Returns:
        `Backbone` with outputs `c2` to `c5` of `channels` at strides 4, 8, 16, 32. Any input
        size.
    """
    conv_norm = functools.partial(ConvNorm, synchronized=synchronized_batch_norm)
    exchange = functools.partial(
        _exchange,
        conv_norm,
        functools.partial(ResizeAndSum, interpolation=interpolation, align_corners=align_corners),
    )

    image = keras.Input((None, None, input_channels), name="image")
    x = conv_norm(stem_channels, 3, strides=2, name="conv1")(image)
    x = conv_norm(64, 3, strides=2, name="conv2")(x)
    width = 4 * stage1_channels
    for block in range(stage1_blocks):
        shortcut = x
        if x.shape[-1] != width:
            shortcut = conv_norm(width, 1, relu=False, name=f"layer1_{block}_downsample")(x)
        x = bottleneck(conv_norm, x, stage1_channels, shortcut=shortcut, name=f"layer1_{block}")

    branches = [x]
    for stage in (2, 3, 4):
        branches = _transition(conv_norm, branches, channels[:stage], name=f"transition{stage - 1}")
        for module in range(modules[stage - 2]):
            prefix = f"stage{stage}_{module}"
            branches = [
                _residual_blocks(conv_norm, x, blocks[stage - 2], name=f"{prefix}_branches_{index}")
                for index, x in enumerate(branches)
            ]
            branches = exchange(branches, name=f"{prefix}_fuse_layers")
    outputs = dict(zip(STRIDES, branches, strict=True))
    return Backbone(image, outputs, strides=STRIDES, name=name)


def _residual_blocks(conv_norm, x, blocks, name):
    for block in range(blocks):
        x = basic_block(conv_norm, x, x.shape[-1], name=f"{name}_{block}")
    return x


def _transition(conv_norm, branches, channels, name):
    """Adds a coarser branch, and projects the others to their new width where it differs."""
    outputs = []
    for index, width in enumerate(channels):
        if index == len(branches):
            layer = conv_norm(width, 3, strides=2, name=f"{name}_{index}_0")
            outputs.append(layer(branches[-1]))
        elif branches[index].shape[-1] != width:
            outputs.append(conv_norm(width, 3, name=f"{name}_{index}")(branches[index]))
        else:
            outputs.append(branches[index])
    return outputs


def _exchange(conv_norm, resize_and_sum, branches, name):
    """Adds all other branches to each one, brought to its resolution and width."""
    outputs = []
    for target, goal in enumerate(branches):
        width = goal.shape[-1]
        terms = []
        for source, x in enumerate(branches):
            prefix = f"{name}_{target}_{source}"
            if source > target:
                x = conv_norm(width, 1, relu=False, name=prefix)(x)
            for step in range(target - source):  # Each step halves the resolution.
                last = step == target - source - 1
                x = conv_norm(
                    width if last else x.shape[-1],
                    3,
                    strides=2,
                    relu=not last,
                    name=f"{prefix}_{step}",
                )(x)
            terms.append(x)
        outputs.append(resize_and_sum(target, name=f"{name}_{target}_sum")(terms))
    return outputs


def _published(name, channels, documentation, **defaults):
    def build(**arguments):
        return build_hrnet(**{"name": name, "channels": channels, **defaults, **arguments})

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{documentation} Takes the arguments of `build_hrnet`."
    return build


hrnet_w18_small = _published(
    "hrnet_w18_small",
    (16, 32, 64, 128),
    "Builds HRNet-W18-C-Small-v1.",
    modules=(1, 1, 1),
    blocks=(2, 2, 2),
    stage1_channels=32,
    stage1_blocks=1,
)
hrnet_w18 = _published("hrnet_w18", (18, 36, 72, 144), "Builds HRNet-W18.")
hrnet_w32 = _published("hrnet_w32", (32, 64, 128, 256), "Builds HRNet-W32.")
hrnet_w48 = _published("hrnet_w48", (48, 96, 192, 384), "Builds HRNet-W48.")
