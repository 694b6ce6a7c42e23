"""`keras.losses.Loss` classes over the loss functions, for `model.compile(loss=...)`."""

# ruff: noqa: D102 - Keras hooks (`call`, `get_config`...) are documented by their class.

import math

import keras
from keras import ops

from kseg.losses.affinity import affinity_loss
from kseg.losses.cross_entropy import cross_entropy, logits_like
from kseg.losses.dice import dice_loss
from kseg.losses.focal import focal_loss
from kseg.losses.labels import class_numbers, pixel_weights
from kseg.losses.lovasz import lovasz_softmax
from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.reduction import global_ratio
from kseg.losses.rmi import rmi_loss

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")  # Names of Keras.


class SegmentationLoss(keras.losses.Loss):
    """Base of the losses on logits.

    The loss is that of the global batch: on each of R replicas a call returns this replica's share,
    whose sum over replicas is the loss.

    Args:
        ignore_class: int or None, a label whose pixels are ignored, in addition to labels outside
            `[0, num_classes)`, which always are.
        **kwargs: of `keras.losses.Loss`. Its `reduction` can only be a mean, which the loss is.

    Call arguments:
        y_true: int tensor `(batch, height, width)` or `(batch, height, width, 1)`.
        y_pred: float logits `(batch, h, w, num_classes)` at any stride, resized bilinearly to the
            labels.
        sample_weight: float tensor >= 0, one number for each image or pixel; only for the losses
            that are means over pixels.

    Raises:
        ValueError: if a shape does not fit, there is a class weight too many or too few, sample
            weights are given to a loss that has no terms of pixels, there is a single class, or an
            argument is out of range.
    """

    takes_sample_weight = False
    function = None  # Takes (labels, logits, **settings), in some losses also class weights.

    def __init__(self, name, class_weights, settings, ignore_class=255, **kwargs):
        reduction = kwargs.pop("reduction", _MEANS[0])
        if reduction not in _MEANS:
            raise ValueError(
                f"{type(self).__name__} is one number for the labeled pixels of the global batch. "
                f"Received: {reduction=}. Leave it out; kseg.cross_entropy gives the loss of each "
                "pixel"
            )
        # `__call__` returns a scalar, which this reduction leaves unchanged.
        super().__init__(name=name, reduction=_MEANS[0], **kwargs)
        self.class_weights = _numbers(class_weights)
        self.settings = settings
        self.ignore_class = ignore_class

    def of(self, labels, logits):
        """Calls the loss function with the settings of this loss."""
        weights = {} if self.class_weights is None else {"class_weights": self.class_weights}
        return self.function(labels, logits, **weights, **self.settings)

    def __call__(self, y_true, y_pred, sample_weight=None):
        name = type(self).__name__
        y_pred = ops.convert_to_tensor(y_pred)
        if len(y_pred.shape) != 4:
            raise ValueError(
                f"{name} needs logits (batch, height, width, num_classes). Received shape: "
                f"{tuple(y_pred.shape)}"
            )
        if y_pred.shape[-1] == 1:
            raise ValueError(
                f"{name} needs logits of two or more classes, of which the background is one. "
                "Received: a single channel. Use two, and labels 0 and 1"
            )
        if self.class_weights is not None and len(self.class_weights) != y_pred.shape[-1]:
            raise ValueError(
                f"{name} needs a class weight for each of the {y_pred.shape[-1]} classes of the "
                f"logits. Received: {len(self.class_weights)}"
            )
        labels = class_numbers(ops.convert_to_tensor(y_true), ignore_class=self.ignore_class)
        if sample_weight is not None and not self.takes_sample_weight:
            raise ValueError(
                f"{name} takes no sample weights, which only means over pixels have. Received: "
                "`sample_weight`. Set the labels of pixels to ignore to 255"
            )
        with keras.name_scope(self.name):
            if sample_weight is None:
                return self.call(labels, y_pred)
            return self.call(labels, y_pred, pixel_weights(sample_weight, labels))

    def get_config(self):
        config = {**super().get_config(), **self.settings, "ignore_class": self.ignore_class}
        del config["reduction"]
        if self.class_weights is not None:
            config["class_weights"] = self.class_weights
        return config


def _numbers(class_weights):
    """Returns class weights as a list of floats, or None; rejects what does not weigh classes."""
    if class_weights is None:
        return None
    if isinstance(class_weights, str | dict) or not hasattr(class_weights, "__len__"):
        raise ValueError(
            "`class_weights` must be a list of numbers, one for each class. Received: "
            f"{class_weights!r}. kseg.losses.class_weights.class_weights computes them from counts "
            "of pixels"
        )
    weights = [float(weight) for weight in class_weights]
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"`class_weights` must be finite and not negative. Received: {weights}")
    return weights


class _PixelLoss(SegmentationLoss):
    """A mean over pixels: the sum of their losses divided by that of their weights."""

    takes_sample_weight = True

    def call(self, y_true, y_pred, weights=None):
        if weights is None:
            return global_ratio(*self.of(y_true, y_pred))
        loss, weight = self.of(ops.where(weights > 0, y_true, -1), y_pred)
        return global_ratio(loss * weights, weight * weights)


class _BatchLoss(SegmentationLoss):
    """A loss over the set of all pixels, in which a single pixel has no loss of its own."""

    def call(self, y_true, y_pred):
        return self.of(y_true, y_pred)


@keras.saving.register_keras_serializable(package="kseg")
class CrossEntropy(_PixelLoss):
    """Mean cross-entropy over the pixels, see `kseg.losses.cross_entropy.cross_entropy`.

    Args:
        class_weights: floats >= 0, one for each class, or None: 1 for all.
        label_smoothing: float in [0, 1).
        ignore_class: int or None, see `SegmentationLoss`, which also lists the call arguments.

    Example:
        >>> import numpy as np
        >>> import kseg
        >>> labels = np.array([[[0, 1, 255]]])  # The last pixel is ignored.
        >>> logits = np.log([[[[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]]]).astype("float32")
        >>> loss = kseg.CrossEntropy()
        >>> round(float(loss(labels, logits)), 4)  # -(log 0.8 + log 0.6) / 2
        0.367
    """

    function = staticmethod(cross_entropy)

    def __init__(self, class_weights=None, label_smoothing=0.0, name="cross_entropy", **kwargs):
        super().__init__(name, class_weights, {"label_smoothing": label_smoothing}, **kwargs)


@keras.saving.register_keras_serializable(package="kseg")
class OHEM(_PixelLoss):
    """Mean cross-entropy over the hard pixels, see `kseg.losses.ohem.ohem_cross_entropy`.

    Args:
        threshold: float in [0, 1], a probability.
        min_kept: int >= 0, the number of pixels of the global batch kept at least.
        class_weights, ignore_class: as in `CrossEntropy`.

    Example:
        >>> import numpy as np
        >>> import kseg
        >>> labels = np.array([[[0, 1, 255]]])  # The last pixel is ignored.
        >>> logits = np.log([[[[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]]]).astype("float32")
        >>> loss = kseg.OHEM(threshold=0.7, min_kept=0)
        >>> round(float(loss(labels, logits)), 4)  # Only the pixel below 0.7: -log 0.6
        0.5108
    """

    function = staticmethod(ohem_cross_entropy)

    def __init__(self, threshold=0.7, min_kept=100_000, class_weights=None, name="ohem", **kwargs):
        settings = {"threshold": threshold, "min_kept": min_kept}
        super().__init__(name, class_weights, settings, **kwargs)


@keras.saving.register_keras_serializable(package="kseg")
class Focal(_PixelLoss):
    """Mean focal loss over the pixels, see `kseg.losses.focal.focal_loss`.

    Args:
        gamma: float >= 0.
        class_weights, ignore_class: as in `CrossEntropy`.

    Example:
        >>> import numpy as np
        >>> import kseg
        >>> labels = np.array([[[0, 1, 255]]])  # The last pixel is ignored.
        >>> logits = np.log([[[[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]]]).astype("float32")
        >>> loss = kseg.Focal(gamma=2.0)
        >>> round(float(loss(labels, logits)), 4)  # -(0.2^2 log 0.8 + 0.4^2 log 0.6) / 2
        0.0453
    """

    function = staticmethod(focal_loss)

    def __init__(self, gamma=2.0, class_weights=None, name="focal", **kwargs):
        super().__init__(name, class_weights, {"gamma": gamma}, **kwargs)


@keras.saving.register_keras_serializable(package="kseg")
class Lovasz(_BatchLoss):
    """Lovasz-softmax, see `kseg.losses.lovasz.lovasz_softmax`.

    Args:
        class_weights, ignore_class: as in `CrossEntropy`.

    Example:
        >>> import numpy as np
        >>> import kseg
        >>> labels = np.array([[[0, 1, 255]]])  # The last pixel is ignored.
        >>> logits = np.log([[[[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]]]).astype("float32")
        >>> loss = kseg.Lovasz()
        >>> round(float(loss(labels, logits)), 4)  # The mean of 0.5 * (0.4 + 0.2) and 1 * 0.4.
        0.35
    """

    function = staticmethod(lovasz_softmax)

    def __init__(self, class_weights=None, name="lovasz", **kwargs):
        super().__init__(name, class_weights, {}, **kwargs)


@keras.saving.register_keras_serializable(package="kseg")
class Dice(_BatchLoss):
    """Soft Dice loss, see `kseg.losses.dice.dice_loss`.

    Args:
        smooth: float >= 0, in pixels.
        squared: bool, whether to square probabilities in the denominator.
        class_weights, ignore_class: as in `CrossEntropy`.

    Example:
        >>> import numpy as np
        >>> import kseg
        >>> labels = np.array([[[0, 1, 255]]])  # The last pixel is ignored.
        >>> logits = np.log([[[[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]]]).astype("float32")
        >>> loss = kseg.Dice()
        >>> round(float(loss(labels, logits)), 4)  # 1 - (1.6 / 2.2 + 1.2 / 1.8) / 2
        0.303
    """

    function = staticmethod(dice_loss)

    def __init__(self, smooth=0.0, squared=False, class_weights=None, name="dice", **kwargs):
        super().__init__(name, class_weights, {"smooth": smooth, "squared": squared}, **kwargs)


@keras.saving.register_keras_serializable(package="kseg")
class RMI(_BatchLoss):
    """Region mutual information, see `kseg.losses.rmi.rmi_loss`.

    Args:
        region_size, downsampling, pixel_weight: as in `rmi_loss`.
        ignore_class: as in `CrossEntropy`.
    """

    function = staticmethod(rmi_loss)

    def __init__(self, region_size=3, downsampling=4, pixel_weight=0.5, name="rmi", **kwargs):
        settings = {"region_size": region_size, "downsampling": downsampling}
        super().__init__(name, None, {**settings, "pixel_weight": pixel_weight}, **kwargs)


@keras.saving.register_keras_serializable(package="kseg")
class Affinity(_BatchLoss):
    """Adaptive affinity fields, see `kseg.losses.affinity.affinity_loss`.

    Args:
        distances, margin, temperature: as in `affinity_loss`.
        ignore_class: as in `CrossEntropy`.
    """

    function = staticmethod(affinity_loss)

    def __init__(self, distances=(1, 2, 3), margin=3.0, temperature=0.1, name="affinity", **kwargs):
        settings = {"distances": tuple(distances), "margin": margin, "temperature": temperature}
        super().__init__(name, None, settings, **kwargs)


@keras.saving.register_keras_serializable(package="kseg")
class OutputLoss:
    """A loss on one output of a segmenter, as a function of (labels, outputs).

    Args:
        loss: `keras.losses.Loss` of (labels, logits). Keras' own get logits at the size of the
            labels; they must be made for logits, and told which label to ignore.
        output: str, the name of the output.

    Call arguments:
        labels: int tensor `(batch, height, width)`.
        outputs: dict of the segmenter's outputs.
        sample_weight: float tensor of the shape of the labels, or None.

    Returns:
        float32 scalar: this replica's share of the loss.

    Raises:
        ValueError: if the loss does not return a scalar.
    """

    def __init__(self, loss, output="logits"):
        self.loss = loss
        self.output = output

    @property
    def takes_sample_weight(self):
        """True if weights other than 0 and 1 have a meaning."""
        return getattr(self.loss, "takes_sample_weight", True)

    def __call__(self, labels, outputs, sample_weight=None):
        logits = outputs[self.output]
        if not isinstance(self.loss, SegmentationLoss):
            logits = logits_like(labels, logits)
            ignored = getattr(self.loss, "ignore_class", None)
            if ignored is not None:
                labels = ops.cast(labels, "int32")
                valid = ops.logical_and(labels >= 0, labels < logits.shape[-1])
                labels = ops.where(valid, labels, ignored)
        weights = () if sample_weight is None else (sample_weight,)
        value = ops.convert_to_tensor(self.loss(labels, logits, *weights))
        if len(value.shape):
            raise ValueError(
                "A loss must be a scalar, the mean over what counts. Received: shape "
                f"{tuple(value.shape)} of {self.loss}. Use a loss of kseg.losses, such as "
                "kseg.losses.CrossEntropy()"
            )
        return ops.cast(value, "float32")

    def get_config(self):
        return {"loss": keras.saving.serialize_keras_object(self.loss), "output": self.output}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["loss"]), config["output"])
