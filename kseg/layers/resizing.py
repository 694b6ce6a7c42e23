"""Resizing of feature maps and labels, with the sampling points of PyTorch."""

# ruff: noqa: D102 - Keras hooks (`call`, `build`, `get_config`...) are documented by their class.

import functools

import keras
import numpy as np
from keras import ops

from kseg.backend import tf
from kseg.layers.activation import relu


def ceil_divide(size, divisor):
    """Divides a size, int >= 0 or an int32 scalar, and rounds up.

    Avoids negative numbers, unlike `-(-size // divisor)`: ONNX rounds their quotients toward zero.
    """
    return (size + divisor - 1) // divisor


def pad_to_multiple(x, multiple):
    """Appends rows and columns of zeros until both sides are multiples of a number.

    Args:
        x: tensor `(batch, height, width, channels)`; its size may be known only at run time.
        multiple: int > 0.

    Returns:
        tensor `(batch, height', width', channels)`; `x` itself if both sides are known to be
        multiples.
    """
    missing = [ceil_divide(size, multiple) * multiple - size for size in ops.shape(x)[1:3]]
    if all(isinstance(count, int) and count == 0 for count in missing):
        return x
    return ops.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))


def resize(x, size, *, interpolation="bilinear", align_corners=False):
    """Resizes maps to a size that may be known only at run time.

    Sampling points are PyTorch's: `(i + 0.5) * in / out - 0.5` for bilinear interpolation,
    `i * (in - 1) / (out - 1)` with `align_corners`, and `floor(i * in / out)` for nearest. There is
    no antialiasing when shrinking.

    Args:
        x: tensor `(batch, height, width, channels)`. Float for bilinear interpolation, any
            numeric dtype for nearest.
        size: `(height, width)`, ints or an int32 tensor `(2,)`.
        interpolation: `"bilinear"` or `"nearest"`.
        align_corners: bool, for bilinear interpolation only.

    Returns:
        tensor `(batch, *size, channels)` of the dtype of `x`. Bilinear interpolation and its
        gradient are computed in float32 for every float dtype.

    Raises:
        ValueError: if `interpolation` is unknown, or `align_corners` is set for nearest.
    """
    _check_interpolation(interpolation, align_corners)
    if tf is None:
        return _resize_by_gathering(x, size, interpolation, align_corners)
    if interpolation == "nearest":
        return tf.raw_ops.ResizeNearestNeighbor(images=x, size=size)
    # Cast first: XLA's gradient of this op is wrong for every dtype but float32.
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
        raise ValueError(
            "`align_corners` is for bilinear interpolation only. Received: interpolation='nearest'."
        )


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
    """Returns the two input rows around each output row, and the weight of the second."""
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
    """Returns `(height, width)` of a map: ints if both are static, else an int32 tensor."""
    if tf is None or None not in x.shape[1:3]:
        return tuple(x.shape[1:3])
    return tf.shape(x)[1:3]


def resize_labels(labels, height, width):
    """Resizes labels to the size of a feature map to the nearest neighbors (half-pixel centers).

    Args:
        labels: int tensor `(batch, label_height, label_width)`, static height and width.
        height: int, rows of the map.
        width: int, columns of the map.

    Returns:
        int32 tensor `(batch, height, width)`; index i holds source `floor((i + 0.5) * in / out)`.

    Raises:
        ValueError: if the rank of the labels is not 3.
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
    """Resizes a map to the height and width of another, static or known only at run time.

    Args:
        interpolation, align_corners: as in `kseg.layers.resize`.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`.
        like: tensor `(batch, new_height, new_width, any)`, read only for its size.

    Returns:
        float tensor `(batch, new_height, new_width, channels)` in the compute dtype.

    Raises:
        ValueError: if `interpolation` is unknown, or `align_corners` is set for nearest.
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

    The last step of HRNet's exchange between resolutions. The maps are added in their order.

    Args:
        like: int, index into the inputs of the map whose size the output has.
        interpolation, align_corners: as in `kseg.layers.resize`.
        relu: bool, whether to apply a ReLU to the sum.

    Call arguments:
        inputs: list of float tensors `(batch, height_i, width_i, channels)`, from fine to coarse.

    Returns:
        float tensor `(batch, height_like, width_like, channels)` in the compute dtype.

    Raises:
        ValueError: if `interpolation` is unknown, or `align_corners` is set for nearest.
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
            if index > self.like:  # The later maps are coarser.
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
