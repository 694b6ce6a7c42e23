"""The result of every reader of weights files, and the conversion of bfloat16 that they share."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The arrays of a weights file, and a list of its other entries.

    Attributes:
        arrays: dict from name to array. Arrays may be read-only, and views of one another.
        beside: dict from the name of any other entry to a description of it.
    """

    arrays: dict
    beside: dict


def bfloat16_to_float32(bits):
    """Converts bfloat16 numbers, given as bit patterns, to float32.

    Args:
        bits: uint16 array.

    Returns:
        float32 array of the same shape. Exact: a bfloat16 is the upper half of a float32.
    """
    return (bits.astype("uint32") << 16).view("float32")
