"""Swin transformers: attention within windows that are shifted in every second block."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import math

import keras
import numpy as np
from keras import ops

from kseg.backbones.backbone import Backbone
from kseg.backend import tf
from kseg.backend.gradients import upstream_of
from kseg.backend.products import matmul
from kseg.layers import Conv2D, ceil_divide, drop_path_scales, pad_to_multiple

STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
LAYER_NORM_EPSILON = 1e-5
# Added to the scores of positions that only the cyclic shift made neighbors; -100 as in the
# original, not -inf.
MASKED = -100.0

_ROOT_HALF = math.sqrt(0.5)


def build_swin(
    *,
    embed_dim,
    depths,
    num_heads,
    window_size=7,
    mlp_ratio=4.0,
    drop_path_rate=0.3,
    qkv_bias=True,
    output_norms=True,
    synchronized_batch_norm=False,
    input_channels=3,
    name="swin",
):
    """Builds a Swin transformer for dense prediction.

    Layers are named after the parameters of Microsoft's segmentation code, with `_` for `.`; a
    block is one layer. As in that code, each block pads its map with zeros at the bottom and right
    to multiples of the window size and then shifts it. Unlike in the classification code, the
    window always has its full size, and every second block shifts even if one window covers the
    whole map.

    Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
    ICCV 2021; github.com/SwinTransformer/Swin-Transformer-Semantic-Segmentation.

    Args:
        embed_dim: int, width of the first stage; each later stage is twice as wide.
        depths: four ints, numbers of blocks of the stages. Every second block shifts by half a
            window.
        num_heads: four ints, attention heads of the stages.
        window_size: int, rows and columns of a window.
        mlp_ratio: float, hidden width of a block's MLP relative to the stage's width.
        drop_path_rate: float in [0, 1), the probability that the last block drops each of its
            residual branches in training, independently for each sample (stochastic depth, Huang
            et al., ECCV 2016). The rate rises linearly from 0 in the first block.
        qkv_bias: bool, whether queries, keys and values have biases.
        output_norms: bool, whether each output has its own layer norm, as in segmentation networks.
            timm's feature extractors have none.
        synchronized_batch_norm: bool. No effect: a Swin has no batch norm.
        input_channels: int, channels of the images.
        name: str, the model's name.

    Returns:
        `Backbone` with outputs `c2` to `c5` of 1, 2, 4, 8 times `embed_dim` channels at strides 4,
        8, 16, 32. Any input size.

    Raises:
        ValueError: if the channels of a stage are not divisible by its heads, `depths` or
            `num_heads` does not have four numbers, or `drop_path_rate` is not in [0, 1).
    """
    del synchronized_batch_norm
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"`drop_path_rate` must be in [0, 1). Received: {drop_path_rate=}")
    if len(depths) != 4 or len(num_heads) != 4:
        raise ValueError(
            f"`depths` and `num_heads` must have four numbers. Received: {depths=}, {num_heads=}"
        )
    rates = iter(np.linspace(0.0, drop_path_rate, sum(depths)).tolist())
    shift = window_size // 2

    image = keras.Input((None, None, input_channels), name="image")
    x = PatchEmbedding(embed_dim, name="patch_embed")(image)
    outputs = {}
    for stage, key in enumerate(STRIDES):
        if stage > 0:
            x = PatchMerging(name=f"layers_{stage - 1}_downsample")(x)
        mask = ShiftMask(window_size, shift, name=f"layers_{stage}_shift_mask")(x)
        for index in range(depths[stage]):
            shifts = shift > 0 and index % 2 == 1
            block = SwinBlock(
                num_heads[stage],
                window_size,
                shift=shift if shifts else 0,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path_rate=next(rates),
                name=f"layers_{stage}_blocks_{index}",
            )
            x = block(x, mask) if shifts else block(x)
        outputs[key] = LayerNorm(name=f"norm{stage}")(x) if output_norms else x
    return Backbone(image, outputs, strides=STRIDES, name=name)


def relative_position_index(window_size):
    """Indexes the offsets between the positions of a window.

    Args:
        window_size: int.

    Returns:
        int32 array `(window_size^2, window_size^2)`: for each query (row) and key (column) the row
        of the bias table for the offset from the key to the query. The table starts at offset
        `1 - window_size` in both directions; the horizontal offset varies fastest.
    """
    position = np.arange(window_size)
    offset = position[:, None] - position[None, :] + window_size - 1
    index = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]
    return index.reshape(window_size**2, window_size**2).astype("int32")


def shift_mask(height, width, window_size, shift):
    """Masks attention between positions that only the cyclic shift brought into one window.

    Args:
        height, width: ints or int32 scalars, the size of the map before padding.
        window_size, shift: ints, 0 < shift < window_size.

    Returns:
        float32 tensor `(windows, window_size^2, window_size^2)`: 0 where two positions are in the
        same region of the map, else -100.
    """

    def regions(size):
        """Returns the region of each row (or column) of the shifted map."""
        size = ceil_divide(size, window_size) * window_size
        position = ops.arange(size)
        last = ops.cast(position >= size - window_size, "int32")
        wrapped = ops.cast(position >= size - shift, "int32")
        return ops.reshape(last + wrapped, (-1, window_size))

    rows, columns = regions(height), regions(width)
    region = 3 * rows[:, None, :, None] + columns[None, :, None, :]
    region = ops.reshape(region, (-1, window_size**2))
    return MASKED * ops.cast(region[:, :, None] != region[:, None, :], "float32")


def partition_windows(x, window_size, shift, groups):
    """Partitions a map into windows, and its channels into groups.

    Args:
        x: tensor `(batch, height, width, groups * dim)`.
        window_size: int. The map is zero-padded at the bottom and right to multiples of it.
        shift: int. The padded map is rolled up and to the left by this many positions.
        groups: int.

    Returns:
        tensor `(groups, batch * windows, window_size^2, dim)`, windows and positions in row-major
        order.
    """
    batch, height, width, channels = ops.shape(x)
    x = pad_to_multiple(x, window_size)
    if shift:
        x = ops.roll(x, (-shift, -shift), axis=(1, 2))
    rows, columns = ceil_divide(height, window_size), ceil_divide(width, window_size)
    dim = channels // groups
    x = ops.reshape(x, (batch * rows, window_size, columns, window_size, groups, dim))
    x = ops.transpose(x, (4, 0, 2, 1, 3, 5))
    return ops.reshape(x, (groups, -1, window_size**2, dim))


def merge_windows(windows, window_size, shift, size):
    """Reassembles windows into a map: the inverse of `partition_windows`.

    Args:
        windows: tensor `(groups, batch * windows, window_size^2, dim)`.
        window_size, shift: as in `partition_windows`.
        size: `(batch, height, width)`, ints or int32 scalars.

    Returns:
        tensor `(batch, height, width, groups * dim)`.
    """
    batch, height, width = size
    groups, dim = windows.shape[0], windows.shape[3]
    rows, columns = ceil_divide(height, window_size), ceil_divide(width, window_size)
    x = ops.reshape(windows, (groups, batch * rows, columns, window_size, window_size, dim))
    x = ops.transpose(x, (1, 3, 2, 4, 0, 5))
    x = ops.reshape(x, (batch, rows * window_size, columns * window_size, groups * dim))
    if shift:
        x = ops.roll(x, (shift, shift), axis=(1, 2))
    # The gradient of `x[...]` is ten times as slow on TensorFlow.
    return ops.slice(x, (0, 0, 0, 0), (batch, height, width, groups * dim))


def _linear(x, kernel, bias=None, activation=None):
    """Returns `activation(x kernel + bias)` over the last axis, as one matrix product."""
    shape = ops.shape(x)
    x = matmul(ops.reshape(x, (-1, shape[-1])), kernel)
    if bias is not None:
        # The gradient of `+` is slower on TensorFlow and has more nodes.
        x = x + bias if tf is None else tf.nn.bias_add(x, ops.convert_to_tensor(bias))
    if activation is not None:
        x = activation(x)
    return ops.reshape(x, (*shape[:-1], kernel.shape[1]))


@ops.custom_gradient
def standardize(x):
    """Standardizes each pixel's vector to zero mean and unit variance: an unweighted layer norm.

    `(x - mean) / sqrt(variance + 1e-5)`, in float32. The gradient needs only the outputs and one
    number per pixel, so that the inputs need not be kept.

    Args:
        x: float tensor `(..., channels)`.

    Returns:
        float tensor like `x`.
    """
    centered = ops.cast(x, "float32")
    centered = centered - ops.mean(centered, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centered), axis=-1, keepdims=True)
    inverse_std = ops.rsqrt(variance + LAYER_NORM_EPSILON)
    outputs = ops.cast(centered * inverse_std, x.dtype)

    def gradient(*arguments, upstream=None):
        upstream = ops.cast(upstream_of(arguments, upstream), "float32")
        z = ops.cast(outputs, "float32")
        through_std = z * ops.mean(upstream * z, axis=-1, keepdims=True)
        through_mean = ops.mean(upstream, axis=-1, keepdims=True)
        return ops.cast((upstream - through_std - through_mean) * inverse_std, x.dtype)

    return outputs, gradient


def _gelu(x):
    # `ops.gelu` uses erfc on TensorFlow, for which ONNX has no operator.
    return 0.5 * x * (1.0 + ops.erf(x * _ROOT_HALF))


@ops.custom_gradient
def scaled_gelu(u):
    """Returns `u (1 + erf(u))`, which is `sqrt(2) gelu(sqrt(2) u)`.

    GELU (Hendrycks and Gimpel, 2016) in fewer passes over memory: the factors are folded into the
    adjacent weights, and the gradient recomputes erf instead of keeping it.

    Args:
        u: float tensor.

    Returns:
        float tensor like `u`.
    """

    def gradient(*arguments, upstream=None):
        slope = u / ops.exp(u * u) * (2.0 / math.sqrt(math.pi)) + (ops.erf(u) + 1.0)
        return slope * upstream_of(arguments, upstream)

    return u * (ops.erf(u) + 1.0), gradient


@ops.custom_gradient
def attend(query, key, value, bias):
    """Attends within windows: `softmax(query key^T + bias) value`, softmax in float32.

    Args:
        query, key, value: float tensors `(heads, batch * windows, positions, dim)`.
        bias: float32 tensor `(heads, windows or 1, positions, positions)`.

    Returns:
        float tensor like `value`.
    """
    heads, windows, positions, _ = ops.shape(bias)
    by_image = (heads, -1, windows, positions, positions)

    scores = ops.cast(matmul(query, key, transpose_b=True), "float32")
    weights = ops.softmax(ops.reshape(scores, by_image) + bias[:, None])
    weights = ops.reshape(ops.cast(weights, value.dtype), (heads, -1, positions, positions))
    outputs = matmul(weights, value)

    def gradient(*arguments, upstream=None):
        upstream = upstream_of(arguments, upstream)
        d_weights = ops.cast(matmul(upstream, value, transpose_b=True), "float32")
        # sum_j weights_ij d_weights_ij, as a cheaper sum: over dim instead of positions.
        mean = ops.sum(ops.cast(upstream * outputs, "float32"), axis=-1, keepdims=True)
        d_scores = (d_weights - mean) * ops.cast(weights, "float32")
        d_bias = ops.sum(ops.reshape(d_scores, by_image), axis=1)
        d_scores = ops.cast(d_scores, value.dtype)
        return (
            matmul(d_scores, key),
            matmul(d_scores, query, transpose_a=True),
            matmul(weights, upstream, transpose_a=True),
            d_bias,
        )

    return outputs, gradient


def _register(cls):
    return keras.saving.register_keras_serializable(package="kseg")(cls)


def _initializer():
    return keras.initializers.TruncatedNormal(stddev=0.02)


@_register
class Linear(keras.layers.Layer):
    """A dense layer over the channels.

    Args:
        units: int, output channels.
        use_bias: bool.

    Call arguments:
        inputs: float tensor `(..., channels)`.

    Returns:
        float tensor `(..., units)` in the compute dtype.
    """

    def __init__(self, units, *, use_bias=True, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.use_bias = use_bias

    def build(self, input_shape):
        shape = (input_shape[-1], self.units)
        self.kernel = self.add_weight(shape=shape, initializer=_initializer(), name="kernel")
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, inputs):
        return _linear(inputs, self.kernel, self.bias)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((*inputs.shape[:-1], self.units), dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "use_bias": self.use_bias}


@_register
class LayerNorm(keras.layers.Layer):
    """Layer norm over the channels (Ba et al., 2016), with statistics in float32.

    `gamma (x - mean) / sqrt(variance + 1e-5) + beta`.

    Call arguments:
        inputs: float tensor `(..., channels)`.

    Returns:
        float tensor of the same shape in the compute dtype.
    """

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")

    def call(self, inputs):
        return standardize(inputs) * self.gamma + self.beta

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)


def _reduced(sides, stride):
    return [side if side is None else ceil_divide(side, stride) for side in sides]


@_register
class PatchEmbedding(keras.layers.Layer):
    """Projects patches of 4 x 4 pixels to vectors, and applies a layer norm.

    Args:
        embed_dim: int, output channels.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`. It is zero-padded at the bottom
            and right to multiples of 4.

    Returns:
        float tensor `(batch, ceil(height / 4), ceil(width / 4), embed_dim)` in the compute dtype.
    """

    def __init__(self, embed_dim, **kwargs):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.proj = Conv2D(
            embed_dim,
            4,
            strides=4,
            padding="valid",
            use_bias=True,
            kernel_initializer=_initializer(),
            dtype=self.dtype_policy,
            name="proj",
        )
        self.norm = LayerNorm(dtype=self.dtype_policy, name="norm")

    def build(self, input_shape):
        self.proj.build(input_shape)
        self.norm.build((None, self.embed_dim))

    def call(self, inputs):
        return self.norm.call(self.proj.call(pad_to_multiple(inputs, 4)))

    def compute_output_spec(self, inputs):
        shape = (inputs.shape[0], *_reduced(inputs.shape[1:3], 4), self.embed_dim)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "embed_dim": self.embed_dim}


@_register
class PatchMerging(keras.layers.Layer):
    """Downsamples by 2: concatenates 2 x 2 pixels, normalizes, projects to twice the width.

    The pixels are concatenated in the order top left, bottom left, top right, bottom right.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`. It is zero-padded at the bottom
            and right to even sides.

    Returns:
        float tensor `(batch, ceil(height / 2), ceil(width / 2), 2 * channels)` in the compute
        dtype.
    """

    def build(self, input_shape):
        channels = input_shape[-1]
        self.norm = LayerNorm(dtype=self.dtype_policy, name="norm")
        self.norm.build((None, 4 * channels))
        self.reduction = Linear(
            2 * channels, use_bias=False, dtype=self.dtype_policy, name="reduction"
        )
        self.reduction.build((None, 4 * channels))

    def call(self, inputs):
        x = pad_to_multiple(inputs, 2)
        batch, height, width, channels = ops.shape(x)
        x = ops.reshape(x, (batch, height // 2, 2, width // 2, 2, channels))
        x = ops.transpose(x, (0, 1, 3, 4, 2, 5))
        x = ops.reshape(x, (batch, height // 2, width // 2, 4 * channels))
        return self.reduction.call(self.norm.call(x))

    def compute_output_spec(self, inputs):
        shape = (inputs.shape[0], *_reduced(inputs.shape[1:3], 2), 2 * inputs.shape[3])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)


@_register
class ShiftMask(keras.layers.Layer):
    """Computes `shift_mask` for the size of a map, once for all blocks of a stage.

    Args:
        window_size, shift: ints.

    Call arguments:
        inputs: tensor `(batch, height, width, any)`, read only for its size.

    Returns:
        float32 tensor `(windows, window_size^2, window_size^2)`.
    """

    def __init__(self, window_size, shift, *, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, autocast=False, **kwargs)
        self.window_size = window_size
        self.shift = shift

    def call(self, inputs):
        return shift_mask(*ops.shape(inputs)[1:3], self.window_size, self.shift)

    def compute_output_spec(self, inputs):
        positions = self.window_size**2
        return keras.KerasTensor((None, positions, positions), dtype="float32")

    def get_config(self):
        return {**super().get_config(), "window_size": self.window_size, "shift": self.shift}


@_register
class SwinBlock(keras.layers.Layer):
    """Attention within windows and an MLP, each after a layer norm and with a shortcut.

    `y = x + attention(norm1(x))`, then `y + mlp(norm2(y))` (Liu et al., Eq. 3). The attention has a
    learned bias for each offset between two positions (Eq. 4).

    Args:
        num_heads: int, attention heads, each `channels / num_heads` wide.
        window_size: int, rows and columns of a window.
        shift: int, cyclic shift of the map before its partition into windows.
        mlp_ratio: float, hidden width of the MLP relative to the channels.
        qkv_bias: bool, whether queries, keys and values have biases.
        drop_path_rate: float in [0, 1), the probability of dropping each branch in training,
            independently for each sample. Kept branches are scaled up, which preserves the
            expected value.
        seed: int or None, for the drops.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`.
        shift_mask: the result of `shift_mask` if the block shifts, else None.
        training: bool, whether branches are dropped.

    Returns:
        float tensor like `inputs` in the compute dtype.

    Raises:
        ValueError: if the channels are not divisible by `num_heads`.
    """

    def __init__(
        self,
        num_heads,
        window_size,
        *,
        shift=0,
        mlp_ratio=4.0,
        qkv_bias=True,
        drop_path_rate=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.mlp_ratio = mlp_ratio
        self.qkv_bias = qkv_bias
        self.drop_path_rate = drop_path_rate
        self.seed = seed
        if drop_path_rate > 0:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.num_heads:
            raise ValueError(
                f"The channels must be divisible by `num_heads`. Received: {channels} channels, "
                f"num_heads={self.num_heads}"
            )

        def norm(name):
            layer = LayerNorm(dtype=self.dtype_policy, name=name)
            layer.build((None, channels))
            return layer

        def linear(inputs, units, name, use_bias=True):
            layer = Linear(units, use_bias=use_bias, dtype=self.dtype_policy, name=name)
            layer.build((None, inputs))
            return layer

        hidden = int(self.mlp_ratio * channels)
        self.norm1 = norm("norm1")
        self.qkv = linear(channels, 3 * channels, "attn_qkv", self.qkv_bias)
        self.position_bias = self.add_weight(
            shape=((2 * self.window_size - 1) ** 2, self.num_heads),
            initializer=_initializer(),
            autocast=False,
            name="attn_relative_position_bias_table",
        )
        self.proj = linear(channels, channels, "attn_proj")
        self.norm2 = norm("norm2")
        self.fc1 = linear(channels, hidden, "mlp_fc1")
        self.fc2 = linear(hidden, channels, "mlp_fc2")
        self._index = relative_position_index(self.window_size).reshape(-1)
        query_scale = (channels // self.num_heads) ** -0.5
        self._kernel_scale = np.repeat([query_scale, 1.0, 1.0], channels).astype("float32")
        self._bias_scale = np.repeat([query_scale, 0.0, 0.0], channels).astype("float32")

    def call(self, inputs, shift_mask=None, training=None):
        keep_attention, keep_mlp = self._draw(inputs, training)
        x = inputs + keep_attention(self._attention(self.norm1.call(inputs), shift_mask))
        return x + keep_mlp(self._mlp(x, training))

    def _draw(self, inputs, training):
        """Returns two functions that drop samples, one for each branch."""
        if not training or self.drop_path_rate == 0:
            return (lambda x: x,) * 2
        scales = drop_path_scales(inputs, self.drop_path_rate, self.seed_generator, branches=2)
        scales = ops.cast(scales, self.compute_dtype)
        return (lambda x: x * scales[0]), (lambda x: x * scales[1])

    def _attention(self, x, shift_mask):
        *size, channels = ops.shape(x)
        bias, output_bias = None, self.proj.bias
        if self.qkv_bias:
            # The original pads the windows before this product, so that the keys and values of the
            # padding equal the biases. Here they are padded after it. A key bias adds the same to
            # all scores of a query, which has no effect; a value bias passes through the attention,
            # whose weights sum to 1. The padding may therefore be zero if the key bias is omitted
            # and the value bias is added after the attention.
            bias = self.qkv.bias * ops.cast(self._bias_scale, x.dtype)
            value_bias = self.qkv.bias[None, 2 * channels :]
            output_bias = output_bias + matmul(value_bias, self.proj.kernel)[0]
        qkv = _linear(x, self.qkv.kernel * ops.cast(self._kernel_scale, x.dtype), bias)
        qkv = partition_windows(qkv, self.window_size, self.shift, 3 * self.num_heads)
        x = attend(*ops.split(qkv, 3), self._score_bias(shift_mask))
        x = merge_windows(x, self.window_size, self.shift, size)
        return _linear(x, self.proj.kernel, output_bias)

    def _score_bias(self, shift_mask):
        """Bias of the attention scores; float32 `(heads, windows or 1, positions, positions)`."""
        positions = self.window_size**2
        # Along axis 1: the gradient of a look-up along axis 0 is sparse in TensorFlow.
        bias = ops.take(ops.transpose(self.position_bias), self._index, axis=1)
        bias = ops.reshape(bias, (self.num_heads, 1, positions, positions))
        return bias if shift_mask is None else bias + ops.cast(shift_mask, "float32")

    def _mlp(self, x, training):
        """Applies layer norm and MLP."""
        if not training:
            # The form of GELU that converters recognize: LiteRT supports erf only as part of it.
            x = _linear(self.norm2.call(x), self.fc1.kernel, self.fc1.bias, _gelu)
            return _linear(x, self.fc2.kernel, self.fc2.bias)
        # gelu(x) = scaled_gelu(x / sqrt(2)) / sqrt(2), with the factors folded into the weights.
        norm, fc1, fc2 = self.norm2, self.fc1, self.fc2
        x = standardize(x) * (norm.gamma * _ROOT_HALF) + norm.beta * _ROOT_HALF
        x = scaled_gelu(_linear(x, fc1.kernel, fc1.bias * _ROOT_HALF))
        return _linear(x, fc2.kernel * _ROOT_HALF, fc2.bias)

    def compute_output_spec(self, inputs, shift_mask=None, training=None):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "window_size": self.window_size,
            "shift": self.shift,
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "drop_path_rate": self.drop_path_rate,
            "seed": self.seed,
        }


def _published(name, embed_dim, depths, num_heads, documentation, **defaults):
    settings = {"name": name, "embed_dim": embed_dim, "depths": depths, "num_heads": num_heads}

    def build(**arguments):
        return build_swin(**{**settings, **defaults, **arguments})

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{documentation} Takes the arguments of `build_swin`."
    return build


_SMALL, _BASE, _LARGE = (3, 6, 12, 24), (4, 8, 16, 32), (6, 12, 24, 48)
swin_t = _published("swin_t", 96, (2, 2, 6, 2), _SMALL, "Builds Swin-T.")
swin_s = _published("swin_s", 96, (2, 2, 18, 2), _SMALL, "Builds Swin-S.")
swin_b = _published("swin_b", 128, (2, 2, 18, 2), _BASE, "Builds Swin-B.")
swin_l = _published("swin_l", 192, (2, 2, 18, 2), _LARGE, "Builds Swin-L.")
# Window size of the weights that were pretrained on images of 384 x 384.
swin_b_384 = _published(
    "swin_b_384", 128, (2, 2, 18, 2), _BASE, "Builds Swin-B with windows of 12.", window_size=12
)
swin_l_384 = _published(
    "swin_l_384", 192, (2, 2, 18, 2), _LARGE, "Builds Swin-L with windows of 12.", window_size=12
)
