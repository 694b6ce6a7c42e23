"""Pictures read and written in parts: TIFF, BigTIFF and GeoTIFF files of any size, by rasterio.

Preparation in tiles reads PNG files in parts, too. JPEG files are not: GDAL decodes them to other
values than `pipelines.pictures`.

Needs `pip install kseg[raster]`. The rules are those of `pipelines.pictures`: a single channel is
repeated, palette indices become their colors, opacity is dropped (0 means no data), less than 8
bits are stretched, and values of more than 8 bits need a range. Departures: the range must be given
for 16 bits, too, because the largest value is not known before the end of the file; files that are
not upright, have several pages, or are of another color space than gray, RGB or YCbCr are rejected.
For a network of other images than 8-bit RGB all channels keep their values, as in
`pipelines.channel_files`.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import threading
import warnings
import zlib

import numpy as np

from kseg import files, pixel_depth
from kseg import pixel_format as formats
from kseg.errors import UserError, option
from pipelines import pictures
from pipelines.channel_files import OPAQUE_NOTE, WIDENED, check_values
from pipelines.errors import DataError
from pipelines.no_data import OpacityCheck, fill, is_empty

DRIVERS = {"TIFF": "GTiff", "PNG": "PNG"}
BLOCK = 256  # Extent of the tiles that are written, pixels.
_CACHE = 128 << 20  # Bytes of decoded tiles that GDAL keeps.
_AT_ONCE = 1 << 22  # Pixels of a file that are examined at a time.
_MOST_AT_ONCE = 1 << 29  # Bytes of a part of a file that has to be decoded in one piece.
_TO_TILES = "Convert it: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE -co BIGTIFF=IF_SAFER"


def check_installed():
    """Raises a UserError if rasterio is not installed."""
    if importlib.util.find_spec("rasterio") is None:
        raise UserError('Pictures in tiles need rasterio. Call: pip install "kseg[raster]"')


@contextlib.contextmanager
def open_raster(path, value_range=None, pixel_format=None):
    """Opens a TIFF file to read it in bands of rows.

    Args:
        path: path of a TIFF, BigTIFF or GeoTIFF file.
        value_range: as for `pipelines.pictures.read`.
        pixel_format: `kseg.pixel_format.PixelFormat` that the file must have, whose values are
            kept; None: it becomes 8-bit RGB.

    Yields:
        `Raster`.

    Raises:
        DataError: if the file cannot be read; says what it is.
    """
    with reading(), connect(path) as source:
        yield Raster(source, value_range, pixel_format)


@contextlib.contextmanager
def reading(cache=_CACHE):
    """Prepares rasterio for reading: no warnings, and a bound for the tiles that it keeps decoded.

    Args:
        cache: int, bytes, of all threads together.
    """
    import rasterio

    with _quiet(), rasterio.Env(GDAL_CACHEMAX=cache):
        yield


def connect(path, kinds=("TIFF",), what="a picture in tiles"):
    """Opens a file of which any part can be read.

    Args:
        path: path of the file.
        kinds: keys of `DRIVERS`, the accepted ones.
        what: str, what the file should be; used in messages.

    Returns:
        open dataset of rasterio, of one thread only.

    Raises:
        DataError: if the file cannot be read, or only as a whole.
    """
    import rasterio

    try:
        with open(path, "rb") as stream:
            head = stream.read(1 << 10)
        kind = pictures.kind_of(head)
        if kind not in kinds:
            raise DataError(
                f"{what} must be a {' or '.join(kinds)} file, this is a {kind} file. {_TO_TILES}"
            )
        with pictures.mapped(path) as content:  # Tags may be at the end of the file.
            turned = pictures.orientation(content)
    except OSError as error:
        raise DataError(error.strerror) from None
    if turned != 1:
        raise DataError(f"{what} must be upright, this has another orientation")
    try:
        source = rasterio.open(path, driver=DRIVERS[kind])
    except rasterio.errors.RasterioError as error:
        raise DataError(f"the {kind} file is damaged ({_first_line(error)})") from None
    if _bytes_at_once(source, interlaced=kind == "PNG" and head[28] == 1) > _MOST_AT_ONCE:
        form = {"TIFF": "compressed in one piece", "PNG": "interlaced"}[kind]
        source.close()
        raise DataError(
            f"{what} must be readable in parts, this {kind} file is {form}. {_TO_TILES}"
        )
    return source


def _bytes_at_once(source, interlaced):
    """Bytes of the smallest part of a file that can be decoded, of all channels."""
    pixel = sum(np.dtype(dtype).itemsize for dtype in source.dtypes)
    if interlaced:
        return source.height * source.width * pixel
    if source.driver == "GTiff" and source.compression is None:
        return source.width * pixel  # Of uncompressed files any row can be read.
    return max(height * width for height, width in source.block_shapes) * pixel


class Raster:
    """An open picture file.

    Args:
        source: open dataset of rasterio.
        value_range, pixel_format: as for `open_raster`.
        channels: int, as for `pipelines.channel_files.read`: a file of that many channels, whose
            values are kept; None: as `pixel_format` says.

    Attributes:
        size: `(height, width)`.
        dtype: str, the type of the values: that of the file, wherever they are kept one of
            `kseg.pixel_format.DTYPES`.

    Raises:
        DataError: if it is not a picture that is read.
    """

    def __init__(self, source, value_range=None, pixel_format=None, channels=None):
        self._source, self._range, self._format = source, value_range, pixel_format
        self._path = source.name
        self._keeps_values = pixel_format is not None or channels is not None
        self._lock = threading.Lock()  # Of a file that several threads read.
        self.size = source.height, source.width
        self._nodata, self._tagged, self._has_mask = None, False, False
        if source.driver == "GTiff":  # Of a PNG it is the color that is meant to be transparent.
            self._nodata = source.nodata
            with pictures.mapped(self._path) as content:
                self._tagged = pictures.has_opacity(content)
                self._has_mask = pictures.has_mask(content)
        dtype = np.dtype(source.dtypes[0])
        self.dtype = WIDENED.get(dtype.name, dtype.name) if self._keeps_values else dtype.name
        tags = source.tags(ns="IMAGE_STRUCTURE")
        self._inverted = tags.get("MINISWHITE") == "YES"
        self._bits = int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * dtype.itemsize))
        colors = [source.colorinterp[i].name for i in range(source.count)]
        pages = source.subdatasets
        if pages:
            raise DataError(f"an image must be one picture, this TIFF has {len(pages)} pages")
        self._kept = source.count  # Channels that `_read_values` returns.
        if self._keeps_values:
            self._check_values(channels, colors, tags)
            return
        if source.count > 4:
            raise DataError(f"an image must have 1 to 4 channels, this has {source.count}")
        space = tags.get("SOURCE_COLOR_SPACE", "YCbCr")
        if space != "YCbCr" or "hue" in colors:
            raise DataError(f"a picture in tiles must be gray or RGB, this is {space}. Convert it")
        if dtype.kind not in "uif":
            raise DataError(f"the picture holds {dtype} values, which are not read")
        if dtype != np.uint8 and value_range is None:
            raise DataError(
                f"the picture holds {dtype} values. Say which become black and white: "
                f"{option('value_range', (0, 65535))}"
            )
        self._palette = None
        if source.count == 1 and colors[0] == "palette":
            table = source.colormap(1)
            palette = np.zeros((1 << 8 * dtype.itemsize, 3), "uint8")
            for value, color in table.items():
                palette[value] = color[:3]
            self._palette = palette

    def _check_values(self, channels, colors, tags):
        """Raises a DataError unless the values of all channels can be kept."""
        count, wanted = self._source.count, self._format
        expected, note = channels if wanted is None else wanted.channels, ""
        self._tagged = self._tagged and count == expected + 1  # Otherwise it is a channel.
        if self._tagged:
            count, note = (expected, "") if self._has_opacity else (count, OPAQUE_NOTE)
        self._kept = count
        if wanted is not None and (count, self.dtype) != (expected, wanted.dtype):
            raise DataError(
                f"the image has {count} channels of {self.dtype}; the network takes {wanted}{note}"
            )
        if wanted is None and count != expected:
            raise DataError(
                f"the image has {count} channel{'s' * (count != 1)}, not {expected}; with "
                f"{option('channels', expected)} all images must have {expected}{note}"
            )
        if self.dtype not in formats.DTYPES:
            raise DataError(
                f"an image must hold {', '.join(formats.DTYPES[:-1])} or {formats.DTYPES[-1]} "
                f"values. Received: {self.dtype}. Convert it"
            )
        space = tags.get("SOURCE_COLOR_SPACE", "YCbCr")
        if self._inverted or self._bits < 8 or "palette" in colors or space != "YCbCr":
            raise DataError(
                "a picture of channels in tiles must have 8 bits or more, 0 as black, no "
                "palette and no other color space. Convert it"
            )

    def read(self, first, last, left=0, right=None):
        """Reads rows `first` to `last - 1`, of the columns `left` to `right - 1`; default: all.

        Returns:
            uint8 RGB `(last - first, columns, 3)`; where values are kept, these, `(last - first,
            columns, channels)`. Pixels without data have the mean of the pixel format, else that of
            the other pixels read; in 8-bit RGB the value of the file, or black if it is deep.

        Raises:
            DataError: if they are damaged, or hold values that are not finite.
        """
        if self._keeps_values:
            return self._read_values(first, last, left, right)
        channels = [1, 2, 3] if self._source.count > 2 else [1]
        values = self._read(channels, first, last, left, right)
        if self._palette is not None:
            return self._palette[values[0]]
        if values.dtype != np.uint8:
            empty = self.find_empty(first, last, left, right)
            if self._inverted and values.dtype.kind == "u":  # As in one piece: not floating point.
                values = np.iinfo(values.dtype).max - values
            if empty is not None:  # The value may lie outside of the range, or be NaN.
                values = np.where(empty, values.dtype.type(self._range[0]), values)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise DataError("the picture holds values that are not finite (NaN or infinite)")
            values = pixel_depth.to_8_bits(values, self._range)
        elif self._bits < 8:
            highest = (1 << self._bits) - 1
            values = (values.astype("uint16") * 255 // highest).astype("uint8")
        if self._inverted and self.dtype == "uint8":
            values = 255 - values
        if len(values) == 1:
            return np.repeat(values[0][..., None], 3, axis=2)
        return np.ascontiguousarray(values.transpose(1, 2, 0))

    def _read_values(self, first, last, left, right):
        values = self._read(list(range(1, self._kept + 1)), first, last, left, right)
        empty = self.find_empty(first, last, left, right)
        values = np.ascontiguousarray(values.transpose(1, 2, 0), self.dtype)
        fill(values, empty, self._format)
        check_values(values, None if self._format is not None else self._range, empty)
        return values

    @property
    def has_nodata(self):
        """True if something marks pixels without data, see `pipelines.no_data`.

        The first call for a file whose last band is tagged as opacity reads all of it, or, of near
        infrared, the first tenth.
        """
        return self._nodata is not None or self._has_mask or self._has_opacity

    @property
    def _has_opacity(self):
        if not self._tagged:
            return False
        stat = os.stat(self._path)
        with self._lock:
            return _is_opacity(self._path, (stat.st_mtime_ns, stat.st_size))

    def find_empty(self, first, last, left=0, right=None):
        """Returns bool `(last - first, columns)`: whether pixels have no data.

        Args:
            first, last, left, right: as for `read`.

        Returns:
            the array, or None if nothing marks such pixels.
        """
        if not self.has_nodata:
            return None
        channels = list(range(1, self._source.count + 1))
        values = self._read(channels, first, last, left, right)
        empty = np.zeros(values.shape[1:], bool)
        if self._nodata is not None:
            empty |= is_empty(values, self._nodata, axis=0)
        if self._has_opacity:
            empty |= values[-1] == 0
        if self._has_mask:
            right = self.size[1] if right is None else right
            with self._lock:
                empty |= read_window(self._source, 1, first, last, left, right, mask=True) == 0
        return empty

    def _read(self, channels, first, last, left=0, right=None):
        right = self.size[1] if right is None else right
        with self._lock:
            return read_window(self._source, channels, first, last, left, right)

    @property
    def georeference(self):
        """Dict of the keyword arguments of a copy's coordinate system; empty without one."""
        source = self._source
        points, system = source.gcps
        found = {"crs": source.crs or system, "gcps": points or None}
        if not source.transform.is_identity and not points:
            found["transform"] = source.transform
        return {key: value for key, value in found.items() if value}


@functools.lru_cache(1024)
def _is_opacity(path, version):
    """Tells whether the last band of a file, tagged as opacity, is one.

    Args:
        path: path of the file.
        version: hashable that changes with the file's content.
    """
    with connect(path) as source:
        height, width = source.height, source.width
        check = OpacityCheck(height * width)
        channels = list(range(1, source.count + 1))
        # Whole blocks, so that none is decoded twice.
        rows = max(1, source.block_shapes[0][0] * (_AT_ONCE // (source.block_shapes[0][0] * width)))
        rows = max(rows, 1 if source.compression is None else source.block_shapes[0][0])
        for first in range(0, height, rows):
            last = min(first + rows, height)
            values = read_window(source, channels, first, last, 0, width)
            if not check.add(values.transpose(1, 2, 0)):
                break
        return check.is_opacity()


def read_window(source, channels, first, last, left, right, *, mask=False):
    """Reads a part of an open dataset of rasterio.

    Args:
        source: open dataset.
        channels: list of int, from 1; or int.
        first, last, left, right: int, first row and the one after the last; columns likewise.
        mask: bool, whether to read the masks of the channels in place of their values.

    Returns:
        array `(channels, last - first, right - left)`, or without the first axis for an int.

    Raises:
        DataError: if it is damaged.
    """
    import rasterio

    window = rasterio.windows.Window(left, first, right - left, last - first)
    try:
        return (source.read_masks if mask else source.read)(channels, window=window)
    except rasterio.errors.RasterioError as error:
        kind = next(kind for kind, driver in DRIVERS.items() if driver == source.driver)
        raise DataError(
            f"the {kind} file is damaged between rows {first} and {last} ({_first_line(error)})"
        ) from None


@contextlib.contextmanager
def create_raster(path, size, *, channels=1, georeference=None, palette=None, nodata=None):
    """Creates a tiled, compressed TIFF of uint8 values; a BigTIFF if it may exceed 4 GB.

    Args:
        path: path to write; it must not be a file that is being read.
        size: `(height, width)`.
        channels: int.
        georeference: as `Raster.georeference`.
        palette: list of `[red, green, blue]`, colors of the values of a single channel, or None.
        nodata: int, value of pixels without data; None: all have data.

    Yields:
        function that takes the next rows, uint8 `(rows, width)` or `(rows, width, channels)`.

    Raises:
        OSError: if the file cannot be written. It is read back at the end, because GDAL does not
            report a disk that fills up when it closes a file.
    """
    import rasterio

    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": channels,
        "height": size[0],
        "width": size[1],
        "nodata": nodata,
        "compress": "deflate",
        "bigtiff": "if_safer",
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        **({"interleave": "band", "photometric": "minisblack"} if channels > 1 else {}),
        **(georeference or {}),
    }
    with _quiet(), rasterio.Env(GDAL_CACHEMAX=_CACHE):
        with rasterio.open(path, "w", **profile) as file:
            if palette is not None:
                colors = {i: (*map(int, color), 255) for i, color in enumerate(palette)}
                file.write_colormap(1, colors)
            rows = _Rows(file, size)
            yield rows.add
            rows.flush(size[0])
        files.check_written(path, rows.are_in(path), "its pixels cannot be read back")


class _Rows:
    """Collects rows until they fill a row of tiles, so that each tile is compressed once."""

    def __init__(self, file, size):
        self._file, self._size = file, size
        self._first = 0
        self._held = []
        self._written = []  # Windows, each with the checksum of its values.

    def add(self, rows):
        self._held.append(rows)
        self.flush(self._first + sum(map(len, self._held)) // BLOCK * BLOCK)

    def flush(self, last):
        """Writes all rows before `last`."""
        import rasterio

        count = last - self._first
        if not count:
            return
        rows = np.concatenate(self._held)
        window = rasterio.windows.Window(0, self._first, self._size[1], count)
        values = rows[:count]
        values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
        self._file.write(values, window=window)
        self._written.append((window, _checksum(values)))
        self._held = [rows[count:].copy()]
        self._first = last

    def are_in(self, path):
        """Returns whether a file has all rows with the values that were written."""
        import rasterio

        try:
            with rasterio.open(path, driver="GTiff") as file:
                return all(
                    _checksum(file.read(window=window)) == checksum
                    for window, checksum in self._written
                )
        except rasterio.errors.RasterioError:
            return False


def _checksum(values):
    return zlib.crc32(np.ascontiguousarray(values))


@contextlib.contextmanager
def _quiet():
    """Suppresses the warnings and log of rasterio; damage is raised when it is met."""
    log = logging.getLogger("rasterio")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _first_line(error):
    return " ".join(str(error.__cause__ or error).split())[:100]
