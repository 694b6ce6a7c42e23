"""A model over a data set: scores at full label resolution."""

import dataclasses
import time

import keras
import numpy as np
import tensorflow as tf

from kseg.evaluation.metrics import Scores, confusion_matrix


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        scores: `Scores` over the whole data set.
        num_images: int.
        images_per_second: float, the compiling first batch left out; NaN if there is only one.
        examples: list of `(image, truth, prediction)`, arrays, spread over the data set.
    """

    scores: Scores
    num_images: int
    images_per_second: float
    examples: list


class Evaluator:
    """Evaluates one model again and again, compiled once for all image sizes.

    Args:
        model: keras model from images, uint8 or float `(batch, height, width, 3)`, to float logits
            `(batch, height, width, num_classes)` of the same size. Nothing in it is changed.
        num_classes: int.
    """

    def __init__(self, model, num_classes):
        self._model = model
        self._num_classes = num_classes

        @tf.function(
            input_signature=[
                tf.TensorSpec((None, None, None, 3), "uint8"),
                tf.TensorSpec((None, None, None), "int32"),
            ],
            autograph=False,
        )
        def count(images, labels):
            logits = model(images, training=False)
            predictions = tf.argmax(logits, axis=-1, output_type="int32")
            return confusion_matrix(labels, predictions, num_classes)

        self._count = count

    def __call__(self, dataset, *, num_examples=0):
        """Evaluates.

        Args:
            dataset: batches `{"image": uint8 (batch, height, width, 3), "label": int (batch,
                height, width)}`, 255 = ignored; sizes may differ between batches.
            num_examples: int, how many examples to give back.

        Returns:
            `Evaluation`.
        """
        stride = max(int(dataset.cardinality()), 1) / max(num_examples, 1)
        chosen = {int((i + 0.5) * stride) for i in range(num_examples)}
        examples = []
        matrix = np.zeros((self._num_classes,) * 2, "int64")
        images, timed, start = 0, 0, None
        for number, batch in enumerate(dataset):
            matrix += self._count(batch["image"], tf.cast(batch["label"], "int32")).numpy()
            images += batch["image"].shape[0]
            if number in chosen:
                image = batch["image"][0].numpy()
                truth = batch["label"][0].numpy()
                examples.append((image, truth, predict(self._model, image)))
            if start is None:
                start = time.perf_counter()
            else:
                timed += batch["image"].shape[0]
        speed = timed / (time.perf_counter() - start) if timed else float("nan")
        return Evaluation(Scores(matrix), images, speed, examples)


def predict(model, image):
    """Labels one image.

    Args:
        model: as `Evaluator` takes it.
        image: uint8 array `(height, width, 3)`.

    Returns:
        uint8 array `(height, width)` of class numbers.
    """
    logits = model(image[None], training=False)
    return keras.ops.convert_to_numpy(keras.ops.argmax(logits[0], axis=-1)).astype("uint8")
