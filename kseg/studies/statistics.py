"""Statistics of a study's runs: means over seeds, paired differences, confidence intervals."""

import dataclasses
import math

import numpy as np

from kseg.errors import UserError
from kseg.evaluation.compare import Comparison, bootstrap
from kseg.evaluation.image_counts import iou_of, mean_over_classes


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    Attributes:
        mean: float, NaN without values.
        low, high: float, ends of the interval; NaN with fewer than two values.
        count: int, number of values.
        deviation: float, sample standard deviation; NaN with fewer than two values.
        same_sign: int, the number of values with the sign of the mean; 0 without single values.
    """

    mean: float
    low: float
    high: float
    count: int
    deviation: float
    same_sign: int = 0

    @property
    def significant(self):
        """True if the interval excludes 0."""
        return bool(self.low > 0 or self.high < 0)


def estimate(values, confidence=0.95):
    """Estimates a mean and its confidence interval by Student's t.

    Assumes that the values are independent samples of a normal distribution, as are the differences
    paired by seed.

    Args:
        values: sequence of float.
        confidence: float in (0, 1).

    Returns:
        `Estimate`.
    """
    from scipy import stats

    values = np.asarray(values, "float64")
    count = len(values)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, math.nan)
    mean = float(values.mean())
    same_sign = int(np.sum(np.sign(values) == np.sign(mean)))
    if count == 1:
        return Estimate(mean, math.nan, math.nan, 1, math.nan, same_sign)
    deviation = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * deviation / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count, deviation, same_sign)


def estimate_difference(values, base, confidence=0.95):
    """Estimates the difference of two means and its interval by Welch's t, without pairs.

    Assumes independent samples of two normal distributions of any variances.

    Args:
        values, base: sequences of float.
        confidence: float in (0, 1).

    Returns:
        `Estimate` of the mean of `values` minus that of `base`: `count` is the smaller number of
        values, and `deviation` that of the difference of two single values.
    """
    from scipy import stats

    values, base = (np.asarray(of, "float64") for of in (values, base))
    count = min(len(values), len(base))
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, math.nan)
    difference = float(values.mean() - base.mean())
    if count == 1:
        return Estimate(difference, math.nan, math.nan, 1, math.nan)
    variances = [float(of.var(ddof=1)) for of in (values, base)]
    shares = [v / len(of) for v, of in zip(variances, (values, base), strict=True)]
    half, error = 0.0, math.sqrt(sum(shares))
    if error:
        weights = [s**2 / (len(of) - 1) for s, of in zip(shares, (values, base), strict=True)]
        freedom = error**4 / sum(weights)  # Welch-Satterthwaite.
        half = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    deviation = math.sqrt(sum(variances))
    return Estimate(difference, difference - half, difference + half, count, deviation)


def seeds_for_power(difference, *, power=0.8, confidence=0.95, most=1000):
    """Computes how many seeds a study needs to show a difference of the size that it found.

    Takes the mean and the standard deviation of the paired differences as the true ones; with few
    seeds these are themselves uncertain, so the number is for planning, not for judging.

    Args:
        difference: `Estimate` of paired differences.
        power: float in (0, 1), the probability that the interval of as many new seeds excludes 0.
        confidence: float in (0, 1), of that interval.
        most: int, the largest number that is tried.

    Returns:
        int >= 2; None if there are fewer than two values, or if more than `most` are needed.

    Source: the noncentral t distribution, as in Cohen, Statistical Power Analysis for the
    Behavioral Sciences, 1988.
    """
    from scipy import stats

    if difference.count < 2:
        return None
    if difference.deviation == 0:
        return 2 if difference.mean else None
    counts = np.arange(2, most + 1)
    limits = stats.t.ppf(0.5 + confidence / 2, counts - 1)
    shifts = abs(difference.mean) / difference.deviation * np.sqrt(counts)
    # An interval on the wrong side of 0 shows nothing.
    reached = stats.nct.sf(limits, counts - 1, shifts) >= power
    return int(counts[np.argmax(reached)]) if reached.any() else None


@dataclasses.dataclass(frozen=True)
class Arm:
    """The runs of an arm, and their differences to the baseline's runs with the same seeds.

    Scores are in [0, 1]; differences are arm minus baseline.

    Attributes:
        name: str.
        results: dict from seed to `kseg.studies.results.Result`.
        last, best: `Estimate` of the mean IoU at the last step, and in the best evaluation.
        scored: `Estimate` of the mean IoU over the scored classes, or None.
        scored_of_seeds: dict from seed to that mean; empty without scored classes.
        difference, scored_difference: `Estimate` of the paired difference by seed, None for the
            baseline.
        unpaired, scored_unpaired: `Estimate` of the difference over all seeds of both, without
            pairs; None for the baseline.
        images: `kseg.evaluation.compare.Comparison` with the baseline over the same seeds by a
            paired bootstrap over images, None for the baseline and without common seeds.
        class_iou: float64 `(num_classes,)`, means over seeds.
        class_difference: list of `Estimate`, paired by seed, or None for the baseline.
        features: dict from the name of a statistic to `Estimate`.
        time, memory: float, the mean time (on a CPU, which other programs may share, processor
            time) and peak memory of a run, relative to the baseline's with the same seeds; NaN if
            unknown.
    """

    name: str
    results: dict
    last: Estimate
    best: Estimate
    scored: Estimate | None
    scored_of_seeds: dict
    difference: Estimate | None
    unpaired: Estimate | None
    scored_difference: Estimate | None
    scored_unpaired: Estimate | None
    images: Comparison | None
    class_iou: np.ndarray
    class_difference: list | None
    features: dict
    time: float
    memory: float


def check_scored_classes(scored_classes, class_names):
    """Raises a UserError if a name in `scored_classes`, which may be None, is no class."""
    unknown = sorted(set(scored_classes or ()) - set(class_names))
    if unknown:
        raise UserError(
            f"`scored_classes` must be classes of the data. Received: {unknown[0]!r}. Classes: "
            f"{', '.join(class_names)}"
        )


def summarize(results, arms, baseline, class_names, scored_classes=None, *, confidence=0.95):
    """Summarizes the results of a study.

    Args:
        results: list of `kseg.studies.results.Result`, at most one for each arm and seed.
        arms: list of str, in the order of the table.
        baseline: str, one of the arms.
        class_names: list of str.
        scored_classes: names of the classes of the second mean, or None.
        confidence: float in (0, 1), of all intervals.

    Returns:
        list of `Arm`.

    Raises:
        UserError: if a scored class is not a class of the data.
    """
    check_scored_classes(scored_classes, class_names)
    members = [class_names.index(name) for name in scored_classes] if scored_classes else None
    runs = {arm: {} for arm in arms}
    for result in results:
        if result["arm"] in runs:
            runs[result["arm"]][result["seed"]] = result
    runs = {arm: dict(sorted(by_seed.items())) for arm, by_seed in runs.items()}
    base = runs[baseline]
    return [
        _arm(arm, runs[arm], None if arm == baseline else base, members, confidence) for arm in arms
    ]


def _arm(name, runs, base, members, confidence):
    common = sorted(runs.keys() & base.keys()) if base is not None else []

    def paired(score):
        if base is None:
            return None
        return estimate([score(runs[s]) - score(base[s]) for s in common], confidence)

    def unpaired(score):
        if base is None:
            return None
        scores = ([score(run) for run in of.values()] for of in (runs, base))
        return estimate_difference(*scores, confidence)

    def scored(run):
        return float(mean_over_classes(_class_iou(run)[members]))

    scored_of_seeds = {seed: scored(run) for seed, run in runs.items()} if members else {}
    class_iou = _class_means([_class_iou(run) for run in runs.values()])
    class_difference = None
    if base is not None and common:
        differences = np.stack([_class_iou(runs[s]) - _class_iou(base[s]) for s in common])
        class_difference = [
            estimate(column[~np.isnan(column)], confidence) for column in differences.T
        ]
    names = dict.fromkeys(n for run in runs.values() for n in run.get("features") or {})
    return Arm(
        name=name,
        results=runs,
        last=estimate([_score(run) for run in runs.values()], confidence),
        best=estimate([run["best"]["mean_iou"] for run in runs.values() if run.get("best")]),
        scored=estimate(list(scored_of_seeds.values()), confidence) if members else None,
        scored_of_seeds=scored_of_seeds,
        difference=paired(_score),
        unpaired=unpaired(_score),
        scored_difference=paired(scored) if members else None,
        scored_unpaired=unpaired(scored) if members else None,
        images=_bootstrap(runs, base, common, confidence) if common else None,
        class_iou=class_iou,
        class_difference=class_difference,
        features={
            n: estimate(
                [
                    v
                    for run in runs.values()
                    if (v := (run.get("features") or {}).get(n)) is not None
                ]
            )
            for n in names
        },
        time=_ratio(runs, base, common, _seconds),
        memory=_ratio(runs, base, common, lambda run: run.get("peak_memory_mb")),
    )


def _score(run):
    return run["last"]["mean_iou"]


def _class_iou(run):
    return np.array([math.nan if v is None else v for v in run["last"]["class_iou"]], "float64")


def _class_means(rows):
    """Returns the means of columns, ignoring NaN."""
    if not rows:
        return np.zeros(0)
    return mean_over_classes(np.stack(rows, axis=-1))


def _bootstrap(runs, base, common, confidence):
    """Runs the paired bootstrap over images on the mean over seeds."""
    first, second = ([of[s].counts for s in common] for of in (base, runs))
    return bootstrap(first, second, confidence=confidence)


def _seconds(run):
    return run.get("cpu_seconds" if run.get("device", "CPU").startswith("CPU") else "seconds")


def _ratio(runs, base, common, cost):
    pairs = [(cost(runs[s]), cost(base[s])) for s in common]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        return math.nan
    return float(np.mean([a for a, _ in pairs]) / np.mean([b for _, b in pairs]))


def scores_of(counts):
    """Computes scores from the counts of an evaluation, in the form of a result's line.

    Args:
        counts: `ImageCounts`.

    Returns:
        dict with `mean_iou`, float, and `class_iou`, list of float or None.
    """
    iou = iou_of(counts.pixels.sum(axis=0))
    mean = float(mean_over_classes(iou))
    return {
        "mean_iou": None if math.isnan(mean) else mean,
        "class_iou": [None if math.isnan(value) else float(value) for value in iou],
    }
