"""Photometric distortion on the training device, which relieves the input pipeline on the host."""

import math

import keras
import numpy as np
from keras import ops

# RGB to luma and two chroma axes (YIQ): hue is a rotation of the chroma plane.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


class PhotometricDistortion(keras.layers.Layer):
    """Changes brightness, contrast, saturation and hue of each image, and blurs some.

    The four changes, in this order, form one affine map of the colors, without clipping in between:
    factors uniform in `1 +- strength`, contrast about the image's mean luma, hue rotated by a
    uniform fraction of a turn in `+- hue`. A Gaussian blur follows. The result for an image depends
    only on that image and its draws.

    The luma of images that do not have three channels is the mean of their channels; they have no
    saturation and no hue.

    Args:
        brightness, contrast, saturation: floats in [0, 1), the strengths.
        hue: float in [0, 0.5], fraction of a turn.
        blur_probability: float in [0, 1].
        blur_sigma: `(lowest, highest)`, pixels; the sigma of the blur is uniform in between.
        value_range: `(low, high)`: black and white. Colors are clipped to it if they
            change.

    Call arguments:
        images: tensor `(batch, height, width, channels)`, in `value_range`; static height and
            width.
        draws: float tensor `(batch, NUM_DRAWS)`, uniform in [0, 1).

    Returns:
        float32 tensor `(batch, height, width, channels)`, in `value_range`.

    Raises:
        ValueError: unless 0 < lowest <= highest in `blur_sigma`; at the first call, if saturation
            or hue is above 0 and the images do not have three channels.
    """

    NUM_DRAWS = 6

    def __init__(
        self,
        *,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        blur_probability=0.0,
        blur_sigma=(0.1, 2.0),
        value_range=(0, 255),
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        if not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise ValueError(f"`blur_sigma` must be 0 < lowest <= highest. Received: {blur_sigma}")
        self.strengths = (brightness, contrast, saturation)
        self.hue = hue
        self.blur_probability = blur_probability
        self.blur_sigma = tuple(blur_sigma)
        self.value_range = tuple(value_range)

    def call(self, images, draws):
        """Distorts a batch."""
        images = ops.cast(images, "float32")
        if any(self.strengths) or self.hue:
            _, height, width, channels = images.shape
            low, high = self.value_range
            pixels = ops.reshape(images, (-1, height * width, channels))
            if low:
                pixels = pixels - low
            weights = _YIQ[0] if channels == 3 else np.full(channels, 1.0 / channels)
            luma = ops.convert_to_tensor(weights, "float32")
            mean_luma = ops.sum(ops.mean(pixels, axis=1) * luma, axis=-1)
            if channels == 3:
                matrices, offsets = self.color_maps(draws[:, :4], mean_luma)
                pixels = ops.matmul(pixels, matrices)
            else:
                factors, offsets = self._gray_maps(draws, mean_luma, channels)
                pixels = pixels * factors[:, None, None]
            pixels = ops.clip(pixels + offsets[:, None, None], 0.0, float(high - low))
            if low:
                pixels = pixels + low
            images = ops.reshape(pixels, (-1, height, width, channels))
        if self.blur_probability:
            images = self._blur(images, draws[:, 4], draws[:, 5])
        return images

    def color_maps(self, draws, mean_luma):
        """Computes the affine color map of each image.

        Args:
            draws: float32 tensor `(batch, 4)`, uniform in [0, 1).
            mean_luma: float32 tensor `(batch,)`, the mean luma of each image.

        Returns:
            `(matrices, offsets)`, float32 `(batch, 3, 3)` and `(batch,)`: a color, as a row vector,
            is multiplied by the matrix, and the offset is added to each channel.
        """
        strengths = ops.convert_to_tensor(self.strengths, "float32")
        factors = 1.0 + (2.0 * draws[:, :3] - 1.0) * strengths
        brightness, contrast, saturation = (factors[:, i] for i in range(3))
        angle = (2.0 * draws[:, 3] - 1.0) * (self.hue * 2.0 * math.pi)
        # A rotation of the chroma plane is a linear combination of three fixed color maps.
        back = np.linalg.inv(_YIQ)
        keep, along, across = (
            ops.convert_to_tensor((back @ np.array(m, "float64") @ _YIQ).T, "float32")
            for m in (
                [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
                [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
                [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
            )
        )
        cos, sin = ((f(angle) * saturation)[:, None, None] for f in (ops.cos, ops.sin))
        rotations = keep + cos * along + sin * across
        matrices = rotations * (brightness * contrast)[:, None, None]
        # The rotation preserves gray, so the offset depends on contrast and brightness only.
        return matrices, mean_luma * brightness * (1.0 - contrast)

    def _gray_maps(self, draws, mean_luma, channels):
        """Computes the factor and the offset of each image that does not have three channels."""
        if self.strengths[2] or self.hue:
            raise ValueError(
                "Images must have 3 channels, RGB, to change in `saturation` or `hue`. Received: "
                f"{channels} channels. Set both to 0"
            )
        brightness, contrast = (
            1.0 + (2.0 * draws[:, i] - 1.0) * strength
            for i, strength in enumerate(self.strengths[:2])
        )
        return brightness * contrast, mean_luma * brightness * (1.0 - contrast)

    def _blur(self, images, selection_draws, sigma_draws):
        """Convolves each image with a separable Gaussian, as a sum of shifted images."""
        low, high = self.blur_sigma
        radius = math.ceil(3 * high)
        sigma = (low + (high - low) * sigma_draws)[:, None]
        offsets = ops.arange(-radius, radius + 1, dtype="float32")[None]
        weights = ops.exp(-ops.square(offsets / sigma) / 2.0)
        weights = weights / ops.sum(weights, axis=1, keepdims=True)
        blurred = (selection_draws < self.blur_probability)[:, None]
        weights = ops.where(blurred, weights, ops.cast(offsets == 0, "float32"))
        weights = weights[:, :, None, None, None]
        for axis in (1, 2):
            length = images.shape[axis]
            # Replicate padding: the border pixels repeat beyond the edges.
            indices = np.clip(np.arange(-radius, length + radius), 0, length - 1)
            extended = ops.take(images, indices, axis=axis)
            images = sum(
                weights[:, k] * _slice(extended, k, length, axis) for k in range(2 * radius + 1)
            )
        return images

    def get_config(self):
        """Returns the constructor's arguments."""
        names = ("brightness", "contrast", "saturation")
        return {
            **super().get_config(),
            **dict(zip(names, self.strengths, strict=True)),
            "hue": self.hue,
            "blur_probability": self.blur_probability,
            "blur_sigma": self.blur_sigma,
            "value_range": self.value_range,
        }


def _slice(x, start, length, axis):
    return x[:, start : start + length] if axis == 1 else x[:, :, start : start + length]
