"""Resizing of maps and labels, with the sampling points of PyTorch."""

# ruff: noqa: D102 - what Keras calls (`call`, `build`, `get_config`...) is documented by its class.

import functools

import keras
import numpy as np
from keras import ops

from kseg.backend import tf
from kseg.layers.activation import relu


def ceil_divide(size, divisor):
    """Divides a size, int >= 0 or an int32 scalar, and rounds up.

    Without negative numbers, unlike `-(-size // divisor)`: the quotients of those are rounded
    towards zero in ONNX.
    """
    return (size + divisor - 1) // divisor


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


def resize_labels(labels, height, width):
    """Brings labels to a feature map's size by nearest sampling (half-pixel centres).

    Args:
        labels: int tensor `(batch, label_height, label_width)`, static height and width.
        height: int, rows of the map.
        width: int, columns of the map.

    Returns:
        int32 tensor `(batch, height, width)`; index i holds source `floor((i + 0.5) * in / out)`.

    Raises:
        ValueError: if the labels have another rank than 3.
    """
    if len(labels.shape) != 3:
        raise ValueError(
            "`labels` must be class numbers of shape (batch, height, width). Received: "
            f"{tuple(labels.shape)}. Use labels[..., 0], or argmax(labels, axis=-1) if one-hot"
        )
    for axis, size in ((1, height), (2, width)):
        source = labels.shape[axis]
        if source != size:
            indices = np.floor((np.arange(size) + 0.5) * source / size).astype("int32")
            labels = ops.take(labels, indices, axis=axis)
    return ops.cast(labels, "int32")


@keras.saving.register_keras_serializable(package="kseg")
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


@keras.saving.register_keras_serializable(package="kseg")
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
        return relu(total) if self.relu else total

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
