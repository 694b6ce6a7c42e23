"""Decoding of picture files and arrays with their own channels and depth.

`pipelines.pictures` makes 8-bit RGB of everything; this module keeps the values:

* PNG of 8 or 16 bits, JPEG, BMP and WebP: gray is 1 channel, gray with opacity 2, RGB 3, RGB with
  opacity 4. Less than 8 bits are stretched to 0..255; palette indices become their colors.
* TIFF of 8 or 16 bits or floating point: the bands of its only page, or the pages as bands if each
  has one. Overviews and masks are not pages. One band more than the data have channels is left out
  if it is an opacity, whose 0 means no data (`pipelines.no_data`). OpenCV reads gray and RGB,
  tifffile all else.
* `.npy`: `(height, width, channels)`, else `(channels, height, width)`; `(height, width)` for one.

Values become uint8, uint16 or float32: int16 and float16 do so exactly, float64 is rounded. Other
types, and values that are not finite, are rejected. Images are turned upright.
"""

import io
import math

import cv2
import numpy as np

from kseg import pixel_format as formats
from kseg.errors import option
from pipelines import no_data, pictures
from pipelines.errors import DataError

NPY = b"\x93NUMPY"
WIDENED = {"int16": "float32", "float16": "float32", "float64": "float32"}
OPAQUE_NOTE = (
    ". The last one is tagged as opacity, but most of its values other than 0 are not the largest"
)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6  # Values of a TIFF's photometric tag.


def read(content, channels, dtype=None, value_range=None, *, mismatch=None, pixel_format=None):
    """Reads a file by the rules of the module docstring.

    Args:
        content: bytes of the file.
        channels: int, the channels that it must have.
        dtype: str, the type that its values must have; None: any of `kseg.pixel_format.DTYPES`.
        value_range: `(low, high)`, which no value may leave; None: any finite value.
        mismatch: str, why it must have that many channels, for the message.
        pixel_format: `kseg.pixel_format.PixelFormat` whose means pixels without data get; None:
            they get the means of the image.

    Returns:
        `pipelines.pictures.Picture`: `pixels` are `(height, width, channels)`, upright; `content`
        is None.

    Raises:
        DataError: if the file cannot be read, or is not as required; says what it has.
    """
    try:
        values, turned = _read(content, channels)
        hidden, note = None, ""
        if values.shape[2] == channels + 1 and pictures.has_opacity(content):
            hidden = pictures.find_hidden(content, values)
            note = OPAQUE_NOTE
        empty = pictures.find_empty(content, values, hidden)
    except pictures.DECODER_ERRORS as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"the file is damaged, or of a form that is not read ({reason})") from None
    except MemoryError:
        raise DataError("the file needs more memory than there is") from None
    if hidden is not None:
        values = np.ascontiguousarray(values[..., :-1])
    if values.shape[2] != channels:
        rule = f"with {option('channels', channels)} all images must have {channels}"
        raise DataError(
            f"the image has {_count(values.shape[2])}, not {channels}; {mismatch or rule}{note}"
        )
    values = _known_type(values)
    if dtype is not None:
        check_dtype(values.dtype, dtype)
    no_data.fill(values, empty, pixel_format)
    check_values(values, value_range, empty)
    if empty is not None:
        empty = pictures.turn(empty, turned)
    deep = values.dtype != "uint8"
    return pictures.Picture(pictures.turn(values, turned), turned, None, deep, empty)


def check_dtype(found, wanted):
    """Raises a DataError unless an image has the dtype of the data set."""
    if found != wanted:
        raise DataError(
            f"the image holds {found} values, the first one of the data {wanted}. All images "
            "of a data set must have one depth. Convert them, or leave some out"
        )


def check_values(values, value_range=None, empty=None):
    """Checks the values of an image.

    Args:
        values: array `(height, width, channels)`.
        value_range: as for `read`.
        empty: bool `(height, width)`, pixels that are not checked against the range; None: none.

    Raises:
        DataError: if there are values that are not finite, or beyond the range.
    """
    if values.dtype == "float32" and not all(np.isfinite(row).all() for row in values):
        raise DataError(
            "the image holds values that are not finite (NaN or infinite). Replace them by a "
            "number, and set their pixels to 255 (ignored) in the mask"
        )
    if value_range is not None:
        known = values if empty is None else values[~empty]
        low, high = (
            float(f(known, initial=value_range[i])) for i, f in enumerate((np.min, np.max))
        )
        if low < value_range[0] or high > value_range[1]:
            raise DataError(
                f"the image holds values from {low:g} to {high:g}, beyond "
                f"{option('value_range', value_range)}. Widen the range, or leave it out: it is "
                "found then"
            )


def read_for(content, pixels):
    """Reads a file for a network.

    Args:
        content: bytes of the file.
        pixels: `kseg.pixel_format.PixelFormat` that the network takes.

    Returns:
        as `read`.

    Raises:
        DataError: as `read`, or if the image has other channels or another depth.
    """
    mismatch = f"the network takes {pixels}"
    picture = read(content, pixels.channels, mismatch=mismatch, pixel_format=pixels)
    if picture.pixels.dtype != pixels.dtype:
        raise DataError(
            f"the image holds {picture.pixels.dtype} values, the network takes {pixels}. Convert it"
        )
    return picture


def find_dtype(examples, channels):
    """Finds the dtype of the first readable file, which all files must have; None if none is.

    Args:
        examples: iterable of examples with a `read()` that returns bytes of image and label.
        channels: int, the channels that they must have.
    """
    for example in examples:
        try:
            while hasattr(example, "example"):  # One with translated labels.
                example = example.example
            if hasattr(example, "value_type"):  # A part of a file.
                return example.value_type(channels)
            content, _ = example.read()
            values, _ = _read(content, channels)
            return _known_type(values).dtype.name
        except (OSError, DataError, MemoryError, *pictures.DECODER_ERRORS):
            continue  # It is reported with all other files.
    return None


def _count(channels):
    return f"{channels} channel{'s' * (channels != 1)}"


def _known_type(values):
    name = values.dtype.name
    if name in WIDENED:
        return values.astype(WIDENED[name])
    if name not in formats.DTYPES:
        raise DataError(
            f"an image must hold {', '.join(formats.DTYPES[:-1])} or {formats.DTYPES[-1]} values. "
            f"Received: {name}. Convert it"
        )
    return values


def _read(content, channels):
    """Returns `(values, orientation)`; values `(height, width, channels)`, native byte order."""
    if content.startswith(NPY):
        return _read_array(content, channels), 1
    kind = pictures.kind_of(content)
    if kind == "TIFF":
        values = _read_tiff(content, channels)
    elif kind in ("PNG", "JPEG"):
        values = _read_picture(content, kind)
    else:
        values = _read_with_pillow(content, kind)
    return values, pictures.orientation(content)


def _read_array(content, channels):
    try:
        _check_size_of_array(content)
        values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"the .npy file is damaged, or holds no numbers ({reason})") from None
    if values.dtype.kind not in "biuf":
        raise DataError(f"a .npy file must hold numbers. Received: {values.dtype}")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return _channels_last(values, channels, ".npy file")


def _check_size_of_array(content):
    """Raises a ValueError before memory is taken for values that the file does not have."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    missing = math.prod(shape) * dtype.itemsize - (len(content) - stream.tell())
    if missing > 0 and not dtype.hasobject:
        raise ValueError(f"it lacks {missing} bytes")


def _channels_last(values, channels, what):
    """Brings an array of two or three axes to `(height, width, channels)`."""
    shape = values.shape
    if values.ndim == 2:
        values = values[..., None]
    elif values.ndim == 3 and channels not in (None, shape[2]) and shape[0] == channels:
        values = values.transpose(1, 2, 0)
    elif values.ndim != 3 or channels not in (None, shape[2]):
        known = "" if channels is None else f" with {_count(channels)} ({option('channels')})"
        raise DataError(
            f"a {what} must be (height, width, channels), (channels, height, width) or, for one "
            f"channel, (height, width){known}. Received: {shape}"
        )
    if not values.size:
        raise DataError(f"a {what} must hold pixels. Received: {shape}")
    pictures.check_size(*values.shape[:2])
    return np.ascontiguousarray(values)


def _read_picture(content, kind):
    """Decodes a PNG or JPEG with the channels that it has."""
    import tensorflow as tf

    pictures.check_header(content, kind, pictures.MAX_PIXELS)
    try:
        if kind == "PNG":
            dtype = "uint16" if content[24] == 16 else "uint8"
            return tf.io.decode_png(content, dtype=dtype).numpy()
        values = tf.io.decode_jpeg(content, dct_method=pictures.JPEG_DCT).numpy()
    except tf.errors.InvalidArgumentError:
        state = "truncated" if pictures.is_truncated(content) else "damaged"
        raise DataError(f"the {kind} file is {state}") from None
    if values.shape[2] == 4:
        raise DataError("the JPEG file holds CMYK colors. Convert it to RGB")
    return values


def _read_with_pillow(content, kind):
    from PIL import Image

    with pictures.without_pixel_limit():
        image = Image.open(io.BytesIO(content), formats=[kind.upper()])
    with image:
        pictures.check_size(*image.size[::-1])
        if getattr(image, "n_frames", 1) > 1:
            raise DataError(f"an image must be one picture, this {kind} is an animation")
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        if image.mode == "1":
            image = image.convert("L")
        values = np.array(image)
    return values[..., None] if values.ndim == 2 else values


def _read_tiff(content, channels):
    """Reads a TIFF: with OpenCV where that keeps all values, else with tifffile."""
    pages = pictures.tiff_pages(content)
    if not pages:
        raise DataError("the TIFF file is truncated or damaged: it has no page")
    own = [page for page in pages if not pictures.is_part_of_other_page(page)]
    if not own:
        raise DataError("the TIFF file holds overviews and masks only")
    for page in own:
        pictures.check_size(page.get(257, (0,))[0], page.get(256, (0,))[0])
    samples = {page.get(277, (1,))[0] for page in own}
    colors = {page.get(262, (_BLACK_IS_ZERO,))[0] for page in own}
    sizes = {(page[257][0], page[256][0]) for page in own if 256 in page and 257 in page}
    if len(sizes) > 1:
        raise DataError(
            f"the pages of a TIFF are read as its channels and must have one size. Received: "
            f"{', '.join(f'{h} x {w}' for h, w in sorted(sizes))}. Write them as separate files"
        )
    if len(own) > 1 and samples != {1}:
        raise DataError(
            f"a TIFF must hold one page of bands, or pages of one band. This has {len(own)} pages "
            f"of {max(samples)} bands. Divide it"
        )
    known = {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR}
    if not colors <= known or len(colors) > 1:
        raise DataError("a TIFF must be gray, RGB or of bands, not of another color space. Convert")
    (color,), count = colors, max(samples)
    bits = own[0].get(258, (1,))
    plain = count == 1 or (
        own[0].get(284, (1,))[0] == 1
        and ((color in (_RGB, _YCBCR) and count == 3) or (color == _RGB and max(bits) > 8))
    )
    # OpenCV unpacks 10, 12 and 14 bits to the upper bits of 16, where values would differ, and
    # turns each page by its own tag.
    turned = any(page.get(274, (1,))[0] != 1 for page in pages[1:])
    if plain and count <= 4 and max(bits) in (1, 8, 16, 32, 64) and not turned:
        values = _read_tiff_with_opencv(content, channels, pages, own, color)
        if values is not None:
            return values
        if pictures.is_truncated(content):
            raise DataError("the TIFF file is truncated")
    places = [i for i, page in enumerate(pages) if page in own] if len(own) > 1 else None
    return _read_tiff_with_tifffile(content, channels, color, places)


def _read_tiff_with_opencv(content, channels, pages, own, color):
    """Reads values; None for a form that OpenCV does not read, such as tiles of 16 x 16."""
    # It warns about tags that it writes itself; what is wrong with a file is reported below.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    # It would turn a page upright, and `read` once more.
    data = np.frombuffer(pictures.upright_tiff(content), "uint8")
    if len(pages) == 1:
        found = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        found = None if found is None else [found]
    else:
        read, found = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)
        found = found if read and len(found) == len(pages) else None
    if found is None:
        return None
    if len(pages) > 1:
        found = [values for values, page in zip(found, pages, strict=True) if page in own]
    if len({values.dtype for values in found}) > 1:
        raise DataError("the pages of a TIFF must have one depth")
    if len(own) > 1:
        # An array (height, width, channels) written as it is becomes as many pages as rows.
        by_rows = channels == found[0].shape[1] != len(found)
        values = np.stack(found, axis=0 if by_rows else -1)
    else:
        values = found[0].reshape(*found[0].shape[:2], -1)
        values = values[..., [2, 1, 0, 3][: values.shape[2]]] if values.shape[2] > 2 else values
    if color == _WHITE_IS_ZERO and values.dtype == "uint16":  # OpenCV does so with fewer bits.
        values = np.iinfo(values.dtype).max - values
    return np.ascontiguousarray(values)


def _read_tiff_with_tifffile(content, channels, color, places):
    """Reads bands of one page, or those pages of one band that are at the given `places`."""
    try:
        import tifffile
    except ImportError:
        raise DataError(
            "a TIFF of these bands is read by tifffile, which is not installed. Call: pip install "
            "'kseg[tiff]'"
        ) from None
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            if places is None or len(file.series) == 1:
                values, axes, shaped = series.asarray(), series.axes, file.is_shaped
            else:
                bands = [file.pages[place].asarray() for place in places]
                values, axes, shaped = np.stack(bands, axis=-1), "YXS", False
            bits = file.pages[0].bitspersample
    except Exception as error:  # Codecs raise exceptions of any type.
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"the TIFF file is damaged, or of a form that is not read ({reason})"
        ) from (None)
    if shaped and values.ndim == 3 and "S" not in axes:
        # An array that was written without saying which axis holds the bands.
        return _channels_last(values, channels, "TIFF file")
    kept = [
        axis for axis, length in zip(axes, values.shape, strict=True) if length > 1 or axis in "YX"
    ]
    values = values.reshape([n for a, n in zip(axes, values.shape, strict=True) if a in kept])
    others = [axis for axis in kept if axis not in "YX"]
    if len(others) > 1 or not {"Y", "X"} <= set(kept):
        raise DataError(
            f"a TIFF must hold one image of bands, this is a stack of {values.shape}. Divide it"
        )
    values = np.moveaxis(values, kept.index(others[0]), -1) if others else values[..., None]
    if color == _WHITE_IS_ZERO and values.dtype.kind == "u":
        values = (2**bits - 1) - values
    if bits < 8:
        values = (values.astype("uint16") * 255 // (2**bits - 1)).astype("uint8")
    return np.ascontiguousarray(values)
