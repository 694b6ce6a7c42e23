"""The format of images that are not 8-bit RGB: channels, dtype, range and statistics.

Everywhere, `None` instead of a `PixelFormat` means 8-bit RGB.
"""

import dataclasses

import numpy as np

DTYPES = ("uint8", "uint16", "float32")


@dataclasses.dataclass(frozen=True)
class PixelFormat:
    """The format of all images of a data set, determined when it is prepared.

    Attributes:
        channels: int > 0.
        dtype: one of `DTYPES`.
        value_range: `(low, high)`, as declared; otherwise 0 to 2^bits - 1 for the bits in use (4095
            for 12 bits in 16), for floating point the smallest and the largest value. Drawings
            show it from black to white.
        mean, std: tuples of floats, one for each channel, over all pixels of the training splits;
            the normalization of networks.
        minimum, maximum: tuples of floats, one for each channel, over all splits.
    """

    channels: int
    dtype: str
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]

    def __post_init__(self):
        counts = {len(getattr(self, n)) for n in ("mean", "std", "minimum", "maximum")}
        if self.dtype not in DTYPES or self.channels < 1 or counts != {self.channels}:
            raise ValueError(
                f"`dtype` must be one of {', '.join(DTYPES)}, and each statistic must have one "
                f"number for each of at least 1 channel. Received: {self}"
            )

    @classmethod
    def from_dict(cls, values):
        """Builds the format from the result of `to_dict`; returns None for None.

        Raises:
            ValueError, TypeError: if the values are not as `to_dict` returns them.
        """
        if not values:
            return None
        lists = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in values.items()}
        return cls(**lists)

    def to_dict(self):
        """Returns all attributes as a JSON-able dict."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def __str__(self):
        noun = "channel" if self.channels == 1 else "channels"
        low, high = self.value_range
        return f"{self.channels} {noun} of {self.dtype}, {low:g} to {high:g}"

    @property
    def normalization(self):
        """`(mean, std)` for the network: the std of a constant channel is 1."""
        return self.mean, tuple(std if std > 0 else 1.0 for std in self.std)

    @property
    def has_colors(self):
        """True if the channels are treated as red, green and blue: three channels of integers."""
        return self.channels == 3 and self.dtype != "float32"

    @property
    def padding(self):
        """Array `(channels,)` of `dtype`: the means, the value of pixels beyond the border."""
        mean = np.array(self.mean)
        return (mean if self.dtype == "float32" else np.rint(mean)).astype(self.dtype)

    def check(self, values):
        """Raises a ValueError unless an array `(..., channels)` has these channels and dtype."""
        if values.shape[-1] != self.channels or values.dtype != self.dtype:
            raise ValueError(
                f"an image must have {self.channels} channels of {self.dtype}. Received: "
                f"{values.shape[-1]} of {values.dtype}"
            )


def to_picture(values, pixel_format):
    """Converts pixels to 8-bit RGB for drawing.

    Args:
        values: array `(..., channels)`.
        pixel_format: `PixelFormat`, or None: `values` are RGB of 0 to 255, and returned unchanged.

    Returns:
        uint8 array `(..., 3)`: the first three channels, or the first as gray if there are fewer,
        with `value_range` mapped to 0 to 255; values outside are clipped.
    """
    if pixel_format is None:
        return values
    count = 3 if pixel_format.channels >= 3 else 1
    low, high = pixel_format.value_range
    scaled = (np.asarray(values[..., :count], "float32") - low) * (255 / max(high - low, 1e-30))
    picture = np.rint(np.clip(scaled, 0, 255)).astype("uint8")
    return picture if count == 3 else np.repeat(picture, 3, axis=-1)
