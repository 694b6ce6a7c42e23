"""Boundary-aware negatives: where a prediction is wrong, near the edge of the error."""

import keras
from keras import ops

from kseg.contrast.grouping import (
    end_to_end,
    minor_bits,
    random_minor,
    sort_by_group,
    within,
)

# Squared distance of what has no edge. Squares of distances in images can be added to it.
FAR = 2**28
# Rows that a draw may have: 512 times this fits into an int32.
MAX_SAMPLES = 2**22 - 1


def error_regions(labels, predictions, num_classes):
    """Marks each wrong pixel with the class that it was taken for.

    The pixels marked n are the error map of class n: predicted n, but of another class.

    Source: Sung et al., "Contextrast", CVPR 2024, boundary-aware negative sampling.

    Args:
        labels: int32 tensor, any shape; values outside `[0, num_classes)` are ignored.
        predictions: int32 tensor of the same shape.
        num_classes: int.

    Returns:
        int32 tensor of the same shape, -1 where the prediction is right or the label ignored.
    """
    known = ops.logical_and(labels >= 0, labels < num_classes)
    return ops.where(ops.logical_and(known, labels != predictions), predictions, -1)


def squared_edge_distance(regions):
    """Measures how far each pixel is from the nearest pixel that is not of its region.

    The exact Euclidean distance transforms of all regions at once: what a transform of each mask
    `regions == n` gives inside the mask. The border of the image is no edge.

    Args:
        regions: int32 tensor `(batch, height, width)`, the number of a region or -1 for none.

    Returns:
        int32 tensor `(batch, height, width)`: squared distance in pixels, 0 outside the regions,
        at least `FAR` in a region that fills its image.
    """
    # The nearest pixel outside is in some column, and there it is the nearest one along it.
    inside = regions >= 0
    start = ops.where(inside, FAR, 0)
    along_columns = _nearest(regions, start, inside, axis=1)
    return _nearest(regions, along_columns, inside, axis=2)


def _nearest(regions, cost, inside, *, axis):
    """Takes for each pixel p the least `(p - q)^2 + cost(q)` over the pixels q of its line.

    A pixel q of another region costs nothing. Goes outwards from all pixels at once, and stops
    where no greater distance can matter: error regions are thin.

    Args:
        regions, cost, inside: tensors `(batch, height, width)`.
        axis: int, along which a line goes.

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
        there = ops.slice(padded_regions, start, regions.shape)
        costly = ops.logical_or(there == regions, there == outside)
        candidate = ops.where(costly, ops.slice(padded_cost, start, regions.shape), 0)
        return ops.minimum(nearest, candidate + shift * shift)

    def body(distance, nearest):
        nearest = look(look(nearest, distance), -distance)
        return distance + 1, ops.where(inside, nearest, 0)

    def matters(distance, nearest):
        return ops.logical_and(distance < size, distance * distance < ops.max(nearest))

    _, nearest = ops.while_loop(matters, body, (ops.ones((), "int32"), cost))
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
    """Draws for each class pixels that are of it and pixels that are easily taken for it.

    A class that is present gets up to `max_samples / (number of present classes)` of each kind; if
    there are more classes than `max_samples`, chance decides which get one.
    Its positives are drawn from its pixels. Its negatives are drawn from those `hard_fraction` of
    its error pixels (at least one) that are nearest to an edge of their error; where these are
    fewer than `min_negatives`, pixels of other classes, drawn with replacement, fill up to it.

    Source: Sung et al., "Contextrast", CVPR 2024, boundary-aware negative sampling.

    Args:
        labels: int32 tensor `(pixels,)`, static; values outside `[0, num_classes)` are ignored.
        regions: int32 tensor `(pixels,)` from `error_regions`.
        distance: int32 tensor `(pixels,)` from `squared_edge_distance`.
        num_classes: int.
        max_samples: int in `[1, MAX_SAMPLES]`, rows of either result.
        min_negatives: int, which a class that is present gets at least, if any pixel is of another
            class, and as far as its part of `max_samples` reaches.
        hard_fraction: float in (0, 1].
        negatives: `"boundary"` as above, or `"random"`: all are pixels of other classes.
        seed: int or `keras.random.SeedGenerator`.

    Returns:
        `((positions, owners), (positions, owners))` of positives and negatives, int32
        `(max_samples,)` each: pixels and the classes that they were drawn for, sorted by these; -1
        in both marks unused rows, which come last.

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

    owner, rank = end_to_end(ops.minimum(counts, share), max_samples)
    place = ops.take(class_starts, ops.maximum(owner, 0)) + rank
    positives = ops.where(owner >= 0, ops.take(by_class, place), -1), owner

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

    owner, rank = end_to_end(quotas, max_samples)
    safe = ops.maximum(owner, 0)
    lottery = keras.random.uniform((num_classes,), seed=seed)
    step = _evenly(rank, *(ops.take(x, safe) for x in (hard, drawn, lottery)))
    place = ops.take(error_starts, safe) + step
    hard_pixel = ops.take(by_error, ops.minimum(place, pixels - 1))
    # Any pixel before the block of the class, or after it.
    lottery = keras.random.uniform((max_samples,), seed=seed)
    place = _below(lottery, ops.take(others, safe))
    place = place + ops.where(place >= ops.take(class_starts, safe), ops.take(counts, safe), 0)
    other_pixel = ops.take(by_class, ops.minimum(place, pixels - 1))
    position = ops.where(rank < ops.take(drawn, safe), hard_pixel, other_pixel)
    return positives, (ops.where(owner >= 0, position, -1), owner)


def _by_distance(distance, noise, num_classes):
    """Orders by distance and, where it is equal, by chance."""
    bits = minor_bits(num_classes)
    chance = 4
    most = 2 ** (bits - chance) - 1
    return ops.minimum(distance, most) * 2**chance + noise % 2**chance


def _evenly(rank, available, drawn, lottery):
    """Takes `drawn` of `available` numbers at even steps from a random start, each once.

    The number of rank k is `(k * available + start) // drawn`, in parts that an int32 can hold.

    Args:
        rank: int32 tensor, in `[0, drawn)`.
        available: int32 tensor.
        drawn: int32 tensor, at most `available` and `MAX_SAMPLES`.
        lottery: float32 tensor in [0, 1).
    """
    drawn = ops.maximum(drawn, 1)
    start = _below(lottery, available)
    quotient, remainder = _divide_product(rank, available % drawn, drawn)
    return rank * (available // drawn) + quotient + (remainder + start) // drawn


def _divide_product(a, b, divisor):
    """`(a * b // divisor, a * b % divisor)` where the product may be too large for an int32.

    Long multiplication by the digits of `a` in base 256, from the highest: no intermediate value
    exceeds `2 * 256 * divisor`.

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


def _below(lottery, limit):
    """From a uniform number in [0, 1) an integer below `limit`, or 0 if that is 0."""
    number = ops.cast(lottery * ops.cast(limit, "float32"), "int32")
    return ops.maximum(ops.minimum(number, limit - 1), 0)
