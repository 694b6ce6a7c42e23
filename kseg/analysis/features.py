"""How well features of one class stay together, and those of different classes apart."""

import dataclasses
import math

import numpy as np

from kseg.analysis.selection import ClassSample

_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Feature statistics of a split, means over the classes that occur.

    Attributes:
        alignment: float, A (Eq. 1): the mean distance of two features of a class; less is better.
        uniformity: float, U (Eq. 2): the mean distance of two classes' centres; more is better.
        neighborhood_uniformity: dict from l to U_l (Eq. 3): the mean distance of a class's centre
            to the l nearest ones; where there are fewer other classes, to all of them.
        class_alignment: list of float or None, A of each class; None where it does not occur.
        num_samples: list of int, features of each class that A was taken from.
    """

    alignment: float
    uniformity: float
    neighborhood_uniformity: dict
    class_alignment: list
    num_samples: list

    def to_dict(self, class_names):
        """What JSON holds of it; NaN becomes None."""
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
    """Sums up features of a stream of pixels, in memory that does not grow with the stream.

    Centres are those of all pixels. The alignment over all pairs of a class's pixels would take
    time quadratic in their number: it is exact on a sample of each class, drawn from all of its
    pixels alike.

    Source: Sung et al., CVPR 2024, supplement Sec. 2, Eq. 1-3.

    Args:
        num_classes: int.
        dim: int, length of a feature.
        samples_per_class: int.
        seed: int, of the sample.
    """

    def __init__(self, num_classes, dim, *, samples_per_class=2000, seed=0):
        self._num_classes = num_classes
        self._sample = ClassSample(num_classes, samples_per_class, seed=seed)
        self._sums = np.zeros((num_classes, dim))
        self._counts = np.zeros(num_classes, "int64")

    def add(self, features, labels):
        """Adds pixels; the order of all pixels together, not their division, decides the sample.

        Args:
            features: float32 array `(pixels, dim)`.
            labels: int array `(pixels,)`; values outside `[0, num_classes)` are ignored.
        """
        for n in np.unique(labels):
            if 0 <= n < self._num_classes:
                members = labels == n
                self._counts[n] += np.count_nonzero(members)
                self._sums[n] += features[members].sum(axis=0, dtype="float64")
        self._sample.add(labels, lambda places: (features[places],))

    def statistics(self, neighbors=(3, 5)):
        """Computes the statistics.

        Args:
            neighbors: ints, each l of U_l.

        Returns:
            `FeatureStatistics`; NaN where it takes more classes than there are.
        """
        present = np.flatnonzero(self._counts)
        alignment = [None] * self._num_classes
        for n in present:
            alignment[n] = _mean_distance(*self._sample.of_class(n))
        centers = self._sums[present] / self._counts[present, None]
        distances = np.sqrt(_squared_distances(centers, centers))
        others = len(present) - 1
        near = np.sort(distances, axis=1)[:, 1:]  # Without the distance to itself.
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
    """Analyses the features just before a segmenter's classifier over a data set.

    Args:
        segmenter: as `observe` takes it.
        batches: as `observe` takes them.
        num_classes: int.
        unit_norm: bool. Features are scaled to unit L2 norm first.
        samples_per_class: int.
        seed: int.
        progress: as `observe` takes it.

    Returns:
        `FeatureStatistics`.

    Raises:
        ValueError: if there are no batches.
    """
    # Here and not above: the collector serves JAX too, and this pass is TensorFlow's.
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
    """Mean Euclidean distance over all ordered pairs, those of a row with itself included."""
    rows = np.asarray(rows, "float64")
    total = 0.0
    for start in range(0, len(rows), _BLOCK):
        total += np.sqrt(_squared_distances(rows[start : start + _BLOCK], rows)).sum()
    return float(total / len(rows) ** 2)


def _squared_distances(x, y):
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2 * x @ y.T
    # What rounding leaves of the distance of equal rows is none.
    scale = max((x**2).sum(1).max(initial=0), (y**2).sum(1).max(initial=0))
    return np.where(squared < 1e-13 * scale, 0.0, squared)
