"""A single pass of a network over a data set, which feeds all analyses."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from kseg import waiting
from kseg.evaluation.evaluator import images_spec
from kseg.layers import resize_labels
from kseg.pixel_format import to_picture
from kseg.segmenters import inference_model, pixel_format_of


@dataclasses.dataclass(frozen=True)
class ObservedBatch:
    """A batch with the predictions and features of a network.

    Attributes:
        ids: list of str, names of the images, or their indices if the data has no names.
        images: uint8 array `(batch, height, width, 3)`, RGB to be looked at.
        inputs: the same images as the network takes them; `images` themselves for 8-bit RGB.
        labels: uint8 or int array `(batch, height, width)`, 255 = ignored.
        predictions: uint8 array `(batch, height, width)`.
        features: float32 array `(batch, h, w, dim)`, the map just before the classifier.
        feature_labels: int32 array `(batch, h, w)`, the labels at the positions of the features.
    """

    ids: list
    images: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    features: np.ndarray
    feature_labels: np.ndarray


def observe(segmenter, batches, *, unit_norm=True, progress=None):
    """Runs a segmenter over a data set batch by batch, in memory independent of the data's size.

    Args:
        segmenter: functional model from images to a dict with `logits`, float `(batch, h', w',
            num_classes)` of at most 255 classes, and `features`, float `(batch, h, w, dim)`.
        batches: iterable of `{"image": uint8 (batch, height, width, 3), "label": int (batch,
            height, width)}`, 255 = ignored, optionally with `id`, string `(batch,)`; images are
            those of the segmenter's pixel format. Labels are resized to the features by nearest
            sampling.
        unit_norm: bool, whether to scale features to unit L2 norm, so that networks whose features
            differ in scale can be compared.
        progress: function or None, called with the number of images processed so far.

    Yields:
        `ObservedBatch`.
    """
    pixels = pixel_format_of(segmenter)
    network = keras.Model(
        segmenter.input,
        {
            "features": segmenter.output["features"],
            "logits": inference_model(segmenter).output,
        },
    )

    @tf.function(input_signature=[images_spec(pixels)], autograph=False)
    def predict(images):
        outputs = network(images, training=False)
        features = tf.cast(outputs["features"], "float32")
        if unit_norm:
            features = tf.math.l2_normalize(features, axis=-1)
        return tf.cast(tf.argmax(outputs["logits"], axis=-1), "uint8"), features

    done = 0
    for batch in waiting.each_batch(batches):
        predictions, features = predict(batch["image"])
        inputs = np.asarray(batch["image"])
        size = features.shape[1:3]
        count = len(predictions)
        if "id" in batch:
            ids = [name.decode() for name in batch["id"].numpy()]
        else:
            ids = [str(done + i) for i in range(count)]
        yield ObservedBatch(
            ids=ids,
            images=to_picture(inputs, pixels),
            inputs=inputs,
            labels=np.asarray(batch["label"]),
            predictions=predictions.numpy(),
            features=features.numpy(),
            feature_labels=resize_labels(batch["label"], *size).numpy(),
        )
        done += count
        if progress is not None:
            progress(done)
