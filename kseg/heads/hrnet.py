"""The HRNetV2 head, and the concatenation at the finest stage that OCR shares with it."""

import keras

from kseg.heads.classifier import classifier
from kseg.layers import ConvNorm, ResizeLike


def concatenate_at_finest(features, *, interpolation="bilinear", align_corners=False, name):
    """Resizes all maps to the size of the finest and concatenates them, from fine to coarse.

    Args:
        features: dict from `c2` ... to symbolic float tensors `(batch, height, width, channels)`.
        interpolation, align_corners: as in `kseg.layers.resize`.
        name: str, prefix of the layer names.

    Returns:
        symbolic float tensor `(batch, height, width, sum of channels)`.
    """
    levels = sorted(features)
    finest = features[levels[0]]
    maps = [finest]
    for level in levels[1:]:
        resize = ResizeLike(
            interpolation=interpolation, align_corners=align_corners, name=f"{name}_{level}_resize"
        )
        maps.append(resize(features[level], like=finest))
    return keras.layers.Concatenate(name=f"{name}_concatenate")(maps)


def hrnet_head(
    features, num_classes, *, align_corners=False, synchronized_batch_norm=False, name="head"
):
    """Applies the HRNetV2 head: concatenation at stride 4, 1x1 convolution, classifier.

    Source: Wang et al., TPAMI 2020, Fig. 4 (b); `last_layer` of
    github.com/HRNet/HRNet-Semantic-Segmentation, with its redundant bias before the batch norm.

    Args:
        features: dict from `c2` ... `c5` to symbolic float tensors.
        num_classes: int, channels of the logits.
        align_corners: bool, for the bilinear upsampling.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas.
        name: str, prefix of the layer names.

    Returns:
        dict of symbolic tensors at the size of the finest map: `logits` float32
        `(batch, height, width, num_classes)`, `features` `(batch, height, width, sum of
        channels)`.
    """
    x = concatenate_at_finest(features, align_corners=align_corners, name=name)
    x = ConvNorm(
        x.shape[-1],
        1,
        use_bias=True,
        synchronized=synchronized_batch_norm,
        name=f"{name}_fusion",
    )(x)
    return {"logits": classifier(num_classes, name=f"{name}_logits")(x), "features": x}
