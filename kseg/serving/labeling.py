"""Labels of images from the networks that `kseg.load` returns."""

import cv2
import numpy as np
import tensorflow as tf

from kseg.evaluation.evaluator import check_logits, images_spec
from kseg.serving.network_file import confidence_of


def labeler(model, *, confidence=False, probabilities=False, wrap=None):
    """Returns a function that labels batches of images.

    Args:
        model: result of `kseg.load`.
        confidence: bool, whether to return the probability of each pixel's class, too.
        probabilities: bool, whether to return the probabilities of all classes, too.
        wrap: function from the network, a callable as `kseg.evaluation.sliding_window` takes it, to
            `(network, are_probabilities)`: one that sees windows or several views of an image, and
            whether it returns probabilities in place of logits. None: the network sees whole
            images.

    Returns:
        function from uint8 `(batch, height, width, 3)` to uint8 class indices `(batch, height,
        width)`; with `confidence` or `probabilities` to a tuple of these, of float32 `(batch,
        height, width)` and of float32 `(batch, height, width, num_classes)`, as requested. Images
        are resized to the size of a network with a fixed one, the results back.
    """
    if hasattr(model, "size") and wrap is None and not probabilities:
        return _file_labeler(model, confidence)
    network, are_probabilities = (wrap or _unchanged)(as_network(model))
    return _graph_labeler(
        network,
        are_probabilities,
        len(model.classes),
        confidence,
        probabilities,
        getattr(model, "pixel_format", None),
    )


def as_network(model):
    """Returns a network of `kseg.load` as a function that can be part of a TensorFlow graph.

    Args:
        model: result of `kseg.load`.

    Returns:
        function of `(images, training=False)`, uint8 or float32 `(batch, height, width, 3)` in 0 to
        255, or images of the pixel format of the network, to float32 logits `(batch, height, width,
        num_classes)`. For a file for LiteRT or ONNX, images are rounded to the integers that it
        takes, and resized to the size of a network with a fixed one; the
        logits are resized back bilinearly.
    """
    num_classes, pixels = len(model.classes), getattr(model, "pixel_format", None)
    if not hasattr(model, "size"):

        def saved_model(images, training=False):
            if images.dtype.is_floating and pixels is None:
                # A SavedModel rejects dark images that are not integers as normalized ones.
                dark = tf.reduce_max(images) <= 4
                images = tf.where(dark, tf.round(images), images)
            return model(images)

        return saved_model

    def run(images):
        dtype = "uint8" if pixels is None else pixels.dtype
        if dtype != "float32":
            images = np.clip(np.rint(images), 0, np.iinfo(dtype).max).astype(dtype)
        if model.size is None:
            return np.asarray(model(images), "float32")
        height, width = images.shape[1:3]
        logits = []
        for image in images:
            fitted = _resize(image, model.size).reshape(*model.size, -1)
            scaled = np.asarray(model(fitted[None]), "float32")[0]
            logits.append(_resize(scaled, (height, width)).reshape(height, width, num_classes))
        return np.stack(logits)

    def network(images, training=False):
        logits = tf.numpy_function(run, [images], "float32", stateful=False)
        return tf.ensure_shape(logits, (None, None, None, num_classes))

    return network


def _unchanged(network):
    return network, False


def _resize(values, size):
    if values.shape[:2] == tuple(size):
        return values
    return cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)


def _file_labeler(model, confidence):
    def label(images):
        if model.size is None:
            logits = model(images)
            labels = np.argmax(logits, axis=-1).astype("uint8")
            return (labels, confidence_of(logits)) if confidence else labels
        if not confidence:
            return np.stack([model.label(image) for image in images])
        each = [model.label_with_confidence(image) for image in images]
        return tuple(np.stack(x) for x in zip(*each, strict=True))

    return label


def _graph_labeler(
    network, are_probabilities, num_classes, confidence, probabilities, pixel_format=None
):
    @tf.function(input_signature=[images_spec(pixel_format)], autograph=False)
    def label(images):
        scores = network(images, training=False)
        check_logits(scores, num_classes)
        results = [tf.cast(tf.argmax(scores, axis=-1, output_type="int32"), "uint8")]
        if confidence or probabilities:
            shares = scores if are_probabilities else tf.nn.softmax(scores)
            results += [tf.reduce_max(shares, axis=-1)] if confidence else []
            results += [shares] if probabilities else []
        return results

    def call(images):
        results = [result.numpy() for result in label(images)]
        return tuple(results) if len(results) > 1 else results[0]

    return call
