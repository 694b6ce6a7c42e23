"""Statistics of each channel of a data set, taken while its images are prepared.

Images are merged by the pairwise update of mean and sum of squared deviations, which loses no
precision where the mean is large against the deviation. Source: Chan, Golub, LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", 1979, Eq. 2.1.
"""

import numpy as np

from kseg.pixel_format import PixelFormat


def measure(values, empty=None):
    """Statistics of one image.

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
    mean = pixels.mean(axis=0, dtype="float64")
    squares = np.zeros_like(mean)
    for block in np.array_split(pixels, max(1, len(pixels) >> 16)):  # Bounds the memory.
        squares += np.square(block - mean).sum(axis=0)
    return {
        "count": len(pixels),
        "mean": mean.tolist(),
        "squares": squares.tolist(),
        "minimum": pixels.min(axis=0).astype("float64").tolist(),
        "maximum": pixels.max(axis=0).astype("float64").tolist(),
    }


def merge(parts):
    """Statistics of several images together; None for none.

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
