"""Convolution, alone and fused with batch norm, residual sum and activation in one layer."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import functools

import keras
from keras import ops

from kseg.backend import tf
from kseg.layers.activation import relu
from kseg.layers.batch_norm import BATCH_NORM_EPSILON, BatchNormalization


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


@keras.saving.register_keras_serializable(package="kseg")
class Conv2D(keras.layers.Conv2D):
    """A convolution that pads both sides equally, as PyTorch does.

    `padding="same"` adds `dilation * (kernel_size - 1) // 2` zeros on each side; the output has
    `ceil(size / stride)` rows and columns. Keras and TensorFlow pad a strided convolution at the
    bottom and right first, which shifts the map by a pixel relative to published PyTorch weights.

    Args:
        filters: int, output channels.
        kernel_size: odd int, or a pair of them.
        strides, dilation_rate, padding, use_bias, **kwargs: as in `keras.layers.Conv2D`, except
            that `padding` defaults to `"same"` and `use_bias` to False. Weights are drawn from a
            normal distribution of variance 2 / fan-out (He et al., ICCV 2015) unless
            `kernel_initializer` is given.
        tensorflow_padding: bool. If True, `padding="same"` pads as TensorFlow and Keras do: with
            stride 2 equally on both sides of an odd size, with one zero less at the top and left
            of an even one.

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
                "An even `kernel_size` cannot be padded equally on both sides. "
                f"Received: kernel_size={self.kernel_size}. Use padding='valid'."
            )

    @property
    def _margins(self):
        """Rows and columns of zeros added on each side."""
        if self.padding != "same":
            return 0, 0
        return tuple(
            rate * (size - 1) // 2
            for size, rate in zip(self.kernel_size, self.dilation_rate, strict=True)
        )

    def convolution_op(self, inputs, kernel):
        rows, columns = self._margins
        # With stride 1, TensorFlow's "same" is symmetric. Otherwise pad by a separate op: the
        # convolution's explicit padding has no oneDNN gradient, which cost 40 % of a bfloat16 HRNet
        # step on CPU.
        same = self.padding == "same" and (self.strides == (1, 1) or self.tensorflow_padding)
        if (rows or columns) and not same:
            margins = ((0, 0), (rows, rows), (columns, columns), (0, 0))
            inputs = ops.pad(inputs, margins) if tf is None else tf.pad(inputs, margins)
        padding = "same" if same else "valid"
        if tf is not None and self.groups == 1:
            # The raw op: the checks in keras.ops.conv take longer than tracing the op itself.
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


class NormalizedConvolution(keras.layers.Layer):
    """Base of `ConvNorm` and `kseg.layers.depthwise.DepthwiseConvNorm`: all but the convolution.

    Args:
        make_convolution: function `(dtype, name)` that returns the convolution layer.
        relu: bool, whether to apply a ReLU to the result.
        max_value: float or None, the upper bound of the ReLU: 6 for ReLU6.
        epsilon: float > 0, of the batch norm.
        synchronized, moving_if_single: bools, as in `BatchNormalization`.
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
        return relu(outputs, self.max_value) if self.relu else outputs

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


@keras.saving.register_keras_serializable(package="kseg")
class ConvNorm(NormalizedConvolution):
    """Convolution, batch norm, an optional residual sum and an optional ReLU, in one call.

    `relu(norm(conv(inputs)) + residual)`: one Keras layer instead of four, since in a deep network
    Keras' overhead per layer call exceeds the tracing of the operations. Its weights belong to
    two sublayers, `convolution` and `normalization`.

    Args:
        filters: int, output channels.
        kernel_size: odd int, or a pair of them.
        strides: int or pair.
        dilation_rate: int or pair.
        use_bias: bool, of the convolution. Redundant before a batch norm, but some published
            checkpoints have it.
        tensorflow_padding: bool, as in `Conv2D`.
        relu: bool, whether to apply a ReLU to the result.
        max_value: float or None, the upper bound of the ReLU: 6 for ReLU6.
        epsilon: float > 0, of the batch norm. Defaults to PyTorch's 1e-5.
        synchronized, moving_if_single: bools, as in `BatchNormalization`.

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
