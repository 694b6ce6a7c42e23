"""Alignment and uniformity of features: distances within and between classes."""

import dataclasses
import math

import numpy as np

from kseg.analysis.selection import ClassSample

_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Feature statistics of a split, averaged over the classes that occur.

    Attributes:
        alignment: float, A (Eq. 1): the mean distance between two features of a class; lower is
            better.
        uniformity: float, U (Eq. 2): the mean distance between the centers of two classes; higher
            is better.
        neighborhood_uniformity: dict from l to U_l (Eq. 3): the mean distance of a class's center
            to the l nearest ones, or to all others if there are fewer.
        class_alignment: list of float or None, A of each class; None for a class that does not
            occur.
        num_samples: list of int, the number of features of each class that A was computed from.
    """

    alignment: float
    uniformity: float
    neighborhood_uniformity: dict
    class_alignment: list
    num_samples: list

    def to_dict(self, class_names):
        """Returns a dict that JSON can hold; NaN becomes None."""
        values = {
            "A": self.alignment,
            "U": self.uniformity,
            **{f"U_{near}": value for near, value in self.neighborhood_uniformity.items()},
        }
        return {
            **{name: None if math.isnan(value) else value for name, value in values.items()},
            "classes": {
                name: {"A": alignment, "num_samples": count}
                for name, alignment, count in zip(
                    class_names, self.class_alignment, self.num_samples, strict=True
                )
            },
        }


class FeatureCollector:
    """Accumulates statistics of a stream of features, in memory independent of its length.

    Centers are computed over all pixels. The alignment over all pairs of a class's pixels would
    take time quadratic in their number; it is computed exactly on a uniform sample of each class.

    Source: Sung et al., CVPR 2024, supplement Sec. 2, Eq. 1-3.

    Args:
        num_classes: int.
        dim: int, length of a feature.
        samples_per_class: int.
        seed: int, for the sampling.
    """

    def __init__(self, num_classes, dim, *, samples_per_class=2000, seed=0):
        self._num_classes = num_classes
        self._sample = ClassSample(num_classes, samples_per_class, seed=seed)
        self._sums = np.zeros((num_classes, dim))
        self._counts = np.zeros(num_classes, "int64")

    def add(self, features, labels):
        """Adds pixels; the sample depends on the order of all pixels, not on their batches.

        Args:
            features: float32 array `(pixels, dim)`.
            labels: int array `(pixels,)`; values outside `[0, num_classes)` are ignored.
        """
        for n in np.unique(labels):
            if 0 <= n < self._num_classes:
                members = labels == n
                self._counts[n] += np.count_nonzero(members)
                self._sums[n] += features[members].sum(axis=0, dtype="float64")
        self._sample.add(labels, lambda indices: (features[indices],))

    def statistics(self, neighbors=(3, 5)):
        """Computes the statistics.

        Args:
            neighbors: ints, the values of l in U_l.

        Returns:
            `FeatureStatistics`; NaN for statistics that need more classes than occur.
        """
        present = np.flatnonzero(self._counts)
        alignment = [None] * self._num_classes
        for n in present:
            alignment[n] = _mean_distance(*self._sample.of_class(n))
        centers = self._sums[present] / self._counts[present, None]
        distances = np.sqrt(_squared_distances(centers, centers))
        others = len(present) - 1
        near = np.sort(distances, axis=1)[:, 1:]  # Without the distance of a center to itself.
        return FeatureStatistics(
            alignment=float(np.mean([alignment[n] for n in present])) if len(present) else math.nan,
            uniformity=float(near.mean()) if others > 0 else math.nan,
            neighborhood_uniformity={
                count: float(near[:, :count].mean()) if others > 0 else math.nan
                for count in neighbors
            },
            class_alignment=alignment,
            num_samples=[self._sample.count(n) for n in range(self._num_classes)],
        )


def feature_statistics(
    segmenter,
    batches,
    num_classes,
    *,
    unit_norm=True,
    samples_per_class=2000,
    seed=0,
    progress=None,
):
    """Computes statistics of the features just before a segmenter's classifier over a data set.

    Args:
        segmenter: as in `observe`.
        batches: as in `observe`.
        num_classes: int.
        unit_norm: bool, whether to scale features to unit L2 norm first.
        samples_per_class: int.
        seed: int, for the sampling.
        progress: as in `observe`.

    Returns:
        `FeatureStatistics`.

    Raises:
        ValueError: if there are no batches.
    """
    # Imported here: the collector also serves JAX, but `observe` needs TensorFlow.
    from kseg.analysis.observation import observe

    collector = None
    for seen in observe(segmenter, batches, unit_norm=unit_norm, progress=progress):
        dim = seen.features.shape[-1]
        if collector is None:
            collector = FeatureCollector(
                num_classes, dim, samples_per_class=samples_per_class, seed=seed
            )
        collector.add(seen.features.reshape(-1, dim), seen.feature_labels.reshape(-1))
    if collector is None:
        raise ValueError("`batches` must not be empty")
    return collector.statistics()


def _mean_distance(rows):
    """Averages Euclidean distances over all ordered pairs, including a row with itself."""
    rows = np.asarray(rows, "float64")
    total = 0.0
    for start in range(0, len(rows), _BLOCK):
        total += np.sqrt(_squared_distances(rows[start : start + _BLOCK], rows)).sum()
    return float(total / len(rows) ** 2)


def _squared_distances(x, y):
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2 * x @ y.T
    # Remove the rounding errors in the distances of equal rows.
    scale = max((x**2).sum(1).max(initial=0), (y**2).sum(1).max(initial=0))
    return np.where(squared < 1e-13 * scale, 0.0, squared)
