"""Class weights computed from pixel counts, for imbalanced data sets."""

import numpy as np

METHODS = ("median_frequency", "sqrt_median_frequency", "log")
LOG_OFFSET = 1.02


def class_weights(method, pixels):
    """Computes class weights from class frequencies.

    With p_c the fraction of labeled pixels that belong to class c:

    * `"median_frequency"`: `median(p) / p_c`, the median over the classes that occur. Source: Eigen
      and Fergus, ICCV 2015, Sec. 6.2. There p_c is relative to the pixels of the images that
      contain class c; here, as in most code, to all pixels.
    * `"sqrt_median_frequency"`: the square root of that, a milder form for long-tailed
      distributions. The total weight of a class is then proportional to `sqrt(p_c)`, between
      constant (`"median_frequency"`) and proportional to p_c (no weights).
    * `"log"`: `1 / ln(1.02 + p_c)`, at most 50.5. Source: Paszke et al., "ENet", 2016, Sec. 5.1.

    A class that does not occur has weight 0 and does not enter the median. The scale of the weights
    has no effect on a cross-entropy that is divided by their sum.

    Args:
        method: str, one of `METHODS`.
        pixels: ints, labeled pixels of each class, without ignored ones.

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
            "`pixels` must be one count >= 0 for each class, at least one of them positive. "
            f"Received: {pixels}"
        )
    occurs = counts > 0
    frequency = counts[occurs] / counts.sum()
    if method == "log":
        weight = 1.0 / np.log(LOG_OFFSET + frequency)
    else:
        weight = np.median(frequency) / frequency
        weight = np.sqrt(weight) if method == "sqrt_median_frequency" else weight
    weights = np.zeros_like(counts)
    weights[occurs] = weight
    return weights.tolist()
