"""Depthwise convolution, with a choice of implementation."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import functools

import keras
from keras import ops

from kseg.backend import tf
from kseg.layers.convolution import NormalizedConvolution
from kseg.layers.resizing import ceil_divide

IMPLEMENTATIONS = ("grouped", "shifted")


def default_implementation():
    """Returns the default of `DepthwiseConv2D`'s `implementation`: `"grouped"` on every backend."""
    return "grouped"


@keras.saving.register_keras_serializable(package="kseg")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A convolution applied to each channel separately, without bias.

    Pads as TensorFlow's "same" does: equally on both sides, except that with stride 2 an even size
    gets one zero less at the top and left.

    Args:
        kernel_size: odd int, or a pair of them.
        strides: int or pair, 1 or 2.
        dilation_rate: int or pair.
        removed_stride: bool. If True, the convolution replaces one of stride 2 whose input had only
            every `dilation_rate`-th row and column. It pads as that one did, so that its outputs at
            every `2 * dilation_rate`-th row and column equal the original outputs.
        implementation: `"grouped"`: the backend's depthwise convolution. `"shifted"`: the sum over
            kernel positions of the shifted map times one weight per channel, in float32. It agrees
            up to rounding and uses element-wise operations only, for compilers whose grouped
            convolutions, or the gradients of these, are slow. None: `default_implementation()`.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`.

    Returns:
        float tensor `(batch, ceil(height / stride), ceil(width / stride), channels)`.

    Raises:
        ValueError: if `implementation` is unknown, a kernel size is even, a stride is above 2, or
            `removed_stride` is combined with a stride of 2.
    """

    def __init__(self, kernel_size, *, removed_stride=False, implementation=None, **kwargs):
        kwargs = {
            "padding": "same",
            "use_bias": False,
            "data_format": "channels_last",
            # The fan-out of a depthwise kernel is its number of positions.
            "depthwise_initializer": keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal"
            ),
            **kwargs,
        }
        super().__init__(kernel_size, **kwargs)
        if implementation not in (None, *IMPLEMENTATIONS):
            raise ValueError(
                f"`implementation` must be one of {IMPLEMENTATIONS} or None. "
                f"Received: {implementation=}"
            )
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(
                "An even `kernel_size` cannot be padded equally on both sides. "
                f"Received: kernel_size={self.kernel_size}"
            )
        if not set(self.strides) <= {1, 2}:
            raise ValueError(f"`strides` must be 1 or 2. Received: strides={self.strides}")
        if removed_stride and self.strides != (1, 1):
            raise ValueError(f"`removed_stride` is for stride 1. Received: strides={self.strides}")
        self.removed_stride = removed_stride
        self.implementation = implementation

    def call(self, inputs):
        if (self.implementation or default_implementation()) == "shifted":
            return self._shifted(inputs)
        padding = "same"
        if self.removed_stride:
            inputs, padding = self._pad(inputs), "valid"
        if tf is not None and self.dilation_rate == (1, 1):
            # The raw op, as in `kseg.layers.Conv2D`.
            return tf.raw_ops.DepthwiseConv2dNative(
                input=inputs,
                filter=self.kernel,
                strides=[1, *self.strides, 1],
                padding=padding.upper(),
            )
        return ops.depthwise_conv(
            inputs,
            self.kernel,
            strides=self.strides,
            padding=padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )

    def _pad(self, inputs):
        """Pads with zeros so that an unpadded ("valid") convolution yields this layer's output."""
        margins = []
        for size, kernel, rate, stride in zip(
            ops.shape(inputs)[1:3], self.kernel_size, self.dilation_rate, self.strides, strict=True
        ):
            before = kernel // 2
            if self.removed_stride or stride == 2:
                even = 1 - ceil_divide(size, rate) % 2
                before = before - even if kernel > 1 else before
            margins.append((before * rate, (kernel - 1 - before) * rate))
        margins = ((0, 0), *margins, (0, 0))
        return ops.pad(inputs, margins) if tf is None else tf.pad(inputs, margins)

    def _shifted(self, inputs):
        size = ops.shape(inputs)[1:3]
        ends = [
            (ceil_divide(n, step) - 1) * step + 1
            for n, step in zip(size, self.strides, strict=True)
        ]
        padded = self._pad(inputs)
        kernel = ops.cast(self.kernel, "float32")
        total = None
        for row in range(self.kernel_size[0]):
            for column in range(self.kernel_size[1]):
                top, left = row * self.dilation_rate[0], column * self.dilation_rate[1]
                part = padded[
                    :,
                    top : top + ends[0] : self.strides[0],
                    left : left + ends[1] : self.strides[1],
                ]
                term = ops.cast(part, "float32") * kernel[row, column, :, 0]
                total = term if total is None else total + term
        return ops.cast(total, inputs.dtype)

    def compute_output_shape(self, input_shape):
        spatial = (
            None if size is None else ceil_divide(size, step)
            for size, step in zip(input_shape[1:3], self.strides, strict=True)
        )
        return (input_shape[0], *spatial, input_shape[3])

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "removed_stride": self.removed_stride,
            "implementation": self.implementation,
        }


@keras.saving.register_keras_serializable(package="kseg")
class DepthwiseConvNorm(NormalizedConvolution):
    """Depthwise convolution, batch norm and ReLU in one call, see `kseg.layers.ConvNorm`.

    Args:
        kernel_size, strides, dilation_rate, removed_stride, implementation: as in
            `DepthwiseConv2D`.
        relu, max_value, epsilon, synchronized: as in `kseg.layers.ConvNorm`.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`.

    Returns:
        float tensor `(batch, ceil(height / stride), ceil(width / stride), channels)` in the
        compute dtype.
    """

    def __init__(
        self,
        kernel_size,
        *,
        strides=1,
        dilation_rate=1,
        removed_stride=False,
        implementation=None,
        **kwargs,
    ):
        make_convolution = functools.partial(
            DepthwiseConv2D,
            kernel_size,
            strides=strides,
            dilation_rate=dilation_rate,
            removed_stride=removed_stride,
            implementation=implementation,
        )
        super().__init__(make_convolution, **kwargs)

    def get_config(self):
        convolution = self.convolution
        return {
            **super().get_config(),
            "kernel_size": convolution.kernel_size,
            "strides": convolution.strides,
            "dilation_rate": convolution.dilation_rate,
            "removed_stride": convolution.removed_stride,
            "implementation": convolution.implementation,
        }
