"""Statistics of each channel of a data set, computed while its images are prepared.

Images are merged by the pairwise update of mean and sum of squared deviations, which loses no
precision where the mean is large against the deviation. Source: Chan, Golub, LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", 1979, Eq. 2.1.
"""

import numpy as np

from kseg.pixel_format import PixelFormat


def measure(values, empty=None):
    """Computes the statistics of one image.

    Args:
        values: array `(height, width, channels)`, finite.
        empty: bool `(height, width)`, pixels that do not count; None: all count.

    Returns:
        None if no pixel counts, else a dict of `count` (pixels), and lists with one float for each
        channel: `mean`, `squares` (sum of squared deviations from it), `minimum`, `maximum`.
    """
    pixels = values.reshape(-1, values.shape[-1]) if empty is None else values[~empty]
    if not len(pixels):
        return None
    found = {"mean": [], "squares": [], "minimum": [], "maximum": []}
    # One channel after another: NumPy is several times slower along an axis of few channels.
    for channel in map(np.ascontiguousarray, pixels.T):
        mean = channel.mean(dtype="float64")
        squares = 0.0
        for block in np.array_split(channel, max(1, len(channel) >> 16)):  # Bounds the memory.
            squares += float(np.square(block - mean).sum())
        values = mean, squares, channel.min(), channel.max()
        for name, value in zip(found, values, strict=True):
            found[name].append(float(value))
    return {"count": len(pixels), **found}


def merge(parts):
    """Merges the statistics of several images; returns None for none.

    Args:
        parts: iterable of dicts as `measure` returns, or None.
    """
    total = None
    for part in filter(None, parts):
        if total is None:
            total = part
            continue
        (count, mean, squares), (more, other, others) = (
            (p["count"], np.array(p["mean"]), np.array(p["squares"])) for p in (total, part)
        )
        both, apart = count + more, other - mean
        total = {
            "count": both,
            "mean": (mean + apart * (more / both)).tolist(),
            "squares": (squares + others + apart**2 * (count * more / both)).tolist(),
            "minimum": np.minimum(total["minimum"], part["minimum"]).tolist(),
            "maximum": np.maximum(total["maximum"], part["maximum"]).tolist(),
        }
    return total


def pixel_format_of(training, everything, dtype, declared=None):
    """Describes the pixels of a data set.

    Args:
        training: dict as `measure` returns, of the training images.
        everything: likewise of all images.
        dtype: str, the type of the values.
        declared: `(low, high)` or None, the range if the user says so.

    Returns:
        `kseg.pixel_format.PixelFormat`.
    """
    low, high = min(everything["minimum"]), max(everything["maximum"])
    if dtype == "uint8":
        low, high = 0, 255
    elif dtype == "uint16":  # 10, 12 or 14 bits in 16 have a range of their own.
        low, high = 0, 2 ** max(8, int(high).bit_length()) - 1
    elif low == high:
        high = low + 1.0
    return PixelFormat(
        channels=len(training["mean"]),
        dtype=dtype,
        value_range=tuple(declared or (low, high)),
        mean=tuple(training["mean"]),
        std=tuple(np.sqrt(np.array(training["squares"]) / training["count"]).tolist()),
        minimum=tuple(everything["minimum"]),
        maximum=tuple(everything["maximum"]),
    )
