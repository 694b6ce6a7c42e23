"""Convolutions as matrix products and shifts, for weights that `jax.vmap` stacks.

The convolutions of several networks at once are grouped convolutions, for which cuDNN has slow
kernels and needs minutes to choose one. Matrix products stay products, in batches.
"""

import jax.numpy as jnp

from kseg.layers.convolution import Conv2D
from kseg.layers.depthwise import DepthwiseConv2D


def install(segmenter):
    """Makes all convolutions of a network matrix products, or sums of shifted maps.

    Args:
        segmenter: keras model whose convolutions are kseg's, without groups but for depthwise ones.

    Raises:
        ValueError: if another convolution has groups.
    """
    for layer in segmenter._flatten_layers():
        if isinstance(layer, DepthwiseConv2D):
            layer.implementation = "shifted"
        elif isinstance(layer, Conv2D):
            layer.convolution_op = _Product(layer)


class _Product:
    """The convolution of a layer, for `layer.convolution_op`."""

    def __init__(self, layer):
        if layer.groups != 1:
            raise ValueError(f"`groups` must be 1. Received: {layer.groups} in {layer.path!r}")
        self._layer = layer

    def __call__(self, inputs, kernel):
        kernel = jnp.asarray(getattr(kernel, "value", kernel))
        rows, columns, channels, filters = kernel.shape
        padded = jnp.pad(inputs, ((0, 0), *self._margins(inputs.shape[1:3]), (0, 0)))
        size = [
            (padded.shape[1 + axis] - rate * (extent - 1) - 1) // stride + 1
            for axis, (extent, rate, stride) in enumerate(self._geometry())
        ]

        def shifted(maps, row, column):
            (row_stride, column_stride), (row_rate, column_rate) = (
                self._layer.strides,
                self._layer.dilation_rate,
            )
            top, left = row * row_rate, column * column_rate
            return maps[
                :,
                top : top + (size[0] - 1) * row_stride + 1 : row_stride,
                left : left + (size[1] - 1) * column_stride + 1 : column_stride,
            ]

        places = [(row, column) for row in range(rows) for column in range(columns)]
        if channels > filters and self._layer.strides == (1, 1):
            # The product first: its outputs for all places are smaller than the inputs of these.
            products = _product(padded, kernel.transpose(2, 0, 1, 3).reshape(channels, -1))
            parts = jnp.split(products, len(places), axis=-1)
            return sum(shifted(part, *place) for part, place in zip(parts, places, strict=True))
        patches = jnp.concatenate([shifted(padded, *place) for place in places], axis=-1)
        return _product(patches, kernel.reshape(-1, filters))

    def _geometry(self):
        layer = self._layer
        return zip(layer.kernel_size, layer.dilation_rate, layer.strides, strict=True)

    def _margins(self, size):
        if self._layer.padding != "same":
            return [(0, 0), (0, 0)]
        margins = []
        for length, (extent, rate, stride) in zip(size, self._geometry(), strict=True):
            total = rate * (extent - 1)
            if self._layer.tensorflow_padding:
                total = max((-(-length // stride) - 1) * stride + total + 1 - length, 0)
            margins.append((total // 2, total - total // 2))
        return margins


def _product(maps, matrix):
    """Multiplies the channels of maps; two axes, so that XLA need not transpose them in memory."""
    rows = maps.reshape(-1, maps.shape[-1])
    return (rows @ matrix).reshape(*maps.shape[:-1], matrix.shape[-1])
