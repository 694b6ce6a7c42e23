"""Reading of mask files: pixel values exactly as stored.

Ordinary picture decoding stretches values, applies palettes and fills in truncated data, which
would corrupt a mask. PNG, BMP and TIFF are read, and JPEG where its lossy compression does no harm.
"""

import dataclasses
import functools
import io
import warnings
import zlib

import cv2
import numpy as np
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from kseg.errors import option
from pipelines import pictures
from pipelines.errors import DataError

# Silence Pillow's warnings about damaged files: they are rejected, or read all the same.
warnings.filterwarnings("ignore", "Corrupt EXIF data|Truncated File Read", module="PIL")

_READERS = {
    "PNG": PngImagePlugin.PngImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
}
_TIFF_BITS, _TIFF_COMPRESSION, _TIFF_MEANING = 258, 259, 262
_TIFF_JPEG = (6, 7, 34892)
_TIFF_WHITE_IS_ZERO = 0
_TIFF_ORIENTATION = 274
# Pillow turns a TIFF upright: the orientation that undoes this.
_TURNED_BACK = {6: 8, 8: 6}
_WHOLE = ("I", "I;16", "I;16B", "I;16L", "F")


@dataclasses.dataclass(frozen=True)
class Mask:
    """A decoded mask.

    Attributes:
        values: uint8 or uint16 `(height, width)`, or `(height, width, 3)` for red, green, blue, as
            stored, disregarding any orientation tag. Values of less than 8 bits are 0, 1, ... as
            stored, not stretched to 255. With a palette, they are its indices.
        palette: uint8 `(colors, 3)`, or None.
        white: int, the largest value that the file's bit depth can hold.
    """

    values: np.ndarray
    palette: np.ndarray | None
    white: int

    @functools.cached_property
    def is_colored(self):
        """True if there are three channels and they differ; a palette is disregarded."""
        if self.values.ndim == 2:
            return False
        first = self.values[..., 0]
        return not all((self.values[..., i] == first).all() for i in (1, 2))

    @property
    def has_palette_colors(self):
        """True if there is a palette that is not simply the shades of gray in order."""
        if self.palette is None:
            return False
        grey = np.arange(len(self.palette))[:, None]
        return bool((self.palette != grey).any())


def decode_mask(content, *, lossy=False):
    """Decodes a mask.

    Args:
        content: bytes of a PNG, BMP or TIFF file.
        lossy: bool, also accept JPEG.

    Returns:
        `Mask`.

    Raises:
        DataError: if it is not such a file, is damaged or truncated, holds several pictures or
            values outside 0 to 65535, or if one color is both visible and transparent.
    """
    if content.startswith(b"\xff\xd8\xff") and not lossy:
        raise DataError(
            "a mask must not be a JPEG file: JPEG changes values. Use PNG files, or "
            f"{option('masks', 'binary')} if there are two classes, black and white"
        )
    try:
        kind = pictures.kind_of(content, "a mask", [k for k in _READERS if lossy or k != "JPEG"])
    except DataError as error:
        raise DataError(f"the label cannot be decoded: {error}") from None
    if kind == "PNG":
        check_png(content)
    try:
        return _decode(content, kind)
    except DataError:
        raise
    except Exception as error:  # Pillow has no error class of its own and may raise anything.
        reason = " ".join(str(error).split())
        raise DataError(f"the label cannot be decoded ({reason or type(error).__name__})") from None


def _decode(content, kind):
    # The plugin's class, because `PIL.Image.open` rejects more than 179 million pixels.
    with _READERS[kind](io.BytesIO(content)) as picture:
        pictures.check_size(picture.height, picture.width)
        if getattr(picture, "n_frames", 1) > 1:
            raise DataError(f"a mask must be one picture, this file holds {picture.n_frames}")
        bits = _bits(picture, content, kind)
        if bits > 8 and picture.mode not in _WHOLE:
            return _decode_deep_colors(content)
        orientation = picture.tag_v2.get(_TIFF_ORIENTATION, 1) if kind == "TIFF" else 1
        palette, mode = None, picture.mode
        values = pictures.turn(np.asarray(picture), _TURNED_BACK.get(orientation, orientation))
        if mode == "1":
            values = values.astype("uint8")
        elif mode == "P":
            palette = np.array(picture.getpalette("RGB"), "uint8").reshape(-1, 3)
        elif mode == "L" and bits in (2, 4):
            values = values // (255 // ((1 << bits) - 1))  # Pillow stretches them to 0..255.
        elif mode in ("LA", "RGBA"):
            check_opacity(values[..., :-1], values[..., -1])
            values = values[..., 0] if mode == "LA" else values[..., :3]
        elif mode in _WHOLE:
            values = as_uint16(values)
        elif mode not in ("L", "RGB"):
            raise DataError(f"a mask must be gray, RGB or have a palette, this is {mode}")
        white = 255 if values.ndim == 3 or mode == "P" else (1 << min(bits, 16)) - 1
        return Mask(np.ascontiguousarray(values), palette, white)


def _bits(picture, content, kind):
    """Returns the bits per channel, as stored in the file."""
    if kind == "PNG":
        return content[24]
    if kind == "TIFF":
        tags = picture.tag_v2
        if tags.get(_TIFF_COMPRESSION) in _TIFF_JPEG:
            raise DataError("a mask must not be compressed by JPEG, which changes values")
        if tags.get(_TIFF_MEANING) == _TIFF_WHITE_IS_ZERO:
            raise DataError("a TIFF whose zero means white has two readings. Save the mask as PNG")
        return max(tags.get(_TIFF_BITS, (1,)))
    return 1 if picture.mode == "1" else 8


def _decode_deep_colors(content):
    """Decodes several 16-bit channels, which Pillow would reduce to 8 bits, as they are stored."""
    stored = pictures.upright_tiff(content)  # OpenCV would turn it.
    values = cv2.imdecode(np.frombuffer(stored, "uint8"), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise DataError("the label cannot be decoded")
    if values.shape[2] == 4:
        check_opacity(values[..., :3], values[..., 3])
    return Mask(np.ascontiguousarray(values[..., 2::-1]), None, 65535)


def as_uint16(values):
    """Converts whole numbers from 0 to 65535 of any type to uint16.

    Raises:
        DataError: if there are others.
    """
    whole = values.astype("uint16", casting="unsafe")
    if values.dtype != np.uint16 and (whole != values).any():
        raise DataError("a mask must hold whole numbers from 0 to 65535, this has others")
    return whole


def check_opacity(colors, opacity):
    """Raises a DataError if a color is both visible and transparent, which is ambiguous.

    Args:
        colors: array `(height, width, channels)`.
        opacity: array `(height, width)`.
    """
    hidden = opacity == 0
    if hidden.all() or not hidden.any():
        return
    codes = np.zeros(hidden.shape, "int64")
    for channel in range(colors.shape[-1]):
        codes = codes << 16 | colors[..., channel]
    both = np.intersect1d(codes[hidden], codes[~hidden])
    if both.size:
        color = [int(both[0]) >> 16 * i & 0xFFFF for i in reversed(range(colors.shape[-1]))]
        raise DataError(
            f"opacity (alpha) is not read, but here the color {color} is both visible and fully "
            "transparent. Save the mask without transparency, each class in a color of its own"
        )


def check_png(content, what="the label"):
    """Checks the checksums of a PNG's chunks: Pillow skips those of the pixel data.

    Args:
        content: bytes.
        what: str, its name in messages.

    Raises:
        DataError: if the file is cut off or a checksum is wrong.
    """
    position, kind = 8, b""  # After the signature.
    while kind != b"IEND":
        length = int.from_bytes(content[position : position + 4], "big")
        end = position + 12 + length
        if position + 12 > len(content) or end > len(content):
            raise DataError(f"{what} cannot be decoded: the file is cut off")
        kind = content[position + 4 : position + 8]
        checksum = int.from_bytes(content[end - 4 : end], "big")
        if zlib.crc32(memoryview(content)[position + 4 : end - 4]) != checksum:
            raise DataError(
                f"{what} cannot be decoded: the checksum of {kind!r} at byte {position} is wrong"
            )
        position = end
