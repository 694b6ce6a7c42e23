"""Paired bootstrap comparison of two models evaluated on the same images."""

import dataclasses

import numpy as np

from kseg import display
from kseg.errors import UserError
from kseg.evaluation.image_counts import iou_of, mean_over_classes


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scores of two models on the same images; the last entry of each array is the mean IoU.

    Attributes:
        first, second: float64 `(num_classes + 1,)`, the scores of each model; NaN for a class that
            occurs neither in the truth nor in the model's prediction.
        low, high: float64 `(num_classes + 1,)`, ends of the confidence interval of
            `second - first`.
        confidence: float, confidence level of the interval.
        resamples: int, number of bootstrap samples.
        seed: int.
        num_images: int.
    """

    first: np.ndarray
    second: np.ndarray
    low: np.ndarray
    high: np.ndarray
    confidence: float
    resamples: int
    seed: int
    num_images: int

    @property
    def difference(self):
        """`second - first`, float64 `(num_classes + 1,)`."""
        return self.second - self.first

    @property
    def significant(self):
        """Bool array `(num_classes + 1,)`, True where the interval excludes 0."""
        return (self.low > 0) | (self.high < 0)

    def to_dict(self, class_names):
        """Returns a JSON-able dict; NaN becomes None."""
        rows = {}
        columns = (self.first, self.second, self.difference, self.low, self.high)
        keys = ("first", "second", "difference", "low", "high")
        for name, *values in zip([*class_names, None], *columns, strict=True):
            values = [None if np.isnan(value) else float(value) for value in values]
            rows[name] = dict(zip(keys, values, strict=True))
        mean = rows.pop(None)
        return {
            "num_images": self.num_images,
            "confidence": self.confidence,
            "resamples": self.resamples,
            "seed": self.seed,
            "mean_iou": mean,
            "classes": rows,
        }

    def table(self, class_names):
        """Formats a table in percent; a star marks intervals that exclude 0."""
        width = display.name_columns([*class_names, "mean IoU"])
        header = f"{'class':{width}}       A       B   B - A   {100 * self.confidence:g} % interval"
        lines = [header]
        columns = (self.first, self.second, self.difference, self.low, self.high, self.significant)
        rows = list(zip([*class_names, "mean IoU"], *columns, strict=True))
        for name, first, second, difference, low, high, significant in rows:
            scores = "".join(f"{_percent(value):>8}" for value in (first, second))
            ends = f"[{_percent(low, '+')}, {_percent(high, '+')}]" + " *" * bool(significant)
            lines.append(
                f"{display.fit(name, width)}{scores}{_percent(difference, '+'):>8}   {ends}"
            )
        return "\n".join([*lines[:-1], "-" * len(header), lines[-1]])


def compare(first, second, *, confidence=0.95, resamples=1000, seed=0):
    """Compares two models by a paired bootstrap over images: `bootstrap` with one run each.

    Args:
        first, second: `ImageCounts` of the same images, in any order.
        confidence, resamples, seed: as for `bootstrap`.

    Returns:
        `Comparison`.

    Raises:
        UserError, ValueError: as in `bootstrap`.
    """
    return bootstrap([first], [second], confidence=confidence, resamples=resamples, seed=seed)


def bootstrap(first, second, *, confidence=0.95, resamples=1000, seed=0):
    """Compares two methods, each with several training runs, by a paired bootstrap over images.

    Images are drawn with replacement, the same for every run of both methods, and each run is
    scored on all pixels of the draw; a method's score is the mean over its runs. The result is the
    percentile interval of the difference. Draws in which a class does not occur are excluded from
    the interval of that class. The interval generalizes to other images of the same kind, but not
    to other training seeds. It is too narrow if the images are correlated, such as frames of the
    same video (as in CamVid).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, Ch. 13.

    Args:
        first, second: lists of `ImageCounts`, one per run, of the same images in any order.
        confidence: float in (0, 1).
        resamples: int, number of bootstrap samples.
        seed: int. The same seed yields the same interval.

    Returns:
        `Comparison`, with scores averaged over the runs of each method.

    Raises:
        UserError: if the images or the numbers of classes differ, or there are no images.
        ValueError: if an argument is out of range.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            "`confidence` must be in (0, 1) and `resamples` 1 or more. Received: "
            f"{confidence=}, {resamples=}"
        )
    reference = first[0]
    num_images, num_classes = len(reference.ids), reference.pixels.shape[-1]
    rng = np.random.default_rng(seed)
    _pair(reference, reference)
    times = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)

    def scores(runs):
        """Returns the scores over all images and over each draw, averaged over the runs."""
        whole, drawn = [], []
        for counts in runs:
            pixels = counts.pixels[_pair(reference, counts)].astype("float64")
            sums = times.astype("float64") @ pixels.reshape(num_images, -1)
            drawn.append(_with_mean(iou_of(sums.reshape(resamples, 3, num_classes))))
            whole.append(_with_mean(iou_of(pixels.sum(axis=0))))
        return (mean_over_classes(np.stack(values, axis=-1)) for values in (whole, drawn))

    (whole_first, drawn_first), (whole_second, drawn_second) = map(scores, (first, second))
    differences = drawn_second - drawn_first
    tail = (1 - confidence) / 2
    low, high = (_quantile(differences, share) for share in (tail, 1 - tail))
    return Comparison(whole_first, whole_second, low, high, confidence, resamples, seed, num_images)


def _pair(first, second):
    """Finds the index in `second` of each image of `first`."""
    if first.pixels.shape[-1] != second.pixels.shape[-1]:
        raise UserError(
            "Only models of the same classes can be compared. Received: "
            f"{first.pixels.shape[-1]} and {second.pixels.shape[-1]} classes"
        )
    indices = {name: i for i, name in enumerate(second.ids)}
    unmatched = sorted({*first.ids} ^ {*second.ids})
    if unmatched or not first.ids:
        example = f"; only one has {unmatched[0]!r}" if unmatched else ""
        raise UserError(
            "Only evaluations of the same images can be compared. Received: "
            f"{len(first.ids)} and {len(second.ids)} images{example}. Evaluate both on "
            "the same split"
        )
    return [indices[name] for name in first.ids]


def _with_mean(iou):
    return np.concatenate([iou, mean_over_classes(iou)[..., None]], axis=-1)


def _quantile(values, share):
    """Computes column quantiles, ignoring NaN; NaN for columns with only NaN."""
    known = ~np.isnan(values).all(axis=0)
    quantiles = np.full(values.shape[1], np.nan)
    quantiles[known] = np.nanquantile(values[:, known], share, axis=0)
    return quantiles


def _percent(value, sign=""):
    return "-" if np.isnan(value) else f"{100 * value:{sign}.2f}"
