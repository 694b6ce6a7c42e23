"""The image behind each sample of the endless stream.

Everything is a function of the seed and the sample's number, so that the stream has no state.
"""

import numpy as np
import tensorflow as tf


def repeat_factors(image_classes, num_classes, threshold, weights=None):
    """Computes repeat factors of images, so that rare classes are seen more often.

    A class that is in a share f of the images gets `r(class) = max(1, sqrt(threshold / f))`, and an
    image the largest factor of its classes.

    Source: Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019,
    Sec. 5 (repeat factor sampling).

    Args:
        image_classes: list of lists of int, the classes that occur in each image.
        num_classes: int.
        threshold: float in (0, 1], the share below which a class is rare.
        weights: floats `(images,)` or None, how much each image counts in the shares; None: 1.

    Returns:
        float64 `(images,)`, 1 or more.

    Raises:
        ValueError: if `threshold` is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` must be above 0, at most 1. Received: {threshold}")
    weights = np.ones(len(image_classes)) if weights is None else np.asarray(weights)
    images = np.zeros(num_classes)
    for classes, weight in zip(image_classes, weights, strict=True):
        images[classes] += weight
    shares = images / max(weights.sum(), 1e-12)
    factors = np.sqrt(threshold / np.where(shares > 0, shares, 1.0))
    factors = np.maximum(factors, 1.0)
    return np.array([factors[classes].max(initial=1.0) for classes in image_classes])


class Order:
    """Chooses the image of each sample.

    Args:
        seed: int.
        count: int, number of images.
        factors: float array `(count,)` or None. None: each epoch is a permutation of the images.
            Else an epoch has as many samples as the factors' rounded sum, of each image its factor
            (scaled by the rounding) rounded down or up, at random and right on average: systematic
            sampling, in random order.
    """

    def __init__(self, seed, count, factors=None):
        self._seed = tf.constant(seed, "int64")
        self._ends = None
        self.epoch_length = count
        if factors is not None:
            ends = np.cumsum(np.asarray(factors, "float64"))
            self.epoch_length = max(int(np.rint(ends[-1])), 1)
            self._ends = tf.constant(ends * (self.epoch_length / ends[-1]), "float64")

    def __call__(self, number):
        """Returns the image of a sample.

        Args:
            number: int64 scalar, counted from 0 through all epochs.

        Returns:
            int64 scalar in `[0, count)`.
        """
        position = shuffled_index(self._seed, number, self.epoch_length)
        if self._ends is None:
            return position
        shift = tf.random.stateless_uniform(
            (), tf.stack([self._seed, -1 - number // self.epoch_length]), dtype="float64"
        )
        place = tf.cast(position, "float64") + shift
        index = tf.searchsorted(self._ends, place[None], side="right", out_type="int64")[0]
        # The last end may be a rounding below the number of samples.
        return tf.minimum(index, self._ends.shape[0] - 1)


def shuffled_index(seed, number, count):
    """Applies a new permutation of `range(count)` in each epoch of `count` numbers.

    Args:
        seed: int64 scalar.
        number: int64 scalar, counted from 0 through all epochs.
        count: int.

    Returns:
        int64 scalar in `[0, count)`.
    """
    epoch, position = number // count, number % count
    # The op uses only the low 8 bits of each of its three seeds. With seed and epoch themselves, as
    # `tf.random.experimental.index_shuffle` takes them, the order would come back after 256 epochs.
    # So the seeds are random numbers, drawn with negative numbers apart from those of the samples.
    # Its usual 4 rounds mix a few images unevenly.
    words = tf.random.stateless_uniform(
        (3,), tf.stack([seed, -1 - epoch]), minval=None, maxval=None, dtype="int32"
    )
    return tf.raw_ops.RandomIndexShuffle(
        index=position, seed=words, max_index=tf.constant(count - 1, "int64"), rounds=8
    )
