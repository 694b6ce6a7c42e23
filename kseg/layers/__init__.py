"""Layers shared by all networks: convolution, batch norm, resizing, normalization.

They exist for two reasons: they provide what Keras lacks (such as resizing to a size known only at
run time), and they add few nodes to TensorFlow's graph. A deep HRNet has 300 convolutions, and
tracing and optimizing their graph dominates the time to its first training step.
"""

from kseg.layers.batch_norm import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, BatchNormalization
from kseg.layers.convolution import Conv2D, ConvNorm, NormalizedConvolution
from kseg.layers.depthwise import DepthwiseConv2D, DepthwiseConvNorm
from kseg.layers.drop_path import DropPath, drop_path_scales
from kseg.layers.normalization import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageNormalization,
    UnitNormalization,
)
from kseg.layers.resizing import (
    ResizeAndSum,
    ResizeLike,
    ceil_divide,
    pad_to_multiple,
    resize,
    resize_labels,
)

__all__ = [
    "BATCH_NORM_EPSILON",
    "BATCH_NORM_MOMENTUM",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "BatchNormalization",
    "Conv2D",
    "ConvNorm",
    "DepthwiseConv2D",
    "DepthwiseConvNorm",
    "DropPath",
    "ImageNormalization",
    "NormalizedConvolution",
    "ResizeAndSum",
    "ResizeLike",
    "UnitNormalization",
    "ceil_divide",
    "drop_path_scales",
    "pad_to_multiple",
    "resize",
    "resize_labels",
]
