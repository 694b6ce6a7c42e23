"""The object-contextual head (OCR) and its two attention layers."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import functools

import keras
from keras import ops

from kseg.heads.auxiliary import auxiliary_head
from kseg.heads.classifier import classifier
from kseg.heads.hrnet import concatenate_at_finest
from kseg.layers import ConvNorm, ResizeLike


def ocr_head(
    features,
    num_classes,
    *,
    channels=512,
    key_channels=256,
    source="pyramid",
    dropout=0.05,
    align_corners=False,
    synchronized_batch_norm=False,
    name="ocr",
):
    """Applies the object-contextual head: pixels attend to the regions of the classes.

    The softmax of coarse logits over the pixels yields one weight map per class; the mean of the
    pixel features under it represents that class. Every pixel attends to these representations, and
    the result is concatenated with its own features.

    Source: Yuan et al., "Object-Contextual Representations for Semantic Segmentation", ECCV 2020;
    `seg_hrnet_ocr.py` of github.com/HRNet/HRNet-Semantic-Segmentation, with its biases, for HRNet;
    Sec. 4.2 of the paper for dilated ResNet.

    Args:
        features: dict from `c2` ... `c5` to symbolic float tensors.
        num_classes: int, channels of the logits.
        channels: int, width of the pixel features and of the output.
        key_channels: int, width of queries, keys and values.
        source: `"pyramid"`: pixel features and coarse logits come from all stages, resized to the
            finest and concatenated (HRNet). `"deepest"`: the pixel features come from `c5`, the
            coarse logits from `c4` by an auxiliary head (dilated ResNet).
        dropout: float in [0, 1), the fraction of channels dropped before the classifier.
        align_corners: bool, for the bilinear upsampling.
        synchronized_batch_norm: bool, whether batch-norm statistics span all replicas.
        name: str, prefix of the layer names.

    Returns:
        dict of symbolic tensors at the size of the finest map (`"pyramid"`) or of `c5`
        (`"deepest"`): `logits` and `aux_logits` (the coarse logits; with `"deepest"` at the size of
        `c4`) float32 `(batch, height, width, num_classes)`, `features`
        `(batch, height, width, channels)`.

    Raises:
        ValueError: if `source` is unknown.
    """
    if source not in ("pyramid", "deepest"):
        raise ValueError(f"`source` must be 'pyramid' or 'deepest'. Received: {source=}")
    conv_norm = functools.partial(ConvNorm, synchronized=synchronized_batch_norm)

    if source == "pyramid":
        x = concatenate_at_finest(features, align_corners=align_corners, name=name)
        coarse = conv_norm(x.shape[-1], 1, use_bias=True, name=f"{name}_aux_fusion")(x)
        regions = aux_logits = classifier(num_classes, name=f"{name}_aux_logits")(coarse)
    else:
        x = features["c5"]
        aux_logits, _ = auxiliary_head(
            conv_norm,
            features["c4"],
            num_classes,
            channels=channels,
            dropout=dropout,
            name=f"{name}_aux",
        )
        resize = ResizeLike(align_corners=align_corners, dtype="float32", name=f"{name}_regions")
        regions = resize(aux_logits, like=x)

    pixels = conv_norm(channels, 3, use_bias=True, name=f"{name}_pixels")(x)
    objects = ObjectRegions(name=f"{name}_objects")(pixels, regions)

    query = conv_norm(key_channels, 1, name=f"{name}_query1")(pixels)
    query = conv_norm(key_channels, 1, name=f"{name}_query2")(query)
    key = conv_norm(key_channels, 1, name=f"{name}_key1")(objects)
    key = conv_norm(key_channels, 1, name=f"{name}_key2")(key)
    value = conv_norm(key_channels, 1, name=f"{name}_value")(objects)
    context = ObjectAttention(name=f"{name}_attention")(query, key, value)
    context = conv_norm(channels, 1, name=f"{name}_context")(context)

    joined = keras.layers.Concatenate(name=f"{name}_join")([context, pixels])
    outputs = conv_norm(channels, 1, name=f"{name}_fusion")(joined)
    dropped = keras.layers.SpatialDropout2D(dropout, name=f"{name}_dropout")(outputs)
    logits = classifier(num_classes, name=f"{name}_logits")(dropped)
    return {"logits": logits, "aux_logits": aux_logits, "features": outputs}


@keras.saving.register_keras_serializable(package="kseg")
class ObjectRegions(keras.layers.Layer):
    """Represents each class by the mean of the pixel features under its soft region.

    `f_k = sum_i softmax_i(logits_ik) x_i`, i over the pixels of one image (Yuan et al., Eq. 2).
    Computed in float32: the weights in a large image are too small for sums in bfloat16.

    Call arguments:
        pixels: float tensor `(batch, height, width, channels)`.
        logits: float tensor `(batch, height, width, num_classes)`.

    Returns:
        float32 tensor `(batch, num_classes, 1, channels)`, of rank 4 so that convolutions apply.
    """

    def __init__(self, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)

    def call(self, pixels, logits):
        weights = ops.softmax(_flatten_pixels(logits), axis=1)
        objects = ops.matmul(ops.transpose(weights, (0, 2, 1)), _flatten_pixels(pixels))
        return ops.expand_dims(objects, axis=2)

    def compute_output_spec(self, pixels, logits):
        shape = (pixels.shape[0], logits.shape[-1], 1, pixels.shape[-1])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)


@keras.saving.register_keras_serializable(package="kseg")
class ObjectAttention(keras.layers.Layer):
    """Lets each pixel attend to the objects: scaled dot products, softmax over the objects.

    `y_i = sum_k softmax_k(q_i . k_k / sqrt(channels)) v_k` (Yuan et al., Eq. 3).

    Call arguments:
        query: float tensor `(batch, height, width, channels)`.
        key: float tensor `(batch, objects, 1, channels)`.
        value: float tensor `(batch, objects, 1, value_channels)`.

    Returns:
        float tensor `(batch, height, width, value_channels)` in the compute dtype.
    """

    def call(self, query, key, value):
        key, value = ops.squeeze(key, axis=2), ops.squeeze(value, axis=2)
        logits = ops.matmul(_flatten_pixels(query), ops.transpose(key, (0, 2, 1)))
        logits = ops.cast(logits, "float32") * query.shape[-1] ** -0.5
        weights = ops.cast(ops.softmax(logits, axis=-1), value.dtype)
        shape = (*ops.shape(query)[:3], value.shape[-1])
        return ops.reshape(ops.matmul(weights, value), shape)

    def compute_output_spec(self, query, key, value):
        shape = (*query.shape[:3], value.shape[-1])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)


def _flatten_pixels(x):
    return ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1]))
