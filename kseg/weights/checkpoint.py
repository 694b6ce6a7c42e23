import dataclasses


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The arrays of a file, and what else stood in it.

    Attributes:
        arrays: dict from name to array. Arrays may be read-only, and views of one another.
        beside: dict from the name of anything else to what it is.
    """

    arrays: dict
    beside: dict


def bfloat16_to_float32(bits):
    """Widens bfloat16 numbers, given by their bits.

    Args:
        bits: uint16 array.

    Returns:
        float32 array of the same shape: a bfloat16 is the upper half of a float32.
    """
    return (bits.astype("uint32") << 16).view("float32")
