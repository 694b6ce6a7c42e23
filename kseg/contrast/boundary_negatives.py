"""Boundary-aware negative sampling: pixels of prediction errors, near the edges of the errors."""

import keras
from keras import ops

from kseg.contrast.grouping import (
    assign_rows_to_groups,
    minor_bits,
    random_minor,
    sort_by_group,
    within,
)

# Squared distance in a region without an edge. Squared distances within an image can be added to it
# without overflow.
FAR = 2**28
# The largest sample: 512 times this fits into an int32.
MAX_SAMPLES = 2**22 - 1


def error_regions(labels, predictions, num_classes):
    """Marks each wrongly predicted pixel with the predicted class.

    The pixels marked n are the error map of class n: predicted as n, but of another class.

    Source: Sung et al., "Contextrast", CVPR 2024, boundary-aware negative sampling.

    Args:
        labels: int32 tensor, any shape; values outside `[0, num_classes)` are ignored.
        predictions: int32 tensor of the same shape.
        num_classes: int.

    Returns:
        int32 tensor of the same shape, -1 where the prediction is correct or the label ignored.
    """
    known = ops.logical_and(labels >= 0, labels < num_classes)
    return ops.where(ops.logical_and(known, labels != predictions), predictions, -1)


def squared_edge_distance(regions):
    """Computes the squared distance of each pixel to the nearest pixel outside its region.

    The exact Euclidean distance transforms of all regions at once: within the mask `regions == n`,
    the result equals the distance transform of that mask. The image border is not an edge.

    Args:
        regions: int32 tensor `(batch, height, width)`, the index of a region, or -1 for none.

    Returns:
        int32 tensor `(batch, height, width)`: squared distance in pixels, 0 outside the regions,
        at least `FAR` in a region that fills its image.
    """
    # Separable: the nearest outside pixel is the nearest one within its own column.
    inside = regions >= 0
    start = ops.where(inside, FAR, 0)
    along_columns = _nearest(regions, start, inside, axis=1)
    return _nearest(regions, along_columns, inside, axis=2)


def _nearest(regions, cost, inside, *, axis):
    """Minimizes `(p - q)^2 + cost(q)` for each pixel p over the pixels q of its line.

    The cost of a pixel q of another region is 0. The search proceeds outward from all pixels at
    once and ends when no larger distance can improve a minimum: error regions are thin.

    Args:
        regions, cost, inside: tensors `(batch, height, width)`.
        axis: int, the axis along which a line runs.

    Returns:
        int32 tensor `(batch, height, width)`.
    """
    size = regions.shape[axis]
    margin = [(size, size) if i == axis else (0, 0) for i in range(3)]
    outside = -2
    padded_regions = ops.pad(regions, margin, constant_values=outside)
    padded_cost = ops.pad(cost, margin, constant_values=FAR)

    def look(nearest, shift):
        start = [size + shift if i == axis else 0 for i in range(3)]
        shifted = ops.slice(padded_regions, start, regions.shape)
        costly = ops.logical_or(shifted == regions, shifted == outside)
        candidate = ops.where(costly, ops.slice(padded_cost, start, regions.shape), 0)
        return ops.minimum(nearest, candidate + shift * shift)

    def body(distance, nearest):
        nearest = look(look(nearest, distance), -distance)
        return distance + 1, ops.where(inside, nearest, 0)

    def can_improve(distance, nearest):
        return ops.logical_and(distance < size, distance * distance < ops.max(nearest))

    _, nearest = ops.while_loop(can_improve, body, (ops.ones((), "int32"), cost))
    return nearest


def boundary_aware_samples(
    labels,
    regions,
    distance,
    num_classes,
    *,
    max_samples,
    min_negatives,
    hard_fraction=0.5,
    negatives="boundary",
    seed=None,
):
    """Draws, for each class, pixels of the class and pixels that are easily mistaken for it.

    Each present class gets up to `max_samples / (number of present classes)` samples of each kind;
    if there are more classes than `max_samples`, a random selection of them gets one each.
    Positives are drawn from the pixels of the class. Negatives are drawn from the fraction
    `hard_fraction` of its error pixels (at least one) nearest to an edge of their error; if these
    are fewer than `min_negatives`, pixels of other classes, drawn with replacement, make up the
    difference.

    Source: Sung et al., "Contextrast", CVPR 2024, boundary-aware negative sampling.

    Args:
        labels: int32 tensor `(pixels,)`, static; values outside `[0, num_classes)` are ignored.
        regions: int32 tensor `(pixels,)` from `error_regions`.
        distance: int32 tensor `(pixels,)` from `squared_edge_distance`.
        num_classes: int.
        max_samples: int in `[1, MAX_SAMPLES]`, rows of either result.
        min_negatives: int, the least number of negatives of each present class, within its share of
            `max_samples` and provided that another class is present.
        hard_fraction: float in (0, 1].
        negatives: `"boundary"` as above, or `"random"`: all negatives are random pixels of other
            classes.
        seed: int or `keras.random.SeedGenerator`.

    Returns:
        `((positions, owners), (positions, owners))` of positives and negatives, int32
        `(max_samples,)` each: pixel indices and the classes that they were drawn for, sorted by
        class; -1 in both marks unused rows, which come last.

    Raises:
        ValueError: if `max_samples` is outside its range.
    """
    if not 1 <= max_samples <= MAX_SAMPLES:
        raise ValueError(f"`max_samples` must be in [1, {MAX_SAMPLES}]. Received: {max_samples=}")
    pixels = labels.shape[0]
    noise = random_minor((pixels,), num_classes, seed)
    by_class, class_starts = sort_by_group(labels, num_classes, noise)
    counts = class_starts[1:] - class_starts[:-1]
    present = counts > 0
    num_present = ops.maximum(ops.sum(ops.cast(present, "int32")), 1)
    share = within(
        ops.where(present, ops.maximum(max_samples // num_present, 1), 0), max_samples, seed
    )

    owner, rank = assign_rows_to_groups(ops.minimum(counts, share), max_samples)
    index = ops.take(class_starts, ops.maximum(owner, 0)) + rank
    positives = ops.where(owner >= 0, ops.take(by_class, index), -1), owner

    by_error, error_starts = sort_by_group(
        regions, num_classes, _by_distance(distance, noise, num_classes)
    )
    errors = ops.where(present, error_starts[1:] - error_starts[:-1], 0)
    if negatives == "random":
        errors = ops.zeros_like(errors)
    hard = ops.cast(ops.floor(ops.cast(errors, "float32") * hard_fraction + 0.5), "int32")
    hard = ops.clip(hard, ops.minimum(errors, 1), errors)
    drawn = ops.minimum(hard, share)
    others = class_starts[-1] - counts
    least = share if negatives == "random" else ops.minimum(min_negatives, share)
    filled = ops.logical_and(present, others > 0)
    quotas = ops.where(filled, ops.maximum(drawn, least), drawn)

    owner, rank = assign_rows_to_groups(quotas, max_samples)
    safe = ops.maximum(owner, 0)
    uniform = keras.random.uniform((num_classes,), seed=seed)
    step = _evenly(rank, *(ops.take(x, safe) for x in (hard, drawn, uniform)))
    index = ops.take(error_starts, safe) + step
    hard_pixel = ops.take(by_error, ops.minimum(index, pixels - 1))
    # Any pixel before or after the block of the class.
    uniform = keras.random.uniform((max_samples,), seed=seed)
    index = _below(uniform, ops.take(others, safe))
    index = index + ops.where(index >= ops.take(class_starts, safe), ops.take(counts, safe), 0)
    other_pixel = ops.take(by_class, ops.minimum(index, pixels - 1))
    position = ops.where(rank < ops.take(drawn, safe), hard_pixel, other_pixel)
    return positives, (ops.where(owner >= 0, position, -1), owner)


def _by_distance(distance, noise, num_classes):
    """Returns the sort key for `sort_by_group`: the distance, with ties in random order."""
    bits = minor_bits(num_classes)
    noise_bits = 4
    largest = 2 ** (bits - noise_bits) - 1
    return ops.minimum(distance, largest) * 2**noise_bits + noise % 2**noise_bits


def _evenly(rank, available, drawn, uniform):
    """Selects `drawn` of `available` indices at even steps from a random start, each once.

    The index of rank k is `(k * available + start) // drawn`, computed without overflow of int32.

    Args:
        rank: int32 tensor, in `[0, drawn)`.
        available: int32 tensor.
        drawn: int32 tensor, at most `available` and `MAX_SAMPLES`.
        uniform: float32 tensor in [0, 1), which determines the start.
    """
    drawn = ops.maximum(drawn, 1)
    start = _below(uniform, available)
    quotient, remainder = _divide_product(rank, available % drawn, drawn)
    return rank * (available // drawn) + quotient + (remainder + start) // drawn


def _divide_product(a, b, divisor):
    """Computes `(a * b // divisor, a * b % divisor)` where the product may overflow an int32.

    Long multiplication by the digits of `a` in base 256, most significant first: no intermediate
    value exceeds `2 * 256 * divisor`.

    Args:
        a, b: int32 tensors in `[0, divisor)`.
        divisor: int32 tensor in `[1, MAX_SAMPLES]`.
    """
    quotient, remainder = ops.zeros_like(a), ops.zeros_like(a)
    for shift in (16, 8, 0):
        digit = ops.right_shift(a, shift) % 256
        product = remainder * 256 + digit * b
        quotient = quotient * 256 + product // divisor
        remainder = product % divisor
    return quotient, remainder


def _below(uniform, limit):
    """Maps a uniform number in [0, 1) to an integer in `[0, limit)`, or to 0 if `limit` is 0."""
    number = ops.cast(uniform * ops.cast(limit, "float32"), "int32")
    return ops.maximum(ops.minimum(number, limit - 1), 0)
