"""Labels of images from the networks that `kseg.load` returns."""

import numpy as np
import tensorflow as tf

from kseg.errors import UserError, option
from kseg.evaluation.evaluator import check_logits, images_spec
from kseg.serving.network_file import resize


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

    Raises:
        UserError: if the network gives classes and `wrap` or `probabilities` needs its logits; in a
            call of the function, if logits are not finite.
    """
    if hasattr(model, "size") and wrap is None and not probabilities:
        return _file_labeler(model, confidence)
    if getattr(model, "result", "logits") == "classes":
        raise UserError(
            "This network gives classes, and windows, scales, mirroring and probabilities need "
            f"logits. Write it with {option('result', 'logits')}"
        )
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
        num_classes)`. For a network file, images are rounded to the integers that it takes, and
        resized to the size of a network with a fixed one; the logits are resized back bilinearly.
        A file that gives classes has logits 1 for the class and 0 for the others.
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

    def logits_of(images):
        if model.result == "logits":
            return np.asarray(model(images), "float32")
        labels, _ = model.classify(images)
        return np.eye(num_classes, dtype="float32")[labels]

    def run(images):
        dtype = "uint8" if pixels is None else pixels.dtype
        if dtype != "float32":
            images = np.clip(np.rint(images), 0, np.iinfo(dtype).max).astype(dtype)
        if model.size is None:
            return logits_of(images)
        height, width = images.shape[1:3]
        fitted = [logits_of(model.fit(image)[None])[0] for image in images]
        return np.stack([resize(logits, (height, width)) for logits in fitted])

    def network(images, training=False):
        logits = tf.numpy_function(run, [images], "float32", stateful=False)
        return tf.ensure_shape(logits, (None, None, None, num_classes))

    return network


def check_finite(finite):
    """Rejects the logits of an image whose classes would be arbitrary.

    Args:
        finite: bool, whether all of them are finite.

    Raises:
        UserError: if not.
    """
    if not finite:
        raise UserError(
            "logits must be finite. Received: NaN or infinite ones. Float16 overflows beyond "
            f"65,504: export the network with {option('precision', 'float32')}"
        )


def _unchanged(network):
    return network, False


def _file_labeler(model, confidence):
    def label(images):
        if model.size is None:
            found = model.classify(images)
        else:
            each = [model.label_with_confidence(image) for image in images]
            found = tuple(np.stack(x) for x in zip(*each, strict=True))
        return found if confidence else found[0]

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
        return tf.math.is_finite(tf.reduce_sum(scores)), *results

    def call(images):
        finite, *results = [result.numpy() for result in label(images)]
        check_finite(finite)
        return tuple(results) if len(results) > 1 else results[0]

    return call
