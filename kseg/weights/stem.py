"""Adaptation of a first convolution that was trained on RGB to images of other channels."""

import numpy as np

STEMS = ("mean", "repeat")


def adapt(kernel, channels, how=None):
    """Adapts a kernel for red, green and blue to other channels.

    The result is scaled by `3 / channels`, so that the sum over the channels has the size that it
    had: normalized channels have one variance, and images of equal channels get the same output.

    Args:
        kernel: array `(height, width, 3, out)`.
        channels: int > 0.
        how: `"mean"`: each channel gets the mean of the three. `"repeat"`: the channels get red,
            green, blue, red, ... in turn, which suits images that begin with them. None: `"repeat"`
            for more than three channels, else `"mean"`.

    Returns:
        `(kernel, description)`: array `(height, width, channels, out)`, and str.

    Raises:
        ValueError: if `how` has another value.
    """
    how = how or ("repeat" if channels > 3 else "mean")
    if how not in STEMS:
        raise ValueError(f"`stem` must be one of {STEMS}, or None. Received: {how!r}")
    if how == "mean":
        parts = np.repeat(kernel.mean(axis=2, keepdims=True), channels, axis=2)
        done = "the mean of red, green and blue"
    else:
        parts = kernel[:, :, np.arange(channels) % 3]
        done = "red, green and blue repeated in turn"
    adapted = (parts * (3 / channels)).astype(kernel.dtype)
    noun = "channel" if channels == 1 else "channels"
    return adapted, f"{done}, for {channels} {noun}, times 3/{channels}"
