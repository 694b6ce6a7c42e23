import numpy as np

METHODS = ("median_frequency", "sqrt_median_frequency", "log")
LOG_OFFSET = 1.02


def class_weights(method, pixels):
    """Weights of classes from how frequent they are.

    With the frequency p_c of class c, its part of all labelled pixels:

    * `"median_frequency"`: `median(p) / p_c`, over the classes that occur. Source: Eigen and
      Fergus, ICCV 2015, Sec. 6.2. There p_c is the part of the pixels of those images that class c
      is in; here, as in most code, of all.
    * `"sqrt_median_frequency"`: the square root of that. Milder, for long tails: the pixels of all
      classes then add up to weights in proportion to `sqrt(p_c)`, between equal shares and
      those of no weights.
    * `"log"`: `1 / ln(1.02 + p_c)`, at most 50.5. Source: Paszke et al., "ENet", 2016, Sec. 5.1.

    A class that never occurs has weight 0 and does not count for the median. The scale of the
    weights has no effect on a cross-entropy that is divided by the sum of them.

    Args:
        method: one of `METHODS`.
        pixels: ints, labelled pixels of each class, ignored ones not among them.

    Returns:
        list of floats >= 0, one for each class.

    Raises:
        ValueError: if `method` is unknown, a count is negative, or no class occurs.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}. Received: {method=}")
    counts = np.asarray(pixels, "float64")
    if counts.ndim != 1 or (counts < 0).any() or not counts.any():
        raise ValueError(
            f"`pixels` must be counts >= 0 of each class, of which one occurs. Received: {pixels}"
        )
    occurs = counts > 0
    frequency = counts[occurs] / counts.sum()
    if method == "log":
        found = 1.0 / np.log(LOG_OFFSET + frequency)
    else:
        found = np.median(frequency) / frequency
        found = np.sqrt(found) if method == "sqrt_median_frequency" else found
    weights = np.zeros_like(counts)
    weights[occurs] = found
    return weights.tolist()
