"""Conversion of values of more than 8 bits to 8 bits, by one rule for host and graph.

Preparation, prediction and the graph of a SavedModel must convert the values of an image in the
same way. The graph looks them up in a table computed by `to_8_bits`, so that no optimization of its
arithmetic can change a value.
"""

import numpy as np

FULL_RANGE = (0, 0xFFFF)


def to_8_bits(values, value_range):
    """Converts values to 8 bits.

    Args:
        values: array `(height, ...)` of integers or floating-point numbers, all finite.
        value_range: `(low, high)`: the values that become 0 and 255; values outside are clipped.

    Returns:
        uint8 array. Integers from 0 to 2^n - 1 lose their lower n - 8 bits; others become
        `255 (value - low) / (high - low)`, rounded to the nearest integer, ties to even.
    """
    low, high = value_range
    whole = values.dtype.kind == "u" and low == 0 and float(high).is_integer()
    bits = int(high).bit_length()
    if whole and bits >= 8 and high == 2**bits - 1:
        return (np.minimum(values, int(high)) >> (bits - 8)).astype("uint8")
    result = np.empty(values.shape, "uint8")
    # Row by row: a floating-point copy of an aerial image would exhaust the memory.
    for row, target in zip(values, result, strict=True):
        row = row.astype("float64")
        target[...] = np.rint(np.clip((row - low) / (high - low), 0, 1) * 255)
    return result


def table_of_16_bits(value_range):
    """Tabulates `to_8_bits` for all 16-bit values; uint8 `(65536,)`."""
    return to_8_bits(np.arange(1 << 16, dtype="uint16")[None], value_range)[0]
