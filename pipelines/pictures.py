"""Decoding of picture files, by one set of rules for preparation, prediction and export checks.

The format is detected from the first bytes, never from the name. JPEG, PNG, BMP, TIFF, WebP
and still GIF files become uint8 RGB, upright:

* Decoder: TensorFlow for JPEG and PNG, using the accurate DCT (`INTEGER_ACCURATE`) for JPEG, as in
  training and in a SavedModel's `serving_bytes`; OpenCV for TIFF of more than 8 bits; Pillow for
  everything else.
* Orientation: taken from EXIF (JPEG, PNG's eXIf chunk, WebP) or the TIFF tag. XMP, color profiles
  and gamma are ignored.
* Channels: a single channel is repeated; palette indices become their colors; opacity is dropped,
  not blended; CMYK is multiplied out. Other numbers of channels are rejected.
* Depth: less than 8 bits is stretched to 0..255. 16-bit values are reduced to their higher 8 bits
  if any of them reaches half of the range; otherwise, and for floating point, the range must be
  given.
* Several pictures in a file: the first one is read (MPO, a TIFF with overviews), but animations and
  stacks of pages are rejected.
* No data: pixels of a TIFF that have the value of GDAL's "no data" tag in all channels, are outside
  of the file's mask or have opacity 0 are marked, see `pipelines.no_data`.
* Anything else, and any picture of 2^29 pixels or more, is rejected with an error that says what
  it is.

Decoding inside a graph (`pipelines.encoding`, `kseg.serving.serving_input`) follows the same rules,
bit for bit, for JPEG and PNG. The value range of a data set's deep pictures is stored with the run
and the exported network, so that prediction reads deep pictures as preparation did.
"""

import contextlib
import io
import mmap
import os
import struct
import threading
import typing
import warnings

import cv2
import numpy as np
from PIL import Image

from kseg import pixel_depth
from kseg.errors import option
from pipelines import no_data
from pipelines.errors import DataError

MAX_PIXELS = (1 << 29) - 1  # The most that TensorFlow's decoders read.
JPEG_DCT = "INTEGER_ACCURATE"
_ORIENTATION_TAG = 0x112
_NODATA_TAG, _NODATA_DIGITS = 42113, 64
_EXTRA_TAG, _OPACITY = 338, (1, 2)  # Meaning of the channels beyond the colors of a TIFF.
_MASK = 4  # Among the meanings of a TIFF's values, and of its pages.
_PALETTE = 3  # Among the meanings of a TIFF's values.
_LOG_LUV = (32844, 32845)  # OpenCV writes floating point so, and reads it as gray or RGB.
_SIGNATURES = [
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("TIFF", 0, b"II+\0"),
    ("TIFF", 0, b"MM\0+"),
    ("WebP", 8, b"WEBP"),
    ("GIF", 0, b"GIF8"),
    ("BMP", 0, b"BM"),
]
_KINDS = tuple(dict.fromkeys(kind for kind, *_ in _SIGNATURES))
_OTHER_SIGNATURES = [
    ("AVIF", 4, b"ftypavi"),
    ("HEIC", 4, b"ftyphei"),
    ("HEIC", 4, b"ftyphev"),
    ("HEIC", 4, b"ftypmif1"),
    ("HEIC", 4, b"ftypmsf1"),
    ("video", 4, b"ftyp"),
    ("video", 8, b"AVI "),
    ("video", 0, b"\x1aE\xdf\xa3"),
    ("JPEG 2000", 4, b"jP  "),
    ("JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("JPEG XL", 4, b"JXL "),
    ("JPEG XL", 0, b"\xff\x0a"),
    ("Photoshop", 0, b"8BPS"),
    ("OpenEXR", 0, b"v/1\x01"),
    ("Radiance", 0, b"#?RADIANCE"),
    ("FITS", 0, b"SIMPLE  ="),
    ("DICOM", 128, b"DICM"),
    ("HDF5", 0, b"\x89HDF"),
    ("NumPy", 0, b"\x93NUMPY"),
    ("PDF", 0, b"%PDF"),
    ("zip", 0, b"PK\x03\x04"),
    ("gzip", 0, b"\x1f\x8b"),
    *(("Netpbm", 0, b"P%d\n" % digit) for digit in range(1, 8)),
    *(("Netpbm", 0, b"P%d " % digit) for digit in range(1, 8)),
    *(("web page or SVG", 0, text) for text in (b"<svg", b"<?xml", b"<!DOC", b"<!doc", b"<html")),
]
# The errors that Pillow and OpenCV raise on damaged files, found by damaging files.
DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, struct.error, EOFError, LookupError, TypeError,
    OverflowError, AttributeError, cv2.error,
)  # fmt: skip


class TooLargeError(DataError):
    """A picture has more pixels than are read."""

    def in_preparation(self):
        """The message, with the option that makes preparation cut pictures into tiles."""
        return f"{self}: the data set 'folder' does so by {option('tile', 1024)}"


class Picture(typing.NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: uint8 RGB `(height, width, 3)`, upright.
        orientation: int, 1 to 8, the file's orientation in EXIF numbering; already applied to
            `pixels`.
        content: bytes of the file if it can be stored unchanged: a JPEG, or a PNG whose 8 bits,
            or higher 8 bits, are `pixels`; else None.
        deep: bool, whether the file has more than 8 bits per channel.
        empty: bool `(height, width)`, upright, the pixels without data; None: nothing marks them,
            as in all files but TIFF.
    """

    pixels: np.ndarray
    orientation: int
    content: bytes | None
    deep: bool = False
    empty: np.ndarray | None = None

    @property
    def stored_size(self):
        """`(height, width)` as stored in the file, before turning upright."""
        size = self.pixels.shape[:2]
        return size[::-1] if self.orientation > 4 else size


def read(content, value_range=None, *, max_pixels=MAX_PIXELS):
    """Reads a picture file by the rules of the module docstring.

    Args:
        content: bytes of the file.
        value_range: `(low, high)` or None, for pictures of more than 8 bits per channel: the values
            that map to 0 and 255; values outside are clipped. 8-bit pictures are not affected.
        max_pixels: int, checked before anything is decoded.

    Returns:
        `Picture`.

    Raises:
        TooLargeError: if the picture has more pixels.
        DataError: if the file cannot be read; says what the file is.
    """
    import tensorflow as tf  # Imported here: file kinds and sizes are read without it, also on JAX.

    kind = kind_of(content)
    try:
        if kind in ("JPEG", "PNG"):
            check_header(content, kind, max_pixels)
            pixels, kept, deep = _decode(content, kind, value_range)
            turned = orientation(content)
            return Picture(turn(pixels, turned), turned, content if kept else None, deep)
        return _read_with_pillow(content, kind, value_range, max_pixels)
    except DataError:
        raise
    except tf.errors.InvalidArgumentError:
        reason = ""
    except DECODER_ERRORS as error:
        reason = f" ({_first_line(error)})"
    except (Image.DecompressionBombError, MemoryError):
        raise DataError(f"the {kind} file needs more memory than there is") from None
    state = "truncated" if is_truncated(content) else f"damaged{reason}"
    raise DataError(f"the {kind} file is {state}")


def kind_of(content, what="an image", kinds=_KINDS):
    """Detects the format of a picture file from its first bytes.

    Args:
        content: bytes, at least the first few hundred.
        what: str, what the file should be; used in the error message.
        kinds: sequence of str, the accepted kinds.

    Returns:
        str: `"JPEG"`, `"PNG"`, `"BMP"`, `"TIFF"`, `"WebP"` or `"GIF"`.

    Raises:
        DataError: if the file is of another kind; says which.
    """
    kind = _find(content, _SIGNATURES)
    if kind in kinds:
        return kind
    kinds = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    if not content:
        raise DataError("the file is empty")
    if not content.strip(b"\0"):
        raise DataError("the file holds nothing but zeros")
    if content.startswith(b"version https://git-lfs"):
        raise DataError("the file is a pointer of Git LFS, not the picture. Call: git lfs pull")
    other = kind or _find(content, _OTHER_SIGNATURES)
    raise DataError(f"{what} must be a {kinds} file, this is {_named(other)}")


def orientation(content):
    """Reads the orientation of a picture file.

    Args:
        content: bytes of a JPEG, PNG, WebP or TIFF file.

    Returns:
        int, 1 to 8 as in EXIF; 1 if the tag is missing or invalid, and for other kinds of file.
    """
    kind = _find(content, _SIGNATURES)
    if kind == "TIFF":
        return _orientation_in_tiff(content)
    finders = {"JPEG": _exif_of_jpeg, "PNG": _exif_of_png, "WebP": _exif_of_webp}
    exif = finders[kind](content) if kind in finders else b""
    return _orientation_in_tiff(exif.removeprefix(b"Exif\0\0"))


def turn(values, orientation):
    """Turns an array upright.

    Args:
        values: array `(height, width, ...)`.
        orientation: int, 1 to 8, as in EXIF.

    Returns:
        array `(height, width, ...)`, or `(width, height, ...)` for orientations 5 to 8.
    """
    if orientation == 1:
        return values
    if orientation > 4:
        values = values.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(values[rows, columns])


def is_truncated(content):
    """Returns True if a picture file is shorter than its own structure says.

    Args:
        content: bytes of a file of a kind that `kind_of` detects.
    """
    kind = _find(content, _SIGNATURES)
    try:
        if kind == "JPEG":
            *_, (marker, _, at) = _jpeg_segments(content)
            return content.rfind(b"\xff\xd9") < at if marker == 0xDA else at + 4 > len(content)
        if kind == "PNG":
            *_, (name, _) = _png_chunks(content)
            return name != b"IEND"
        if kind == "WebP":
            return int.from_bytes(content[4:8], "little") + 8 > len(content)
        if kind == "BMP":
            return int.from_bytes(content[2:6], "little") > len(content)
        if kind == "GIF":
            return not content.rstrip(b"\0").endswith(b";")
        if kind == "TIFF":
            return _end_of_tiff(content) > len(content)
    except (ValueError, IndexError, struct.error):
        return True  # The file ends within its header.
    return False


def size_of_file(path):
    """`(height, width)` of a picture file as stored, from its header; None if unreadable."""
    if not os.path.isfile(path):  # Opening a pipe would block.
        return None
    # `read` reports what is wrong with a file.
    with contextlib.suppress(Exception), without_pixel_limit(), Image.open(path) as image:
        return image.size[::-1]
    with contextlib.suppress(Exception), mapped(path) as content:  # Bands that Pillow rejects.
        page = next(page for page in tiff_pages(content) if not is_part_of_other_page(page))
        return page[257][0], page[256][0]
    return None


@contextlib.contextmanager
def mapped(path):
    """Yields the bytes of a file that may exceed memory: those that are used are read."""
    with (
        open(path, "rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        yield content


def check_size(height, width, max_pixels=MAX_PIXELS):
    """Raises a TooLargeError if a picture is too large, by default for the decoders."""
    if height * width > max_pixels:
        rule = f"at most {max_pixels / 1e6:g} million"
        if max_pixels == MAX_PIXELS:
            rule = "fewer than 2^29 (537 million)"
        raise TooLargeError(
            f"a picture must have {rule} pixels, this has {width} x {height}. Cut it into tiles"
        )


def to_8_bits(values, value_range=None):
    """Converts deep values to 8 bits.

    Args:
        values: array of integers or floating-point numbers.
        value_range: `(low, high)`, see `read`; None: takes the higher 8 of 16 bits.

    Returns:
        uint8 array, see `kseg.pixel_depth.to_8_bits`.

    Raises:
        DataError: if a range is needed but not given, or if values are not finite.
    """
    if value_range is None:
        value_range = _range_of(values)
    if values.dtype.kind == "f" and not all(np.isfinite(row).all() for row in values):
        raise DataError("the picture holds values that are not finite (NaN or infinite)")
    return pixel_depth.to_8_bits(values, value_range)


def check_range(value_range):
    """Raises a DataError unless the range is None or two finite numbers in ascending order."""
    if value_range is not None and not (
        len(value_range) == 2 and np.isfinite(value_range).all() and value_range[0] < value_range[1]
    ):
        raise DataError(
            f"{option('value_range')} takes the lowest and the highest value, such as 0 and 4095. "
            f"Received: {' '.join(map(str, value_range))}"
        )


def _range_of(values):
    """The range of deep values if it is unambiguous; raises a DataError if not."""
    if values.dtype == np.uint16:
        largest = int(values.max(initial=0))
        if largest in (0, *range(1 << 15, 1 << 16)):
            return pixel_depth.FULL_RANGE
        bits = max(largest.bit_length(), 8)
        raise DataError(
            f"the picture has 16 bits a channel and uses {bits} (largest value {largest}), so "
            f"white could be {2**bits - 1} or 65535. Say which: "
            f"{option('value_range', (0, 2**bits - 1))}, or {option('value_range', (0, 65535))}"
        )
    low, high = (float(f(values)) for f in (np.nanmin, np.nanmax))
    guess = (0, 1) if low >= 0 and high <= 1 else (low, high)
    raise DataError(
        f"the picture holds {values.dtype} values, {low:g} to {high:g}. Say which become black and "
        f"white, for all pictures: {option('value_range', guess)}"
    )


def check_header(content, kind, max_pixels=MAX_PIXELS):
    """Raises a DataError that gives the reason if the decoder would not read a JPEG or PNG."""
    if kind == "PNG":
        if len(content) < 33:
            raise DataError("the PNG file is truncated")
        width, height = struct.unpack(">II", content[16:24])
    else:
        frame = next((s for s in _jpeg_segments(content) if _is_frame(s[0])), None)
        if frame is None or len(frame[1]) < 6:
            state = "truncated" if is_truncated(content) else "damaged (it has no frame)"
            raise DataError(f"the JPEG file is {state}")
        bits, height, width, channels = struct.unpack(">BHHB", frame[1][:6])
        if bits != 8:
            raise DataError(f"a JPEG must have 8 bits a channel, this has {bits}. Convert it")
        if frame[0] not in (0xC0, 0xC1, 0xC2):
            form = "lossless" if frame[0] in (0xC3, 0xC7, 0xCB, 0xCF) else "arithmetic or nested"
            raise DataError(f"a JPEG must be baseline or progressive, this is {form}. Convert it")
        if channels not in (1, 3, 4):
            raise DataError(f"a JPEG must have 1, 3 or 4 channels, this has {channels}")
    if not height or not width:
        raise DataError(f"the {kind} file has no pixels ({width} x {height})")
    check_size(height, width, max_pixels)


def _decode(content, kind, value_range):
    """Decodes a JPEG or PNG.

    Returns:
        `(pixels, kept, deep)`: uint8 RGB; whether `pixels` are the file's 8 bits or its higher
        8 bits; whether the file has more than 8 bits per channel.
    """
    import tensorflow as tf

    if kind == "JPEG":
        return tf.io.decode_jpeg(content, channels=3, dct_method=JPEG_DCT).numpy(), True, False
    if content[24] < 16:
        return tf.io.decode_png(content, channels=3).numpy(), True, False
    values = tf.io.decode_png(content, channels=3, dtype="uint16").numpy()
    whole = value_range is None or tuple(value_range) == pixel_depth.FULL_RANGE
    return to_8_bits(values, value_range), whole, True


def _read_with_pillow(content, kind, value_range, max_pixels):
    turned = orientation(content)
    if kind == "TIFF":
        content = upright_tiff(content)
        values = _read_deep_tiff(content, max_pixels)
        if values is not None:
            empty = find_empty(content, values, find_hidden(content, values))
            pixels = to_8_bits(_as_three(values, empty, value_range), value_range)
            empty = None if empty is None else turn(empty, turned)
            return Picture(turn(pixels, turned), turned, None, True, empty)
    with without_pixel_limit():
        image = Image.open(io.BytesIO(content), formats=[kind.upper()])
    with image:
        check_size(*image.size[::-1], max_pixels)
        frames = 1 if kind == "TIFF" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise DataError(
                f"an image must be one picture, this {kind} is an animation of {frames} frames. "
                "Convert it to single pictures or a video"
            )
        empty = None
        if kind == "TIFF":
            values = np.asarray(image)
            values = values * np.uint8(255) if values.dtype == bool else values
            values = values if values.ndim == 3 else values[..., None]
            empty = find_empty(content, values, find_hidden(content, values))
            empty = None if empty is None else turn(empty, turned)
        return Picture(turn(_as_rgb(image), turned), turned, None, False, empty)


def find_empty(content, values, hidden=None):
    """Finds the pixels of a picture file that have no data, see `pipelines.no_data`.

    Args:
        content: bytes of the file.
        values: array `(height, width, channels)`, all channels of the file as stored, not turned.
        hidden: result of `find_hidden`.

    Returns:
        bool `(height, width)`, as stored; None if nothing marks such pixels, as in all files but
        TIFF.
    """
    nodata = nodata_of_tiff(content)
    found = [None if nodata is None else no_data.is_empty(values, nodata)]
    found += [hidden, _outside_of_mask(content, values.shape[:2])]
    found = [empty for empty in found if empty is not None]
    return np.logical_or.reduce(found) if found else None


def find_hidden(content, values):
    """Finds the pixels of opacity 0; None if the file has no opacity, see `pipelines.no_data`.

    Args:
        content, values: as for `find_empty`.

    Returns:
        bool `(height, width)`, as stored, or None.
    """
    return no_data.find_hidden(values) if has_opacity(content) else None


def has_opacity(content):
    """Returns True for a TIFF whose last channel is tagged as opacity.

    Args:
        content: bytes of a picture file.
    """
    with contextlib.suppress(struct.error):
        tags = {tag: values for tag, _, values, _ in _tiff_entries(content, 1 << 16)}
        return tags.get(_EXTRA_TAG, (0,))[-1] in _OPACITY and tags.get(277, (1,))[0] > 1
    return False


def has_mask(content):
    """Returns True for a TIFF with a mask of its first picture, in a page of its own.

    Args:
        content: bytes of a picture file.
    """
    return _mask_page(content) is not None


def _mask_page(content):
    """Finds the mask of a TIFF's first picture: `(index, tags)` of its page, or None."""
    if _tiff_head(content)[0] is None:
        return None
    pages = tiff_pages(content)
    size = {tag: pages[0].get(tag) for tag in (256, 257)} if pages else {}
    for index, page in enumerate(pages):
        # Masks of overviews also have bit 0.
        if page.get(254, (0,))[0] & 5 == _MASK and size.items() <= page.items():
            return index, page
    return None


def _outside_of_mask(content, size):
    """Returns the pixels outside a TIFF's mask, bool `(height, width)`; None without a mask."""
    found = _mask_page(content)
    if found is None or (found[1][257][0], found[1][256][0]) != tuple(size):
        return None
    with without_pixel_limit():
        mask = Image.open(io.BytesIO(_with_first_page(content, found[0])), formats=["TIFF"])
    with mask:
        return np.asarray(mask) == 0


def _with_first_page(content, index):
    """Returns the TIFF with the given page first, marked as gray if that is a mask."""
    order, big, at = _tiff_head(content)
    for _ in range(index):
        at = _tiff_directory(content, order, big, at, 1)[1]
    place = (8, f"{order}Q") if big else (4, f"{order}I")
    content = bytearray(content)
    struct.pack_into(place[1], content, place[0], at)
    for tag, form, values, offset in _tiff_directory(content, order, big, at, 1)[0]:
        if tag == 262 and values[0] == _MASK and form in (3, 4):
            struct.pack_into(order + {3: "H", 4: "I"}[form], content, offset, 1)
    return bytes(content)


def _as_three(values, empty, value_range):
    """Three channels of the values of a deep TIFF; pixels without data get the lowest value."""
    channels = [0, 0, 0] if values.shape[2] in (1, 2) else [2, 1, 0]
    chosen = np.ascontiguousarray(values[..., channels])
    if empty is not None:
        if value_range is not None:
            chosen[empty] = chosen.dtype.type(value_range[0])
        elif empty.any() and not empty.all():
            chosen[empty] = chosen[~empty].min()
    return chosen


def _as_rgb(image):
    """An opened picture of at most 8 bits as uint8 `(height, width, 3)`, opacity dropped."""
    if image.mode in ("RGBa", "La"):  # Colors premultiplied by the opacity.
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "RGBX"):
        return np.ascontiguousarray(np.asarray(image)[..., :3])
    if image.mode == "LA":
        return np.repeat(np.asarray(image)[..., :1], 3, axis=2)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
        return np.ascontiguousarray(np.asarray(image)[..., :3])
    return np.array(image.convert("RGB"))


def _read_deep_tiff(content, max_pixels):
    """Values of a TIFF of more than 8 bits, of its channels as OpenCV orders them, else None.

    Checks any TIFF.
    """
    tags = {tag: values for tag, _, values, _ in _tiff_entries(content, 4)}
    width, height, bits, channels = (
        tags.get(tag, (default,)) for tag, default in ((256, 0), (257, 0), (258, 1), (277, 1))
    )
    check_size(height[0], width[0], max_pixels)
    if channels[0] > 4:
        raise DataError(
            f"an image must have 1 to 4 channels, this has {channels[0]}. To keep them all, "
            f"prepare the data with {option('channels', channels[0])}"
        )
    pages = _count_pages(content)
    if pages > 1:
        raise DataError(
            f"an image must be one picture, this TIFF has {pages} pages. Divide it, or read its "
            f"pages as channels: {option('channels', pages)}"
        )
    if max(bits) <= 8:
        return None
    kind = tags.get(262, (1,))[0]
    if kind not in (0, 1, 2, *_LOG_LUV):
        raise DataError(
            "a TIFF of more than 8 bits must be gray or RGB, this is of another color space. "
            "Convert it"
        )
    values = cv2.imdecode(np.frombuffer(content, "uint8"), cv2.IMREAD_UNCHANGED)
    if values is None:
        if is_truncated(content):
            raise DataError("the TIFF file is truncated")
        raise DataError("the TIFF file is of a form that is not read. Convert it to PNG")
    if kind == 0 and values.dtype.kind == "u":  # White is 0.
        values = np.iinfo(values.dtype).max - values
    return values[..., None] if values.ndim == 2 else values


def _find(content, signatures):
    """The first kind whose signature matches the content; None if none does."""
    return next((kind for kind, at, s in signatures if content[at : at + len(s)] == s), None)


def _named(kind):
    if kind is None:
        return "something else"
    return f"{'an' if kind[0] in 'AFHO' else 'a'} {kind}{' file' if kind.isupper() else ''}"


def _is_frame(marker):
    """Returns True if a JPEG marker starts a frame (SOF0 to SOF15, except DHT, JPG and DAC)."""
    return 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)


def _jpeg_segments(content):
    """Yields `(marker, segment, end position)` of a JPEG's segments up to its first scan."""
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            return
        marker = content[position + 1]
        if marker == 0xFF:  # Fill bytes may precede a marker.
            position += 1
            continue
        length = int.from_bytes(content[position + 2 : position + 4], "big")
        yield marker, content[position + 4 : position + 2 + length], position + 2 + length
        if marker == 0xDA or length < 2:
            return
        position += 2 + length


def _png_chunks(content):
    """Yields `(name, data)` of the complete chunks of a PNG."""
    position = 8
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        if position + 12 + length > len(content):
            return
        name = content[position + 4 : position + 8]
        yield name, memoryview(content)[position + 8 : position + 8 + length]
        if name == b"IEND":
            return
        position += 12 + length


def _exif_of_jpeg(content):
    segments = (segment for marker, segment, _ in _jpeg_segments(content) if marker == 0xE1)
    return next((segment for segment in segments if segment[:6] == b"Exif\0\0"), b"")


def _exif_of_png(content):
    return next((bytes(data) for name, data in _png_chunks(content) if name == b"eXIf"), b"")


def _exif_of_webp(content):
    position = 12
    while position + 8 <= len(content):
        length = int.from_bytes(content[position + 4 : position + 8], "little")
        if content[position : position + 4] == b"EXIF":
            return content[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    return b""


def _tiff_entries(content, count):
    """Returns `(tag, type, values, position of the values)` of a TIFF's first directory.

    Args:
        content: bytes of a TIFF file or of EXIF data, which have the same structure.
        count: int, maximum number of values to read per entry.

    Raises:
        struct.error: if the content ends too early.
    """
    order, big, first = _tiff_head(content)
    return _tiff_directory(content, order, big, first, count)[0] if order else []


def _tiff_head(content):
    """`(order, big, first)`: byte order or None, whether BigTIFF, offset of the first directory."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(content[:2]))
    if order is None or len(content) < 8:
        return None, False, 0
    version, first = struct.unpack(f"{order}HI", content[2:8])
    if version == 43:  # BigTIFF: 64-bit offsets where TIFF has 32-bit ones.
        return order, True, struct.unpack(f"{order}Q", content[8:16])[0]
    return (order, False, first) if version == 42 else (None, False, 0)


def _tiff_directory(content, order, big, first, count):
    """Returns a directory's entries, see `_tiff_entries`, and the next one's offset or 0."""
    head, entry, kind = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    (length,) = struct.unpack_from(order + head, content, first)
    at = first + struct.calcsize(order + head)
    size, width = struct.calcsize(order + entry), struct.calcsize(order + kind)
    formats = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}
    entries = []
    for _ in range(length):
        tag, form, number = struct.unpack_from(order + entry, content, at)
        offset = at + size
        at = offset + width
        if form in formats and number:
            if number * struct.calcsize(formats[form]) > width:
                (offset,) = struct.unpack_from(order + kind, content, offset)
            number = min(number, count, len(content))
            values = struct.unpack_from(f"{order}{number}{formats[form]}", content, offset)
            entries.append((tag, form, values, offset))
    return entries, (struct.unpack_from(order + kind, content, at) if at < len(content) else (0,))[
        0
    ]


def _count_pages(content):
    """Number of pages of a TIFF, not counting overviews and masks of other pages."""
    return sum(not is_part_of_other_page(page) for page in tiff_pages(content))


def is_part_of_other_page(page):
    """Returns True for an overview (bit 0 of the tag) or a mask (bit 2) among `tiff_pages`."""
    return bool(page.get(254, (0,))[0] & 5)


def tiff_pages(content):
    """The tags of all pages of a TIFF, at most 10,000; fewer if the file is truncated.

    Args:
        content: bytes of a TIFF file.

    Returns:
        list of dict from the number of a tag to a tuple of its first 4 whole numbers.
    """
    order, big, at = _tiff_head(content)
    pages, seen = [], set()
    with contextlib.suppress(struct.error):
        while at and at not in seen and len(seen) < 10_000:
            seen.add(at)
            entries, at = _tiff_directory(content, order, big, at, 4)
            pages.append({tag: values for tag, _, values, _ in entries})
    return pages


def _orientation_in_tiff(content):
    """The orientation in the first directory of EXIF data or of a TIFF; 1 without the tag."""
    order, big, first = _tiff_head(content)
    if big:
        with contextlib.suppress(struct.error):
            tags = {tag: values[0] for tag, _, values, _ in _tiff_entries(content, 1)}
            value = tags.get(_ORIENTATION_TAG)
            return value if value in range(1, 9) else 1
        return 1
    if order is None or first + 2 > len(content):
        return 1
    (count,) = struct.unpack_from(f"{order}H", content, first)
    for i in range(min(count, (len(content) - first - 2) // 12)):
        entry = struct.unpack_from(f"{order}HHIHH", content, first + 2 + 12 * i)
        if entry[0] == _ORIENTATION_TAG:
            # A short number, or a long one that fits into 16 bits: its lower half.
            half = 4 if order == ">" and entry[1] == 4 else 3
            fits = entry[1] == 3 or (entry[1] == 4 and entry[7 - half] == 0)
            valid = fits and entry[2] == 1 and 1 <= entry[half] <= 8
            return entry[half] if valid else 1
    return 1


def nodata_of_tiff(content):
    """The "no data" value of a picture file, from GDAL's tag.

    Args:
        content: bytes of the file.

    Returns:
        float, may be NaN, after what readers do to integers: less than 8 bits are stretched, and
        inverted where 0 means white; None if the file has no such value, or is no TIFF.
    """
    with contextlib.suppress(struct.error, ValueError):
        tags = {tag: values for tag, _, values, _ in _tiff_entries(content, _NODATA_DIGITS)}
        if _NODATA_TAG not in tags:
            return None
        nodata = float(bytes(tags[_NODATA_TAG]).decode("latin-1").strip(" \0"))
        bits, color = (tags.get(tag, (1,))[0] for tag in (258, 262))
        highest = (1 << bits) - 1
        if tags.get(339, (1,))[0] != 1 or nodata not in range(highest + 1) or color == _PALETTE:
            return nodata
        if bits < 8:
            nodata, highest = nodata * 255 // highest, 255
        return highest - nodata if color == 0 else nodata
    return None


def upright_tiff(content):
    """A TIFF with its orientation tag set to 1 and all other bytes unchanged.

    OpenCV and some versions of Pillow turn a TIFF upright on loading, others do not.
    """
    with contextlib.suppress(struct.error):
        for tag, form, _, offset in _tiff_entries(content, 1):
            if tag == _ORIENTATION_TAG and form in (3, 4):
                width = 2 if form == 3 else 4
                one = (1).to_bytes(width, "little" if content[:1] == b"I" else "big")
                return content[:offset] + one + content[offset + width :]
    return content


def _end_of_tiff(content):
    """Returns the byte offset at which the data of a TIFF's first page ends."""
    tags = {tag: values for tag, _, values, _ in _tiff_entries(content, 1 << 24)}
    ends = [0]
    for places, lengths in ((273, 279), (324, 325)):
        ends += [a + b for a, b in zip(tags.get(places, ()), tags.get(lengths, ()), strict=False)]
    return max(ends)


def _first_line(error):
    return " ".join(str(error).split())[:100]


_limit = threading.Lock()


@contextlib.contextmanager
def without_pixel_limit():
    """Lifts Pillow's limit on picture size, which is global to the process.

    Suppresses Pillow's warnings about damaged files: an unreadable file raises an error later.
    """
    with _limit, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
