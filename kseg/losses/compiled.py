"""`keras.losses.Loss` classes over the loss functions, for `model.compile(loss=...)`."""

# ruff: noqa: D102 - Keras hooks (`call`, `get_config`...) are documented by their class.

import keras

from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.lovasz import lovasz_softmax
from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.reduction import global_ratio


class _PixelLoss(keras.losses.Loss):
    """Base of losses that average over the valid pixels of the global batch.

    Call arguments:
        y_true: int tensor `(batch, height, width)`; values outside `[0, num_classes)` are ignored.
        y_pred: float logits `(batch, h, w, num_classes)`, resized to the labels.

    Raises:
        ValueError: if sample weights are passed: each loss defines the weights of its pixels.
    """

    def __init__(self, name, **kwargs):
        # `call` returns a scalar, which this reduction leaves unchanged.
        super().__init__(name=name, **{**kwargs, "reduction": "sum_over_batch_size"})

    def __call__(self, y_true, y_pred, sample_weight=None):
        if sample_weight is not None:
            raise ValueError(
                f"{type(self).__name__} takes no sample weights. Received: `sample_weight`. Set "
                "the labels of pixels to ignore to 255"
            )
        return super().__call__(y_true, y_pred)

    def call(self, y_true, y_pred):
        # Keras sums gradients over replicas, so each replica returns its share of the loss.
        return self.share(y_true, y_pred)

    def get_config(self):
        config = super().get_config()
        del config["reduction"]
        return config


@keras.saving.register_keras_serializable(package="kseg")
class CrossEntropy(_PixelLoss):
    """Mean cross-entropy over the pixels, see `kseg.losses.cross_entropy.cross_entropy`.

    Args:
        class_weights: floats >= 0, one for each class, or None: 1 for all.
        label_smoothing: float in [0, 1).
    """

    def __init__(self, class_weights=None, label_smoothing=0.0, name="cross_entropy", **kwargs):
        super().__init__(name, **kwargs)
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing

    def share(self, labels, logits):
        """This replica's share of the loss."""
        settings = {"class_weights": self.class_weights, "label_smoothing": self.label_smoothing}
        return global_ratio(*cross_entropy(labels, logits, **settings))

    def get_config(self):
        settings = {"class_weights": self.class_weights, "label_smoothing": self.label_smoothing}
        return {**super().get_config(), **settings}


@keras.saving.register_keras_serializable(package="kseg")
class OHEMCrossEntropy(_PixelLoss):
    """Mean cross-entropy over the hard pixels, see `kseg.losses.ohem.ohem_cross_entropy`.

    Args:
        threshold: float in [0, 1], a probability.
        min_kept: int >= 0, the number of pixels of the global batch kept at least.
    """

    def __init__(self, threshold=0.7, min_kept=100_000, name="ohem", **kwargs):
        super().__init__(name, **kwargs)
        self.threshold = threshold
        self.min_kept = min_kept

    def share(self, labels, logits):
        """This replica's share of the loss."""
        settings = {"threshold": self.threshold, "min_kept": self.min_kept}
        return global_ratio(*ohem_cross_entropy(labels, logits, **settings))

    def get_config(self):
        return {**super().get_config(), "threshold": self.threshold, "min_kept": self.min_kept}


@keras.saving.register_keras_serializable(package="kseg")
class LovaszSoftmax(_PixelLoss):
    """Lovasz-softmax, see `kseg.losses.lovasz.lovasz_softmax`. Labels need a static shape."""

    def __init__(self, name="lovasz", **kwargs):
        super().__init__(name, **kwargs)

    def share(self, labels, logits):
        """This replica's share of the loss."""
        return lovasz_softmax(labels, logits)
