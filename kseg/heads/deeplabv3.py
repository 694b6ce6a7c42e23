"""The DeepLabV3 head: atrous spatial pyramid pooling (ASPP)."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import functools

import keras
from keras import ops

from kseg.heads.auxiliary import classify
from kseg.layers import ConvNorm


def deeplabv3_head(
    features,
    num_classes,
    *,
    channels=256,
    aspp_channels=256,
    rates=(12, 24, 36),
    project=False,
    dropout=0.1,
    aux_channels=256,
    synchronized_batch_norm=False,
    name="deeplabv3",
):
    """Applies atrous spatial pyramid pooling to the deepest stage.

    The outputs of a 1x1 convolution and of one 3x3 convolution per dilation rate, and the mean over
    the image, are concatenated and fused by a 3x3 convolution. The rates 12, 24, 36 are for output
    stride 8; halve them at 16. With one image per replica the batch norm after the mean sees a
    single value per channel; it then uses its moving statistics, see
    `kseg.layers.BatchNormalization`.

    Sources: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017,
    Sec. 3.3; the decoder of github.com/hzhupku/RegionContrast, and torchvision's with `project`.

    Args:
        features: dict with `c4` and `c5`, symbolic float tensors.
        num_classes: int, channels of the logits.
        channels: int, width of the fused map.
        aspp_channels: int, width of each branch, and of their projection.
        rates: ints, the dilation rates.
        project: bool. True, as in torchvision: a 1x1 convolution precedes the 3x3 one, and the
            image mean is concatenated last. False, as in RegionContrast and mmsegmentation: no
            such convolution, and the mean is concatenated first.
        dropout: float in [0, 1), the fraction of channels dropped before the classifier.
        aux_channels: int, width of the auxiliary head on `c4`.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas.
        name: str, prefix of the layer names.

    Returns:
        dict of symbolic tensors: `logits` float32 `(batch, height, width, num_classes)` and
        `features` `(batch, height, width, channels)` at the size of `c5`, `aux_logits` float32 at
        the size of `c4`.
    """
    conv_norm = functools.partial(ConvNorm, synchronized=synchronized_batch_norm)
    deepest = features["c5"]

    branches = [conv_norm(aspp_channels, 1, name=f"{name}_aspp_1x1")(deepest)]
    for rate in rates:
        layer = conv_norm(aspp_channels, 3, dilation_rate=rate, name=f"{name}_aspp_rate{rate}")
        branches.append(layer(deepest))
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_aspp_mean")(deepest)
    mean = conv_norm(aspp_channels, 1, moving_if_single=True, name=f"{name}_aspp_pool")(mean)
    mean = BroadcastLike(name=f"{name}_aspp_spread")(mean, like=deepest)
    branches = [*branches, mean] if project else [mean, *branches]
    x = keras.layers.Concatenate(name=f"{name}_aspp_concatenate")(branches)

    if project:
        x = conv_norm(aspp_channels, 1, name=f"{name}_project")(x)
    fused = conv_norm(channels, 3, name=f"{name}_fusion")(x)
    return classify(
        conv_norm,
        fused,
        features["c4"],
        num_classes,
        dropout=dropout,
        aux_channels=aux_channels,
        name=name,
    )


@keras.saving.register_keras_serializable(package="kseg")
class BroadcastLike(keras.layers.Layer):
    """Broadcasts one vector over a whole map.

    Call arguments:
        inputs: float tensor `(batch, 1, 1, channels)`.
        like: tensor `(batch, height, width, any)`, read only for its size.

    Returns:
        float tensor `(batch, height, width, channels)` in the compute dtype.
    """

    def call(self, inputs, like):
        batch, height, width, _ = ops.shape(like)
        return ops.broadcast_to(inputs, (batch, height, width, inputs.shape[-1]))

    def compute_output_spec(self, inputs, like):
        return keras.KerasTensor((*like.shape[:3], inputs.shape[-1]), dtype=self.compute_dtype)


# The name in `.keras` files of earlier versions.
keras.saving.get_custom_objects()["kseg>Spread"] = BroadcastLike
