"""Normalization of images and of embeddings."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import keras
import numpy as np
from keras import ops

from kseg.backend.gradients import upstream_of
from kseg.pixel_format import PixelFormat

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@keras.saving.register_keras_serializable(package="kseg")
class ImageNormalization(keras.layers.Layer):
    """Normalizes images to zero mean and unit variance over a data set: `(x - mean) / std`.

    Args:
        mean, std: one float for each channel, in units of the images; those of RGB in 0 to 255 over
            ImageNet by default.
        pixel_format: dict as of `kseg.pixel_format.PixelFormat.to_dict`, what the images are, for
            those who export or call the network; None: RGB in 0 to 255.

    Call arguments:
        inputs: uint8, uint16 or float tensor `(batch, height, width, channels)`.

    Returns:
        float tensor of the same shape in the compute dtype.
    """

    def __init__(self, *, mean=IMAGENET_MEAN, std=IMAGENET_STD, pixel_format=None, **kwargs):
        # No autocast: bfloat16 would round interpolated pixels before they are centered.
        super().__init__(autocast=False, **kwargs)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.pixel_format = PixelFormat.from_dict(pixel_format)

    def call(self, inputs):
        centered = ops.cast(inputs, "float32") - np.array(self.mean, "float32")
        return ops.cast(centered * (1.0 / np.array(self.std, "float32")), self.compute_dtype)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        config = {**super().get_config(), "mean": self.mean, "std": self.std}
        if self.pixel_format is not None:
            config["pixel_format"] = self.pixel_format.to_dict()
        return config


@keras.saving.register_keras_serializable(package="kseg")
class UnitNormalization(keras.layers.Layer):
    """Scales each pixel's vector to unit L2 norm, in float32.

    `x / max(norm(x), epsilon)`: a zero vector stays zero, and its gradient is finite.

    Args:
        epsilon: float > 0, the lower bound of the divisor.

    Call arguments:
        inputs: float tensor `(..., channels)`.

    Returns:
        float32 tensor of the same shape.
    """

    def __init__(self, *, epsilon=1e-6, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.epsilon = epsilon

    def call(self, inputs):
        return inputs * ops.cast(self.factors(inputs), inputs.dtype)

    def factors(self, inputs):
        """Computes what the vectors are multiplied by, float32 `(..., 1)`."""
        smallest = self.epsilon**2

        @ops.custom_gradient
        def compute(x):
            squared_norm = ops.sum(ops.square(x), axis=-1, keepdims=True)
            factors = ops.rsqrt(ops.maximum(squared_norm, smallest))

            def gradient(*arguments, upstream=None):
                # In one pass over x, where that of the formula takes three and two more tensors of
                # its size.
                slope = ops.where(squared_norm > smallest, -(factors**3), 0.0)
                return x * (upstream_of(arguments, upstream) * slope)

            return factors, gradient

        return compute(ops.cast(inputs, "float32"))

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}
