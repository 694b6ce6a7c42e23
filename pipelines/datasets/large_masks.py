"""Masks read in parts, by rasterio: the values that `pipelines.datasets.mask_files` reads."""

import functools

import numpy as np

from pipelines import rasters
from pipelines.datasets.mask_files import Mask, as_uint16, check_opacity
from pipelines.errors import DataError
from pipelines.no_data import is_empty

_BAND = 1 << 24  # Pixels that are inspected at a time.


class MaskRaster:
    """A mask file that is open for reading in parts.

    Args:
        path: path of a TIFF or PNG file.

    Attributes:
        source: open dataset of rasterio.
        size: `(height, width)`.
        nodata: int, the value of pixels without label; None if the file has none, or one that no
            pixel of a mask can have.

    Raises:
        DataError: if it is no mask, or cannot be read in parts.
    """

    def __init__(self, path):
        self.source = source = rasters.connect(path, ("TIFF", "PNG"), "a mask in tiles")
        self.size = source.height, source.width
        tags = source.tags(ns="IMAGE_STRUCTURE")
        pages = len(source.subdatasets)
        if pages:
            raise DataError(f"a mask must be one picture, this file holds {pages}")
        if source.driver == "GTiff" and "JPEG" in tags.get("COMPRESSION", "").upper():
            raise DataError("a mask must not be compressed by JPEG, which changes values")
        if tags.get("MINISWHITE") == "YES":
            raise DataError("a TIFF whose zero means white has two readings. Save the mask as PNG")
        if source.count > 4:
            raise DataError(f"a mask must have 1 to 4 channels, this has {source.count}")
        dtype = np.dtype(source.dtypes[0])
        if dtype.kind not in "uif":
            raise DataError(f"a mask must hold whole numbers from 0 to 65535, this holds {dtype}")
        bits = int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * dtype.itemsize))
        self._palette = None
        if source.count == 1 and source.colorinterp[0].name == "palette":
            table = source.colormap(1)
            self._palette = np.zeros((1 + max(table), 3), "uint8")
            for value, color in table.items():
                self._palette[value] = color[:3]
        plain = source.count < 3 and self._palette is None
        self._white = (1 << min(bits, 16)) - 1 if plain else 255
        if not plain and dtype.itemsize > 1:
            self._white = 65535
        nodata = source.nodata if source.driver == "GTiff" else None
        whole = nodata is not None and nodata in range(1 << 16)
        self.nodata = int(nodata) if whole else None
        self._other_nodata = None if whole else nodata

    def read(self, first, last, left, right):
        """Reads a part.

        Args:
            first, last, left, right: as for `pipelines.rasters.read_window`.

        Returns:
            `(mask, unlabeled)`: `Mask`; and bool `(last - first, right - left)`, the pixels that
            have the "no data" value, or None. If there are others, `mask` gives these pixels the
            value of one of the others.

        Raises:
            DataError: if it is damaged or holds what a mask must not hold.
        """
        channels = list(range(1, self.source.count + 1))
        values = rasters.read_window(self.source, channels, first, last, left, right)
        unlabeled = None
        nodata = self.nodata if self.nodata is not None else self._other_nodata
        if nodata is not None:
            unlabeled = is_empty(values, nodata, axis=0)
            if not unlabeled.any():
                unlabeled = None
            elif not unlabeled.all():
                place = np.unravel_index(np.argmin(unlabeled), unlabeled.shape)
                values[:, unlabeled] = values[:, place[0], place[1]][:, None]
            elif self.nodata is None:
                values[:] = 0
        if values.dtype != np.uint8:
            values = as_uint16(values)
        if len(values) in (2, 4):
            check_opacity(np.moveaxis(values[:-1], 0, -1), values[-1])
            values = values[:-1]
        values = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
        return Mask(np.ascontiguousarray(values), self._palette, self._white), unlabeled


def mask_bands(file):
    """Yields a mask file band by band, as `Mask`, without the pixels of its "no data" value.

    Args:
        file: path.

    Raises:
        DataError: if it cannot be read.
    """
    raster = MaskRaster(file)
    height, width = raster.size
    rows = max(1, _BAND // width)
    with raster.source:
        for first in range(0, height, rows):
            mask, unlabeled = raster.read(first, min(first + rows, height), 0, width)
            if unlabeled is None:
                yield mask
            elif not unlabeled.all():
                yield Mask(mask.values[~unlabeled][None], mask.palette, mask.white)


@functools.cache
def single_value(value, white=255):
    """Returns a `Mask` of one pixel."""
    return Mask(np.array([[value]], "uint8" if value < 256 else "uint16"), None, white)
