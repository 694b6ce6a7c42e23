"""Confusion matrices and the scores computed from them."""

import dataclasses

import numpy as np
import tensorflow as tf

from kseg import display
from kseg.evaluation.image_counts import intersection_over_union, mean_over_classes


def confusion_matrix(labels, predictions, num_classes):
    """Counts pixels by true and predicted class.

    Args:
        labels: int tensor, any shape; values outside `[0, num_classes)` are left out.
        predictions: int tensor of the same shape; wherever a label counts, in
            `[0, num_classes)`.
        num_classes: int.

    Returns:
        int64 `(num_classes, num_classes)`: rows are the truth, columns the prediction.
    """
    labels, predictions = (tf.reshape(x, (1, -1)) for x in (labels, predictions))
    return confusion_matrices(labels, predictions, num_classes)[0]


def confusion_matrices(labels, predictions, num_classes):
    """Counts the pixels of each image by true and predicted class.

    Args:
        labels: int tensor `(batch, ...)`; values outside `[0, num_classes)` are left out.
        predictions: int tensor of the same shape; wherever a label counts, in
            `[0, num_classes)`.
        num_classes: int.

    Returns:
        int64 `(batch, num_classes, num_classes)`: rows are the truth, columns the prediction.
    """
    batch = tf.shape(labels)[0]
    labels = tf.reshape(tf.cast(labels, "int32"), (batch, -1))
    predictions = tf.reshape(tf.cast(predictions, "int32"), (batch, -1))
    valid = (labels >= 0) & (labels < num_classes)
    # Ignored pixels are counted in a bin after the matrix: one pass, without a gather.
    cells = tf.where(valid, labels * num_classes + predictions, num_classes**2)
    counts = tf.math.bincount(
        cells, minlength=num_classes**2 + 1, maxlength=num_classes**2 + 1, axis=-1
    )
    return tf.cast(tf.reshape(counts[:, :-1], (-1, num_classes, num_classes)), "int64")


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix.

    A class counts in `mean_iou` if it occurs in the truth or in the prediction, and in
    `mean_accuracy` if it occurs in the truth; otherwise its score is NaN.

    Args:
        matrix: int array `(num_classes, num_classes)`, rows are the truth.

    Raises:
        ValueError: if `matrix` is not square.
    """

    matrix: np.ndarray

    def __post_init__(self):
        if self.matrix.ndim != 2 or self.matrix.shape[0] != self.matrix.shape[1]:
            raise ValueError(f"`matrix` must be square. Received shape: {self.matrix.shape}")

    @property
    def iou(self):
        """Intersection over union of each class, float64 `(num_classes,)`."""
        hits = np.diag(self.matrix).astype("float64")
        return intersection_over_union(hits, self.matrix.sum(1), self.matrix.sum(0))

    @property
    def accuracy(self):
        """Fraction of each class's pixels predicted correctly, float64 `(num_classes,)`."""
        return _ratio(np.diag(self.matrix).astype("float64"), self.matrix.sum(1))

    @property
    def mean_iou(self):
        """Mean of `iou` over the classes that occur; NaN if no class occurs."""
        return _mean(self.iou)

    @property
    def frequency_weighted_iou(self):
        """Mean of `iou`, each class weighted by its share of the truth; NaN without labels."""
        present = self.matrix.sum(1) > 0
        if not present.any():
            return float("nan")
        return float(np.sum(self.pixel_share[present] * self.iou[present]))

    @property
    def mean_accuracy(self):
        """Mean of `accuracy` over the classes of the truth; NaN without labels."""
        return _mean(self.accuracy)

    @property
    def pixel_accuracy(self):
        """Fraction of all labeled pixels predicted correctly."""
        return float(_ratio(np.trace(self.matrix), self.matrix.sum()))

    @property
    def pixel_share(self):
        """Fraction of the labeled pixels in each class, float64 `(num_classes,)`."""
        return _ratio(self.matrix.sum(1), self.matrix.sum())

    def category_iou(self, categories):
        """Computes intersection over union of categories, each treated as a single class.

        A pixel predicted as another class of its category counts as correct.

        Args:
            categories: dict from name to the indices of its classes.

        Returns:
            dict from name to float, NaN where a category does not occur.
        """
        return {
            name: float(_joint_iou(self.matrix, members)) for name, members in categories.items()
        }

    def group_iou(self, groups):
        """Computes the mean of `iou` over those classes of each group that occur.

        Args:
            groups: dict from name to the indices of its classes; groups may overlap.

        Returns:
            dict from name to float, NaN where no class of a group occurs.
        """
        return {name: _mean(self.iou[list(members)]) for name, members in groups.items()}

    def to_dict(self, class_names, *, categories=None, groups=None, boundary_iou=None):
        """Returns a JSON-able dict of all scores; NaN becomes None.

        Args:
            class_names: list of str, one for each class.
            categories, groups: dicts from name to class indices, or None.
            boundary_iou: float array `(num_classes,)`, the Boundary IoU of each class, or None.

        Returns:
            dict with `mean_iou`, `pixel_accuracy`, `mean_accuracy`, `frequency_weighted_iou`;
            `classes`, a dict from name to `iou`, `accuracy`, `pixel_share`; and
            `confusion_matrix`, lists of int. All scores are in [0, 1]. If requested, also
            `categories` and `groups`, dicts from name to score, and `mean_category_iou`;
            `mean_boundary_iou`, and `boundary_iou` for each class.
        """
        classes = {
            name: {"iou": _plain(iou), "accuracy": _plain(accuracy), "pixel_share": _plain(share)}
            for name, iou, accuracy, share in zip(
                class_names, self.iou, self.accuracy, self.pixel_share, strict=True
            )
        }
        result = {
            "mean_iou": _plain(self.mean_iou),
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "mean_accuracy": _plain(self.mean_accuracy),
            "frequency_weighted_iou": _plain(self.frequency_weighted_iou),
        }
        if boundary_iou is not None:
            result["mean_boundary_iou"] = _plain(_mean(boundary_iou))
            for name, iou in zip(class_names, boundary_iou, strict=True):
                classes[name]["boundary_iou"] = _plain(iou)
        if categories:
            scores = self.category_iou(categories)
            result["mean_category_iou"] = _plain(_mean(scores.values()))
            result["categories"] = {name: _plain(iou) for name, iou in scores.items()}
        if groups:
            result["groups"] = {name: _plain(iou) for name, iou in self.group_iou(groups).items()}
        return {**result, "classes": classes, "confusion_matrix": self.matrix.tolist()}

    def table(self, class_names, *, categories=None, groups=None, boundary_iou=None):
        """Formats a table with one class per line and all numbers in percent.

        `-` marks undefined values, such as the accuracy of a class without pixels.

        Args:
            class_names, categories, groups, boundary_iou: as for `to_dict`.

        Returns:
            str.
        """
        nothing = (None,) * 4
        columns = [self.iou, self.accuracy, self.pixel_share]
        means = [self.mean_iou, self.mean_accuracy, None]
        heads = ["IoU %", "accuracy %", "pixels %"]
        if boundary_iou is not None:
            columns.append(boundary_iou)
            means.append(_mean(boundary_iou))
            heads.append("boundary IoU %")
        blocks = {
            "class": dict(zip(class_names, zip(*columns, strict=True), strict=True)),
            "": {
                "mean": means,
                "frequency weighted": (self.frequency_weighted_iou, *nothing),
                "all pixels": (None, self.pixel_accuracy, *nothing),
            },
        }
        if categories:
            scores = self.category_iou(categories)
            scores["mean of categories"] = _mean(scores.values())
            blocks["category"] = {name: (iou, *nothing) for name, iou in scores.items()}
        if groups:
            scores = self.group_iou(groups)
            blocks["group (mean)"] = {name: (iou, *nothing) for name, iou in scores.items()}

        width = display.name_columns(n for title, rows in blocks.items() for n in (title, *rows))
        header = "  ".join(["class".ljust(width), *(head.rjust(_wide(head)) for head in heads)])
        lines = []
        for title, rows in blocks.items():
            head = header if title == "class" else f"{title:{width}}  {'IoU %':>{_wide('IoU %')}}"
            lines += [head] if title else []
            for name, values in rows.items():
                cells = zip(heads, values, strict=False)
                cells = [f"{_percent(value):>{_wide(head)}}" for head, value in cells]
                lines.append("  ".join([display.fit(name, width), *cells]).rstrip())
            lines.append("-" * len(header))
        return "\n".join(lines[:-1])


def _ratio(numerator, denominator):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(numerator, "float64") / np.asarray(denominator, "float64")


def _joint_iou(matrix, members):
    """Computes intersection over union of several classes merged into one."""
    members = list(members)
    hits = np.float64(matrix[np.ix_(members, members)].sum())
    return intersection_over_union(hits, matrix[members].sum(), matrix[:, members].sum())


def _mean(values):
    return float(mean_over_classes(np.array([*values], "float64")))


def _wide(head):
    return max(len(head), 6)


def _percent(value):
    """Formats a fraction in percent; an empty string for None, a dash for NaN."""
    if value is None:
        return ""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def _plain(value):
    return None if np.isnan(value) else float(value)
