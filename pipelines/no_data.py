"""Pixels without data in TIFF files.

A pixel has none if it has the file's "no data" value in all channels, if it is outside of the
file's mask, or if its opacity is 0. `pipelines.pictures` and `pipelines.rasters` read all three.
Such pixels are ignored where labels are prepared, and predictions label them 255.

**Opacity** is the last band of a TIFF, if it is tagged as such (ExtraSamples 1 or 2, GDAL's color
interpretation "alpha") and the network does not take it as a channel. Near infrared beside RGB is
often tagged so by mistake, and is 0 over water. So the values decide: those of an opacity other
than 0 are, with at most a tenth of exceptions (soft edges), the largest one. If all are 0, the
band is an opacity only if the picture has one color.
"""

import numpy as np

_MOST_PARTLY_OPAQUE = 0.1  # Share of the values that are neither 0 nor the largest.


def is_empty(values, nodata, axis=-1):
    """Returns bool: whether pixels have the "no data" value in all channels.

    Args:
        values: array with the channels along `axis`.
        nodata: float, may be NaN.
        axis: int.
    """
    return np.all(np.isnan(values) if np.isnan(nodata) else values == nodata, axis=axis)


def find_hidden(values):
    """Finds the pixels of opacity 0 of a picture whose last channel is tagged as opacity.

    Args:
        values: array `(height, width, channels)`.

    Returns:
        bool `(height, width)`; None if the channel is not an opacity.
    """
    check = OpacityCheck(values.shape[0] * values.shape[1])
    check.add(values)
    return values[..., -1] == 0 if check.is_opacity() else None


class OpacityCheck:
    """Decides from its values whether the last channel of a picture is an opacity.

    Args:
        num_pixels: int, number of pixels of the picture.
    """

    def __init__(self, num_pixels):
        self._num_pixels = num_pixels
        self._largest, self._opaque, self._visible, self._valid = 0, 0, 0, True
        self._colors = None  # Lowest and highest of each channel, while all is transparent.

    def add(self, values):
        """Takes a part of the picture, `(rows, columns, channels)`.

        Returns:
            bool, whether the answer still depends on other parts.
        """
        band = values[..., -1]
        largest, lowest = band.max(), band.min()
        if not lowest >= 0 or not np.isfinite(largest):  # Also NaN.
            self._valid = False
            return False
        if largest > self._largest:
            self._largest, self._opaque = largest, 0
        if largest == self._largest and largest > 0:
            self._opaque += np.count_nonzero(band == largest)
        self._visible += np.count_nonzero(band)
        if not self._visible:
            low, high = (f(values[..., :-1], axis=(0, 1)) for f in (np.min, np.max))
            if self._colors is not None:
                low, high = np.minimum(low, self._colors[0]), np.maximum(high, self._colors[1])
            self._colors = low, high
        return self._visible - self._opaque <= _MOST_PARTLY_OPAQUE * self._num_pixels

    def is_opacity(self):
        """Returns the answer for the parts that were added, as bool."""
        if not self._valid:
            return False
        if not self._visible:
            return self._colors is not None and bool((self._colors[0] == self._colors[1]).all())
        return self._visible - self._opaque <= _MOST_PARTLY_OPAQUE * self._visible


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
