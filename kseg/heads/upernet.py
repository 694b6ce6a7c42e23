"""The UPerNet head: a feature pyramid with pyramid pooling."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import functools

import keras
from keras import ops

from kseg.heads.auxiliary import classify
from kseg.layers import ConvNorm, ResizeLike, ceil_divide


def upernet_head(
    features,
    num_classes,
    *,
    channels=512,
    pool_sizes=(1, 2, 3, 6),
    aux_channels=256,
    dropout=0.1,
    align_corners=False,
    synchronized_batch_norm=False,
    name="upernet",
):
    """Applies UPerNet: a feature pyramid over all stages, with pyramid pooling at its top.

    The deepest stage is pooled to a few grids, which are projected, resized to its size,
    concatenated with it and fused. From coarse to fine, the result is upsampled and added to a 1x1
    projection of the next stage; a 3x3 convolution of each sum is a level of the pyramid. All
    levels are fused at the size of the finest.

    Sources: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018, Fig. 4;
    Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017; `UPerHead` of mmsegmentation.

    Args:
        features: dict from `c2` ... `c5` to symbolic float tensors.
        num_classes: int, channels of the logits.
        channels: int, width of the pyramid.
        pool_sizes: ints, rows and columns of the grids that the deepest stage is pooled to.
        aux_channels: int, width of the auxiliary head on `c4`.
        dropout: float in [0, 1), the fraction of channels dropped before the classifiers.
        align_corners: bool, for the bilinear upsampling.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas.
        name: str, prefix of the layer names.

    Returns:
        dict of symbolic tensors: `logits` float32 `(batch, height, width, num_classes)` and
        `features` `(batch, height, width, channels)` at the size of `c2`, `aux_logits` float32 at
        the size of `c4`, and the levels of the pyramid, `fpn_c2` to `fpn_c5`, each with `channels`
        at the size of its stage.
    """
    conv_norm = functools.partial(ConvNorm, synchronized=synchronized_batch_norm)
    resize_like = functools.partial(ResizeLike, align_corners=align_corners)

    *finer, deepest = sorted(features)
    maps = [features[deepest]]
    for index, size in enumerate(pool_sizes):
        x = AdaptiveAveragePooling2D(size, name=f"{name}_psp{index}_pool")(features[deepest])
        x = conv_norm(channels, 1, moving_if_single=True, name=f"{name}_psp{index}")(x)
        maps.append(resize_like(name=f"{name}_psp{index}_resize")(x, like=features[deepest]))
    x = keras.layers.Concatenate(name=f"{name}_psp_concatenate")(maps)
    x = conv_norm(channels, 3, name=f"{name}_psp_fusion")(x)

    pyramid = {deepest: x}
    for level in reversed(finer):
        lateral = conv_norm(channels, 1, name=f"{name}_{level}_lateral")(features[level])
        x = resize_like(name=f"{name}_{level}_resize")(x, like=lateral)
        x = keras.layers.Add(name=f"{name}_{level}_sum")([lateral, x])
        pyramid[level] = conv_norm(channels, 3, name=f"{name}_{level}_fpn")(x)

    finest = pyramid[finer[0]]
    maps = [finest]
    for level in [*finer[1:], deepest]:
        maps.append(resize_like(name=f"{name}_{level}_to_finest")(pyramid[level], like=finest))
    x = keras.layers.Concatenate(name=f"{name}_concatenate")(maps)
    fused = conv_norm(channels, 3, name=f"{name}_fusion")(x)
    outputs = classify(
        conv_norm,
        fused,
        features["c4"],
        num_classes,
        dropout=dropout,
        aux_channels=aux_channels,
        name=name,
    )
    return {**outputs, **{f"fpn_{level}": pyramid[level] for level in sorted(pyramid)}}


def pooling_matrix(size, bins):
    """Builds the matrix that averages `size` rows to `bins` rows.

    Bin i covers the rows in `[floor(i size / bins), ceil((i + 1) size / bins))`: bins overlap if
    the size is not a multiple of their number, and repeat rows if it is smaller.

    Args:
        size: int, or int32 scalar.
        bins: int.

    Returns:
        float32 tensor `(bins, size)`, each of whose rows sums to 1.
    """
    index = ops.arange(bins, dtype="int32")[:, None]
    start, end = index * size // bins, ceil_divide((index + 1) * size, bins)
    row = ops.arange(size, dtype="int32")[None, :]
    inside = ops.cast(ops.logical_and(row >= start, row < end), "float32")
    return inside / ops.cast(end - start, "float32")


@keras.saving.register_keras_serializable(package="kseg")
class AdaptiveAveragePooling2D(keras.layers.Layer):
    """Averages a map of any size to a fixed grid: `pooling_matrix` along both axes.

    Equals PyTorch's `AdaptiveAvgPool2d`; computed in float32.

    Args:
        bins: int, rows and columns of the grid.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`.

    Returns:
        float tensor `(batch, bins, bins, channels)` in the compute dtype.
    """

    def __init__(self, bins, **kwargs):
        super().__init__(**kwargs)
        self.bins = bins

    def call(self, inputs):
        batch, height, width, channels = ops.shape(inputs)
        x = ops.reshape(ops.cast(inputs, "float32"), (batch, height, width * channels))
        x = ops.matmul(pooling_matrix(height, self.bins), x)
        x = ops.reshape(x, (batch, self.bins, width, channels))
        x = ops.matmul(pooling_matrix(width, self.bins), x)
        return ops.cast(x, self.compute_dtype)

    def compute_output_spec(self, inputs):
        shape = (inputs.shape[0], self.bins, self.bins, inputs.shape[3])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "bins": self.bins}
