"""Grad-CAM for segmentation: the positions of a feature map that support a class."""

import numpy as np
import tensorflow as tf

from kseg.evaluation.evaluator import images_spec
from kseg.segmenters import pixel_format_of


class GradCAM:
    """Class activation maps weighted by gradients, for segmentation.

    For a class c and a map A of K channels, at positions u: `relu(sum_k a_k A_k)` with
    `a_k = mean_u dS/dA_k(u)`, where S is the sum of the logits of c over a set of pixels M: those
    predicted as c, or all pixels if there are none.

    On `features`, with a single 1x1 convolution as classifier, this is (up to a factor) the
    positive part of the logit of c without its bias: it shows the result, and a deeper stage shows
    the evidence for it.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017, Eq. 1-2; for segmentation: Vinogradova et
    al., "Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation
    Mapping", AAAI 2020, Eq. 1.

    Args:
        segmenter: keras model from images to a dict with `logits` and the stages. A stage must be
            the same tensor that the logits are computed from, as with `build_segmenter(maps=...)`.
        stages: names of the maps, such as `("c5", "features")`.

    Raises:
        ValueError: if a stage is not an output of the segmenter.
    """

    def __init__(self, segmenter, stages=("features",)):
        missing = [stage for stage in stages if stage not in segmenter.output]
        if missing:
            raise ValueError(
                f"The segmenter must return the map {missing[0]!r}. It returns: "
                f"{sorted(segmenter.output)}"
            )
        self._stages = tuple(stages)

        @tf.function(
            input_signature=[
                images_spec(pixel_format_of(segmenter)),
                tf.TensorSpec((), "int32"),
            ],
            autograph=False,
        )
        def compute(images, number):
            with tf.GradientTape() as tape:
                # Watch the images: frozen weights are not watched by themselves.
                floats = tf.cast(images, "float32")
                tape.watch(floats)
                outputs = segmenter(floats, training=False)
                logits = tf.cast(outputs["logits"], "float32")
                predicted = tf.argmax(logits, axis=-1, output_type="int32") == number
                any_predicted = tf.reduce_any(predicted, axis=(1, 2), keepdims=True)
                pixels = tf.cast(predicted | ~any_predicted, "float32")
                score = tf.reduce_sum(pixels * tf.gather(logits, number, axis=-1))
            maps = [outputs[stage] for stage in self._stages]
            # Zero for a stage that the head does not use.
            gradients = tape.gradient(
                score, maps, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            heat_maps = []
            for stage, gradient in zip(maps, gradients, strict=True):
                weights = tf.reduce_mean(tf.cast(gradient, "float32"), axis=(1, 2), keepdims=True)
                heat = tf.reduce_sum(weights * tf.cast(stage, "float32"), axis=-1)
                heat_maps.append(tf.nn.relu(heat))
            return heat_maps

        self._compute = compute

    def __call__(self, images, number):
        """Computes the maps of a class.

        Args:
            images: uint8 array `(batch, height, width, 3)`, or of the segmenter's pixel format.
            number: int, the class.

        Returns:
            dict from a stage to float32 array `(batch, h, w)` in [0, 1]: each image's map is
            divided by its maximum, or is zero if nothing supports the class.
        """
        heat_maps = self._compute(images, number)
        return {
            stage: _normalize(heat.numpy())
            for stage, heat in zip(self._stages, heat_maps, strict=True)
        }


class ClassImages:
    """Keeps, for each class, the image of a stream that has the most pixels of it.

    Args:
        num_classes: int.
    """

    def __init__(self, num_classes):
        self._max_pixels = np.zeros(num_classes, "int64")
        self._images = {}

    def add(self, ids, images, labels):
        """Adds images.

        Args:
            ids: list of str.
            images: array `(batch, height, width, channels)`.
            labels: int array `(batch, height, width)`; values outside `[0, num_classes)` are
                ignored.
        """
        num_classes = len(self._max_pixels)
        for name, image, truth in zip(ids, images, labels, strict=True):
            known = truth[(truth >= 0) & (truth < num_classes)]
            counts = np.bincount(known, minlength=num_classes)
            improved = np.flatnonzero(counts > self._max_pixels)
            self._max_pixels[improved] = counts[improved]
            # A copy, so that the batch need not be kept in memory.
            self._images |= dict.fromkeys(improved.tolist(), (name, image.copy()))

    def images(self):
        """Returns a dict from each class that occurs to `(id, image)`, sorted by class."""
        return dict(sorted(self._images.items()))


def _normalize(heat):
    peak = heat.max(axis=(1, 2), keepdims=True)
    return heat / np.where(peak > 0, peak, 1)
