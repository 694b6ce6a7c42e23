"""The layers that all networks share: convolution, batch norm, resizing, normalisation.

They exist for two reasons. A layer here hides what `keras.ops` lacks (resizing to a size known at
run time), and it puts few nodes into TensorFlow's graph: a deep HRNet has 300 convolutions, and
tracing and optimising their graph is what its first training step waits for.
"""

# ruff: noqa: D102 - what Keras calls (`call`, `build`, `get_config`...) is documented by its class.

import functools
import math

import keras
import numpy as np
from keras import ops

from kseg import replicas

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9  # PyTorch counts the other way round and calls it 0.1.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def _register(cls):
    return keras.saving.register_keras_serializable(package="kseg")(cls)


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


@_register
class Conv2D(keras.layers.Conv2D):
    """A convolution that pads both sides alike, as PyTorch does.

    `padding="same"` adds `dilation * (kernel_size - 1) // 2` zeros on each side; the output has
    `ceil(size / stride)` rows and columns. Keras and TensorFlow pad a strided convolution on the
    far side first, which shifts the map by a pixel against published weights.

    Args:
        filters: int, output channels.
        kernel_size: odd int, or a pair of them.
        strides, dilation_rate, padding, use_bias and others: as in `keras.layers.Conv2D`, except
            that `padding` defaults to `"same"` and `use_bias` to False. Weights are drawn
            normally with variance 2 / fan-out (He et al., ICCV 2015) unless
            `kernel_initializer` is given.
        tensorflow_padding: bool. Pads `padding="same"` as TensorFlow and Keras do: with stride 2
            alike on both sides of an odd size, a zero less in front of an even one.

    Raises:
        ValueError: if `padding="same"` and a kernel size is even, or `data_format` is not
            `"channels_last"`.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        *,
        padding="same",
        use_bias=False,
        kernel_initializer=None,
        tensorflow_padding=False,
        **kwargs,
    ):
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal"
            )
        kwargs.setdefault("data_format", "channels_last")
        super().__init__(
            filters,
            kernel_size,
            padding=padding,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            **kwargs,
        )
        self.tensorflow_padding = tensorflow_padding
        if self.data_format != "channels_last":
            raise ValueError(
                f"`data_format` must be 'channels_last'. Received: {self.data_format!r}"
            )
        if padding == "same" and any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(
                "An even `kernel_size` cannot be padded alike on both sides. "
                f"Received: kernel_size={self.kernel_size}. Use padding='valid'."
            )

    @property
    def _margins(self):
        """Rows and columns of zeros on each side."""
        if self.padding != "same":
            return 0, 0
        return tuple(
            rate * (size - 1) // 2
            for size, rate in zip(self.kernel_size, self.dilation_rate, strict=True)
        )

    def convolution_op(self, inputs, kernel):
        rows, columns = self._margins
        # With stride 1, TensorFlow pads alike by itself. Else the zeros are put there by hand: its
        # explicit padding has no oneDNN gradient, which cost 40 % of a bfloat16 HRNet step on CPU.
        same = self.padding == "same" and (self.strides == (1, 1) or self.tensorflow_padding)
        if (rows or columns) and not same:
            margins = ((0, 0), (rows, rows), (columns, columns), (0, 0))
            inputs = ops.pad(inputs, margins) if tf is None else tf.pad(inputs, margins)
        padding = "same" if same else "valid"
        if tf is not None and self.groups == 1:
            # The op itself: keras.ops.conv wraps it in checks that take longer than tracing it.
            return tf.raw_ops.Conv2D(
                input=inputs,
                filter=kernel,
                strides=[1, *self.strides, 1],
                dilations=[1, *self.dilation_rate, 1],
                padding=padding.upper(),
            )
        return ops.conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )

    def compute_output_shape(self, input_shape):
        spatial = [
            None if size is None else (size + 2 * margin - rate * (kernel - 1) - 1) // stride + 1
            for size, margin, kernel, rate, stride in zip(
                input_shape[1:3],
                self._margins,
                self.kernel_size,
                self.dilation_rate,
                self.strides,
                strict=True,
            )
        ]
        return (input_shape[0], *spatial, self.filters)

    def get_config(self):
        return {**super().get_config(), "tensorflow_padding": self.tensorflow_padding}


@_register
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation in one fused kernel, with Keras' weights and numbers.

    On TensorFlow a rank-4 channels-last map goes through FusedBatchNormV3, one node instead of a
    dozen; elsewhere, and for masks and renormalisation, this is plain Keras. The moving variance
    is that of the batch itself, as in Keras; PyTorch's is n / (n - 1) times larger.

    Args:
        epsilon: float > 0. Defaults to PyTorch's 1e-5, not to Keras' 1e-3.
        momentum: float in [0, 1], the weight of the old moving statistics. Defaults to 0.9.
        synchronized: bool. Takes the statistics over the batches of all replicas, by one
            message forward and one backward. Without it every replica normalises by its own
            batch and keeps its own moving statistics: what is saved, or read outside of the
            replicas, is their mean, but inference on a replica uses its own.
        moving_if_single: bool. Where a channel has one value in the batch (an image pooled to 1x1,
            one image a replica), it has no variance: training would see the offset alone, and
            inference something else. If True, such a batch is normalised by the moving statistics
            in training too, and does not change them; those of a new layer leave it as it is.
        others: as in `keras.layers.BatchNormalization`.
    """

    def __init__(
        self,
        *,
        epsilon=BATCH_NORM_EPSILON,
        momentum=BATCH_NORM_MOMENTUM,
        synchronized=False,
        moving_if_single=False,
        **kwargs,
    ):
        super().__init__(
            epsilon=epsilon,
            momentum=momentum,
            # Other backends have no replicas to synchronise, and Keras raises there.
            synchronized=synchronized and tf is not None,
            **kwargs,
        )
        self.moving_if_single = moving_if_single

    def get_config(self):
        return {**super().get_config(), "moving_if_single": self.moving_if_single}

    def add_weight(self, *args, trainable=True, **kwargs):
        if trainable or tf is None or not tf.distribute.has_strategy():
            return super().add_weight(*args, trainable=trainable, **kwargs)
        # Moving statistics under a strategy: each replica writes its own copy, without a message;
        # reading from outside (saving, evaluating) gives the mean. `Layer.add_weight` lacks it.
        kwargs["initializer"] = keras.initializers.get(kwargs["initializer"])
        return keras.Variable(
            dtype=self.variable_dtype,
            trainable=False,
            aggregation="mean",
            synchronization="on_read",
            **kwargs,
        )

    def call(self, inputs, training=None, mask=None):
        fused = tf is not None and len(inputs.shape) == 4 and self.axis in (-1, 3)
        training = bool(training) and self.trainable
        alone = not self.synchronized or replicas.num_replicas() == 1
        values = [size for i, size in enumerate(inputs.shape) if i != self.axis % len(inputs.shape)]
        if self.moving_if_single and alone and math.prod(size or 2 for size in values) == 1:
            training = False
        if not fused or mask is not None or self.renorm or not (self.scale and self.center):
            return super().call(inputs, training=training, mask=mask)
        if training and not alone:
            return self._normalize_synchronized(inputs)
        if not training:
            return self._fused(inputs, self.moving_mean, self.moving_variance, is_training=False)[0]
        # The kernel moves the statistics itself, but its batch variance is n / (n - 1) times that
        # of Keras: the old value goes in that much larger, and the new comes out that much smaller.
        if None in (size := inputs.shape[:3]):
            count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), "float32")
            correction = tf.maximum(count - 1.0, 1.0) / count
        else:
            correction = max(math.prod(size) - 1, 1) / math.prod(size)
        outputs, mean, variance = self._fused(
            inputs,
            self.moving_mean,
            self.moving_variance / correction,
            is_training=True,
            exponential_avg_factor=1.0 - self.momentum,
        )
        variance = variance * correction
        if self.moving_if_single and values == [
            None,
            1,
            1,
        ]:  # Of a batch that may turn out to be of one image.
            several = count > 1.0
            moving = self.moving_mean, self.moving_variance
            outputs = tf.where(several, outputs, self._fused(inputs, *moving, is_training=False)[0])
            mean, variance = (
                tf.where(several, new, tf.convert_to_tensor(old))
                for new, old in zip((mean, variance), moving, strict=True)
            )
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)
        return outputs

    def _fused(self, inputs, mean, variance, **attributes):
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            **attributes,
        )[:3]

    def _normalize_synchronized(self, inputs):
        outputs, mean, variance = _synchronized_batch_norm(
            inputs,
            tf.convert_to_tensor(self.gamma),
            tf.convert_to_tensor(self.beta),
            self.epsilon,
        )
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs


def _synchronized_batch_norm(inputs, gamma, beta, epsilon):
    """Normalises by the moments over the batches of all replicas.

    Written with its own gradient because the one that TensorFlow derives sends twice as many
    messages and has several times as many nodes. The fused kernels do the work on whole maps, in
    their inference mode, in which the moments are given to them.

    Args:
        inputs: float tensor `(batch, height, width, channels)`.
        gamma, beta: float32 tensors `(channels,)`.
        epsilon: float.

    Returns:
        `(outputs, mean, variance)`: like `inputs`, and twice float32 `(channels,)`.
    """
    channels = gamma.shape[0]
    attributes = {"epsilon": epsilon, "is_training": False}

    @tf.custom_gradient
    def normalize(inputs, gamma, beta):
        wide = tf.cast(inputs, "float32")
        moments = [tf.reduce_sum(wide, [0, 1, 2]), tf.reduce_sum(wide * wide, [0, 1, 2])]
        size = tf.cast(tf.size(inputs) // channels, "float32")
        total, total_square, count = tf.split(
            replicas.all_reduce_sum(tf.concat([*moments, [size]], axis=0)), [channels, channels, 1]
        )
        mean = total / count
        variance = tf.maximum(total_square / count - mean * mean, 0.0)
        outputs = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=gamma, offset=beta, mean=mean, variance=variance, **attributes
        )[0]

        def gradient(upstream, *_):  # The moments are only stored, never differentiated.
            # The part of the gradient that takes the moments for constants...
            partial, d_gamma, d_beta = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream,
                x=inputs,
                scale=gamma,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=mean,  # Read in training mode only.
                **attributes,
            )[:3]
            # ... and what flows through them: slope * (sum dy + z * sum(dy z)) / count, written as
            # a straight line in x = mean + z * std.
            all_gamma, all_beta = tf.split(
                replicas.all_reduce_sum(tf.concat([d_gamma, d_beta], axis=0)), 2
            )
            inverse_std = tf.math.rsqrt(variance + epsilon)
            scale = gamma * inverse_std / count
            slope = scale * inverse_std * all_gamma
            through = slope * tf.cast(inputs, "float32") + (scale * all_beta - slope * mean)
            d_inputs = tf.cast(tf.cast(partial, "float32") - through, inputs.dtype)
            # Parameters get this replica's share: the trainer sums gradients over replicas.
            return d_inputs, d_gamma, d_beta

        return (outputs, mean, variance), gradient

    return normalize(inputs, gamma, beta)


class NormalizedConvolution(keras.layers.Layer):
    """What `ConvNorm` and `kseg.depthwise.DepthwiseConvNorm` share: all but the convolution.

    Args:
        make_convolution: function `(dtype, name)` to the convolution.
        relu: bool, whether the result goes through a ReLU.
        max_value: None, or the float that the ReLU is cut off at: 6 for ReLU6.
        epsilon: float > 0, of the batch norm.
        synchronized, moving_if_single: bools, of the batch norm.
    """

    def __init__(
        self,
        make_convolution,
        *,
        relu=True,
        max_value=None,
        epsilon=BATCH_NORM_EPSILON,
        synchronized=False,
        moving_if_single=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.relu = relu
        self.max_value = max_value
        self.convolution = make_convolution(dtype=self.dtype_policy, name="convolution")
        self.normalization = BatchNormalization(
            synchronized=synchronized,
            moving_if_single=moving_if_single,
            epsilon=epsilon,
            dtype=self.dtype_policy,
            name="normalization",
        )

    def build(self, input_shape):
        self.convolution.build(input_shape)
        self.normalization.build(self.convolution.compute_output_shape(input_shape))

    def call(self, inputs, residual=None, training=None):
        # `call`, not `__call__`: the parts share this layer's dtype, mode and name scope.
        outputs = self.normalization.call(self.convolution.call(inputs), training=training)
        if residual is not None:
            outputs = outputs + residual
        return _relu(outputs, self.max_value) if self.relu else outputs

    def compute_output_spec(self, inputs, residual=None, training=None):
        shape = self.convolution.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "relu": self.relu,
            "max_value": self.max_value,
            "epsilon": self.normalization.epsilon,
            "synchronized": self.normalization.synchronized,
            "moving_if_single": self.normalization.moving_if_single,
        }


@_register
class ConvNorm(NormalizedConvolution):
    """Convolution, batch norm, an optional residual sum and an optional ReLU, in one call.

    `relu(norm(conv(inputs)) + residual)`: one Keras layer where there would be four, since in a
    deep network Keras' bookkeeping per call takes longer than tracing the operations. Its two
    weighted parts are the layers `convolution` and `normalization`, with their usual weights.

    Args:
        filters: int, output channels.
        kernel_size: odd int, or a pair of them.
        strides: int or pair.
        dilation_rate: int or pair.
        use_bias: bool, of the convolution. Redundant before a batch norm, but some published
            checkpoints have it.
        tensorflow_padding: bool, as in `Conv2D`.
        relu: bool, whether the result goes through a ReLU.
        max_value: None, or the float that the ReLU is cut off at: 6 for ReLU6.
        epsilon: float > 0, of the batch norm. Defaults to PyTorch's 1e-5.
        synchronized, moving_if_single: bools, of the batch norm.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`.
        residual: None, or a float tensor of the output's shape, added before the ReLU.

    Returns:
        float tensor `(batch, ceil(height / stride), ceil(width / stride), filters)` in the
        compute dtype.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        *,
        strides=1,
        dilation_rate=1,
        use_bias=False,
        tensorflow_padding=False,
        **kwargs,
    ):
        make_convolution = functools.partial(
            Conv2D,
            filters,
            kernel_size,
            strides=strides,
            dilation_rate=dilation_rate,
            use_bias=use_bias,
            tensorflow_padding=tensorflow_padding,
        )
        super().__init__(make_convolution, **kwargs)

    def get_config(self):
        convolution = self.convolution
        return {
            **super().get_config(),
            "filters": convolution.filters,
            "kernel_size": convolution.kernel_size,
            "strides": convolution.strides,
            "dilation_rate": convolution.dilation_rate,
            "use_bias": convolution.use_bias,
            "tensorflow_padding": convolution.tensorflow_padding,
        }


@_register
class DropPath(keras.layers.Layer):
    """Drops the residual branch of whole samples in training (Huang et al., ECCV 2016).

    Args:
        rate: float in [0, 1), how likely a sample is set to 0. What is kept is scaled up by
            `1 / (1 - rate)`, which keeps the expected value.
        seed: int or None.

    Call arguments:
        inputs: float tensor `(batch, ...)`.
        training: bool.

    Returns:
        float tensor like `inputs`.
    """

    def __init__(self, rate, *, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=None):
        if not training or self.rate == 0:
            return inputs
        scales = drop_path_scales(inputs, self.rate, self.seed_generator)
        return inputs * ops.cast(scales[0], inputs.dtype)

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def drop_path_scales(inputs, rate, seed_generator, branches=1):
    """Draws by what stochastic depth multiplies the samples of residual branches.

    Args:
        inputs: tensor `(batch, height, width, channels)`, this replica's.
        rate: float in [0, 1).
        seed_generator: `keras.random.SeedGenerator`, in the same state on all replicas, which draw
            for the global batch and take their part.
        branches: int, drawn at once.

    Returns:
        float32 tensor `(branches, batch, 1, 1, 1)`: 0, or `1 / (1 - rate)`.
    """
    kept, batch = 1.0 - rate, ops.shape(inputs)[0]
    shape = (branches, replicas.num_replicas() * batch, 1, 1, 1)
    draw = keras.random.uniform(shape, seed=seed_generator)
    if replicas.num_replicas() > 1:
        start = (0, replicas.replica_id() * batch, 0, 0, 0)
        draw = ops.slice(draw, start, (branches, batch, 1, 1, 1))
    return ops.cast(draw < kept, "float32") / kept


def ceil_divide(size, divisor):
    """Divides a size, int >= 0 or an int32 scalar, and rounds up.

    Without negative numbers, unlike `-(-size // divisor)`: the quotients of those are rounded
    towards zero in ONNX.
    """
    return (size + divisor - 1) // divisor


def _relu(x, max_value=None):
    if max_value is not None:
        if max_value == 6:
            return ops.relu6(x) if tf is None else tf.raw_ops.Relu6(features=x)
        return ops.clip(x, 0, max_value)
    return ops.relu(x) if tf is None else tf.raw_ops.Relu(features=x)


def resize(x, size, *, interpolation="bilinear", align_corners=False):
    """Resizes maps to a size that may be known only at run time.

    Sampling points are PyTorch's: `(i + 0.5) * in / out - 0.5` for bilinear interpolation,
    `i * (in - 1) / (out - 1)` with `align_corners`, and `floor(i * in / out)` for nearest. Nothing
    is smoothed when shrinking.

    Args:
        x: tensor `(batch, height, width, channels)`. Float for bilinear interpolation, any
            numeric dtype for nearest.
        size: `(height, width)`, ints or an int32 tensor `(2,)`.
        interpolation: `"bilinear"` or `"nearest"`.
        align_corners: bool, for bilinear interpolation only.

    Returns:
        tensor `(batch, *size, channels)` of the dtype of `x`. Every float dtype is interpolated
        bilinearly in float32, and so is its gradient.

    Raises:
        ValueError: if `interpolation` is unknown, or `align_corners` is asked for with nearest.
    """
    _check_interpolation(interpolation, align_corners)
    if tf is None:
        return _resize_by_gathering(x, size, interpolation, align_corners)
    if interpolation == "nearest":
        return tf.raw_ops.ResizeNearestNeighbor(images=x, size=size)
    # The cast comes first: of maps that are not float32, XLA's gradient of this op is garbage.
    other = tf.as_dtype(x.dtype) != tf.float32
    resized = tf.raw_ops.ResizeBilinear(
        images=tf.cast(x, "float32") if other else x,
        size=size,
        align_corners=align_corners,
        half_pixel_centers=not align_corners,
    )
    return tf.cast(resized, x.dtype) if other else resized


def _check_interpolation(interpolation, align_corners):
    if interpolation not in ("bilinear", "nearest"):
        raise ValueError(
            f"`interpolation` must be 'bilinear' or 'nearest'. Received: {interpolation=}"
        )
    if align_corners and interpolation == "nearest":
        raise ValueError("`align_corners` is for bilinear interpolation. Received: 'nearest'.")


def _resize_by_gathering(x, size, interpolation, align_corners):
    for axis, output_size in zip((1, 2), size, strict=True):
        low, high, fraction = _sampling_points(
            x.shape[axis], int(output_size), interpolation, align_corners
        )
        near = ops.take(x, low, axis=axis)
        if interpolation == "nearest":
            x = near
            continue
        fraction = ops.convert_to_tensor(
            fraction.reshape((-1, 1) if axis == 2 else (-1, 1, 1)), dtype="float32"
        )
        far = ops.cast(ops.take(x, high, axis=axis), "float32")
        near = ops.cast(near, "float32")
        x = ops.cast(near + (far - near) * fraction, x.dtype)
    return x


@functools.cache
def _sampling_points(input_size, output_size, interpolation, align_corners):
    """Gives, for each output row, the two input rows around it and the second one's weight."""
    rows = np.arange(output_size, dtype="float32")
    if interpolation == "nearest":
        points = np.floor(rows * np.float32(input_size / output_size))
    elif align_corners:
        points = rows * np.float32((input_size - 1) / max(output_size - 1, 1))
    else:
        points = (rows + 0.5) * np.float32(input_size / output_size) - 0.5
    points = np.clip(points, 0, input_size - 1)
    low = np.floor(points).astype("int32")
    return low, np.minimum(low + 1, input_size - 1), points - low


def _spatial_size(x):
    """`(height, width)` of a map: ints where all are known, else an int32 tensor."""
    if tf is None or None not in x.shape[1:3]:
        return tuple(x.shape[1:3])
    return tf.shape(x)[1:3]


@_register
class ResizeLike(keras.layers.Layer):
    """Resizes a map to the height and width of another, known at run time or before.

    Args:
        interpolation, align_corners: as in `kseg.layers.resize`.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`.
        like: tensor `(batch, new_height, new_width, any)`, read only for its size.

    Returns:
        float tensor `(batch, new_height, new_width, channels)` in the compute dtype.

    Raises:
        ValueError: if `interpolation` is unknown, or `align_corners` is asked for with nearest.
    """

    def __init__(self, *, interpolation="bilinear", align_corners=False, **kwargs):
        super().__init__(**kwargs)
        _check_interpolation(interpolation, align_corners)
        self.interpolation = interpolation
        self.align_corners = align_corners

    def call(self, inputs, like):
        return resize(
            inputs,
            _spatial_size(like),
            interpolation=self.interpolation,
            align_corners=self.align_corners,
        )

    def compute_output_spec(self, inputs, like):
        shape = (inputs.shape[0], *like.shape[1:3], inputs.shape[3])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "interpolation": self.interpolation,
            "align_corners": self.align_corners,
        }


@_register
class ResizeAndSum(keras.layers.Layer):
    """Resizes maps of equal channels to one size, sums them, and applies a ReLU.

    The end of HRNet's exchange between resolutions. The sum runs from the first map to the last.

    Args:
        interpolation, align_corners: as in `kseg.layers.resize`.
        relu: bool, whether the sum goes through a ReLU.

    Call arguments:
        inputs: list of float tensors `(batch, height_i, width_i, channels)`.
        like: index into `inputs` of the map that has the size of the output.

    Returns:
        float tensor `(batch, height_like, width_like, channels)` in the compute dtype.

    Raises:
        ValueError: if `interpolation` is unknown, or `align_corners` is asked for with nearest.
    """

    def __init__(self, like, *, interpolation="bilinear", align_corners=False, relu=True, **kwargs):
        super().__init__(**kwargs)
        _check_interpolation(interpolation, align_corners)
        self.like = like
        self.interpolation = interpolation
        self.align_corners = align_corners
        self.relu = relu

    def call(self, inputs):
        size = _spatial_size(inputs[self.like])
        total = None
        for index, x in enumerate(inputs):
            if index > self.like:  # The maps that follow are coarser.
                x = resize(
                    x, size, interpolation=self.interpolation, align_corners=self.align_corners
                )
            total = x if total is None else total + x
        return _relu(total) if self.relu else total

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs[self.like].shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "like": self.like,
            "interpolation": self.interpolation,
            "align_corners": self.align_corners,
            "relu": self.relu,
        }


@_register
class ImageNormalization(keras.layers.Layer):
    """Brings RGB images to zero mean and unit variance over ImageNet: `(x - mean) / std`.

    Args:
        mean, std: three floats each, in units of 0 to 255.

    Call arguments:
        inputs: uint8 or float tensor `(batch, height, width, 3)`, RGB in 0 to 255.

    Returns:
        float tensor of the same shape in the compute dtype.
    """

    def __init__(self, *, mean=IMAGENET_MEAN, std=IMAGENET_STD, **kwargs):
        # Not autocast: bfloat16 would round interpolated pixels before they are centred.
        super().__init__(autocast=False, **kwargs)
        self.mean = tuple(mean)
        self.std = tuple(std)

    def call(self, inputs):
        centred = ops.cast(inputs, "float32") - np.array(self.mean, "float32")
        return ops.cast(centred * (1.0 / np.array(self.std, "float32")), self.compute_dtype)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "std": self.std}


@_register
class UnitNormalization(keras.layers.Layer):
    """Scales each pixel's vector to unit L2 norm, in float32.

    `x / max(norm(x), epsilon)`: a zero vector stays zero, and its gradient is finite.

    Args:
        epsilon: float > 0, the smallest norm that is divided by.

    Call arguments:
        inputs: float tensor `(..., channels)`.

    Returns:
        float32 tensor of the same shape.
    """

    def __init__(self, *, epsilon=1e-6, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.epsilon = epsilon

    def call(self, inputs):
        squared_norm = ops.sum(ops.square(inputs), axis=-1, keepdims=True)
        # The maximum stands inside the root, whose own gradient at zero is infinite.
        return inputs * ops.rsqrt(ops.maximum(squared_norm, self.epsilon**2))

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}
