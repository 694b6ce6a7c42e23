"""Keras metrics on logits, for `compile(metrics=...)` of any model."""

# ruff: noqa: D102 - Keras hooks (`get_config`...) are documented by their class.

import keras
from keras import ops

from kseg.losses.cross_entropy import logits_like
from kseg.losses.labels import class_numbers


@keras.saving.register_keras_serializable(package="kseg")
class MeanIoU(keras.metrics.Metric):
    """Mean intersection over union over everything since the last reset.

    It keeps one confusion matrix of integers, so that no pixel is lost however many there are. A
    class counts if it occurs in the labels or in the predictions. Under a strategy each replica
    counts its own pixels, and reading the result sums over them.

    Args:
        num_classes: int > 1.
        ignore_class: int or None, a label whose pixels do not count, besides all labels outside
            `[0, num_classes)`, which never do.
        name: str.

    Example:
        >>> import numpy as np
        >>> import kseg
        >>> labels = np.array([[[0, 1, 255]]])  # The last pixel is ignored.
        >>> logits = np.log([[[[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]]]).astype("float32")
        >>> metric = kseg.MeanIoU(num_classes=2)
        >>> metric.update_state(labels, logits)
        >>> float(metric.result())
        1.0
    """

    def __init__(self, num_classes, ignore_class=255, name="mean_iou", **kwargs):
        if num_classes < 2:
            raise ValueError(
                "MeanIoU needs two or more classes, of which the background is one. Received: "
                f"{num_classes=}. Use two channels of logits, and labels 0 and 1"
            )
        super().__init__(name=name, **kwargs)
        self.num_classes = num_classes
        self.ignore_class = ignore_class
        # int64 where the backend has it: JAX counts up to 2^31 - 1 pixels.
        self.matrix = self.add_variable(
            (num_classes, num_classes),
            initializer="zeros",
            dtype="int64",
            aggregation="sum",
            name="matrix",
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Counts a batch.

        Args:
            y_true: int `(batch, height, width)` or `(batch, height, width, 1)`.
            y_pred: float `(batch, h, w, num_classes)`, logits or probabilities at any stride,
                resized bilinearly to the labels.
            sample_weight: must be None; what to ignore is in the labels.

        Raises:
            ValueError: if there are sample weights, labels of another rank, or another number of
                classes.
        """
        if sample_weight is not None:
            raise ValueError(
                f"{type(self).__name__} counts pixels and takes no sample weights. Received: "
                "`sample_weight`. Use `metrics`, not `weighted_metrics`, and set the labels of "
                "pixels to ignore to 255"
            )
        if len(y_pred.shape) != 4 or y_pred.shape[-1] != self.num_classes:
            raise ValueError(
                f"{type(self).__name__} of {self.num_classes} classes needs logits (batch, height, "
                f"width, {self.num_classes}). Received shape: {tuple(y_pred.shape)}"
            )
        labels = class_numbers(y_true, ignore_class=self.ignore_class)
        predictions = ops.cast(ops.argmax(logits_like(labels, y_pred), axis=-1), "int32")
        self.matrix.assign_add(self._counts(labels, predictions))

    def _counts(self, labels, predictions):
        """Returns the confusion matrix of a batch, of the dtype of `matrix`."""
        cells = self.num_classes**2
        valid = ops.logical_and(labels >= 0, labels < self.num_classes)
        # Ignored pixels are counted in one more cell. Not bincount: XLA does not compile it.
        cell = ops.where(valid, labels * self.num_classes + predictions, cells)
        cell = ops.reshape(cell, (-1,))
        counts = ops.segment_sum(ops.ones_like(cell), cell, num_segments=cells + 1)[:cells]
        counts = ops.reshape(counts, (self.num_classes, self.num_classes))
        return ops.cast(counts, self.matrix.dtype)

    def result(self):
        """Returns the mean IoU so far, float32 scalar; NaN before the first pixel."""
        matrix = ops.convert_to_tensor(self.matrix)
        hits = ops.diagonal(matrix)
        union = ops.sum(matrix, axis=0) + ops.sum(matrix, axis=1) - hits
        occurs = union > 0
        iou = ops.cast(hits, "float32") / ops.cast(ops.where(occurs, union, 1), "float32")
        return ops.sum(iou) / ops.sum(ops.cast(occurs, "float32"))

    def get_config(self):
        own = {"num_classes": self.num_classes, "ignore_class": self.ignore_class}
        return {**super().get_config(), **own}
