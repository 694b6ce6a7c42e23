"""Pixels without data: those that have the "no data" value of a TIFF file in all channels.

`pipelines.pictures.nodata_of_tiff` reads that value. Such pixels are ignored where labels are
prepared, and predictions label them 255.
"""

import numpy as np


def is_empty(values, nodata, axis=-1):
    """Returns bool: whether pixels have the "no data" value in all channels.

    Args:
        values: array with the channels along `axis`.
        nodata: float, may be NaN.
        axis: int.
    """
    return np.all(np.isnan(values) if np.isnan(nodata) else values == nodata, axis=axis)


def fill(values, empty, pixel_format=None):
    """Fills pixels without data with the mean of each channel, in place.

    Args:
        values: array `(height, width, channels)`.
        empty: bool `(height, width)`, or None: all have data.
        pixel_format: `kseg.pixel_format.PixelFormat` that knows the means; None: those of the
            pixels with data in `values`, or 0 if no pixel has data.
    """
    if empty is None or not empty.any():
        return
    if pixel_format is not None:
        values[empty] = pixel_format.padding
        return
    mean = np.zeros(values.shape[-1])
    if not empty.all():
        mean = values.mean(axis=(0, 1), where=~empty[..., None], dtype="float64")
    values[empty] = (np.rint(mean) if values.dtype.kind == "u" else mean).astype(values.dtype)
