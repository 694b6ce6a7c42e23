"""Depthwise convolution, and the choice of how it is computed."""

# ruff: noqa: D102 - what Keras calls (`call`, `build`, `get_config`...) is documented by its class.

import keras
from keras import ops

from kseg.layers import NormalizedConvolution, ceil_divide, output_size, padding_margins, tf

IMPLEMENTATIONS = ("grouped", "shifted")


def default_implementation():
    """The implementation that a layer uses where none is named: `"grouped"` on every backend."""
    return "grouped"


@keras.saving.register_keras_serializable(package="kseg")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A convolution of each channel by itself, without bias, padded as `kseg.layers.Conv2D`.

    Args:
        kernel_size: odd int, or a pair of them.
        strides, dilation_rate: int or pair.
        far_padding: bool, as in `kseg.layers.Conv2D`.
        implementation: `"grouped"`: the backend's depthwise convolution. `"shifted"`: the sum over
            the kernel's places of the shifted map times one weight a channel, in float32; the same
            numbers up to rounding, from element-wise operations only, for compilers whose grouped
            convolutions or their gradients are slow. None: `default_implementation()`.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`.

    Returns:
        float tensor `(batch, ceil(height / stride), ceil(width / stride), channels)`.

    Raises:
        ValueError: if `implementation` is unknown, or a kernel size is even.
    """

    def __init__(self, kernel_size, *, far_padding=False, implementation=None, **kwargs):
        kwargs = {
            "padding": "same",
            "use_bias": False,
            "data_format": "channels_last",
            # Fan-out of a depthwise kernel: its places.
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
                "An even `kernel_size` cannot be padded alike on both sides. "
                f"Received: kernel_size={self.kernel_size}"
            )
        self.far_padding = far_padding
        self.implementation = implementation

    @property
    def _margins(self):
        return padding_margins(self.kernel_size, self.dilation_rate, self.far_padding)

    def call(self, inputs):
        if (self.implementation or default_implementation()) == "shifted":
            return self._shifted(inputs)
        if self.strides == (1, 1) and not self.far_padding:
            padding = "same"
        else:
            inputs, padding = self._pad(inputs), "valid"
        if tf is not None and self.dilation_rate == (1, 1):
            # The op itself, as in `kseg.layers.Conv2D`.
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
        margins = ((0, 0), *self._margins, (0, 0))
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
        spatial = output_size(
            input_shape[1:3], self._margins, self.kernel_size, self.dilation_rate, self.strides
        )
        return (input_shape[0], *spatial, input_shape[3])

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "far_padding": self.far_padding,
            "implementation": self.implementation,
        }


@keras.saving.register_keras_serializable(package="kseg")
class DepthwiseConvNorm(NormalizedConvolution):
    """Depthwise convolution, batch norm and ReLU in one call, see `kseg.layers.ConvNorm`.

    Args:
        kernel_size, strides, dilation_rate, far_padding, implementation: as in `DepthwiseConv2D`.
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
        far_padding=False,
        implementation=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.convolution = DepthwiseConv2D(
            kernel_size,
            strides=strides,
            dilation_rate=dilation_rate,
            far_padding=far_padding,
            implementation=implementation,
            dtype=self.dtype_policy,
            name="convolution",
        )

    def get_config(self):
        convolution = self.convolution
        return {
            **super().get_config(),
            "kernel_size": convolution.kernel_size,
            "strides": convolution.strides,
            "dilation_rate": convolution.dilation_rate,
            "far_padding": convolution.far_padding,
            "implementation": convolution.implementation,
        }
