"""Labels of images from the networks that `kseg.load` returns."""

import numpy as np

from kseg.serving.network_file import confidence_of


def labeler(model, *, confidence=False):
    """Returns a function that labels batches of images.

    Args:
        model: result of `kseg.load`.
        confidence: bool, whether to return the probability of each pixel's class, too.

    Returns:
        function from uint8 `(batch, height, width, 3)` to uint8 class indices `(batch, height,
        width)`; with `confidence` to a tuple of these and of float32 probabilities, of the same
        shape. Images are resized to the size of a network with a fixed one, the results back.
    """
    if not hasattr(model, "size"):
        return _saved_model_labeler(model, confidence)

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


def _saved_model_labeler(model, confidence):
    import tensorflow as tf

    from kseg.evaluation.evaluator import predict

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), "uint8")], autograph=False)
    def label(images):
        if not confidence:
            return predict(model, images, len(model.classes))
        logits = model(images)
        probability = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
        return tf.argmax(logits, axis=-1, output_type="int32"), probability

    if confidence:
        return lambda images: tuple(
            x.numpy().astype(t) for x, t in zip(label(images), ("uint8", "float32"), strict=True)
        )
    return lambda images: label(images).numpy()
