"""Evaluation of a model on a data set, at full label resolution.

The model of an `Evaluator` may be wrapped by `kseg.evaluation.sliding_window`,
`kseg.evaluation.scaled_views`, or both.
"""

import dataclasses
import math
import time

import numpy as np
import tensorflow as tf

from kseg import waiting
from kseg.backend import replicas
from kseg.classes import check_num_classes
from kseg.evaluation.image_counts import ImageCounts
from kseg.evaluation.metrics import Scores, confusion_matrices
from kseg.pixel_format import to_picture


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        scores: `Scores` over the whole data set.
        num_images: int.
        images_per_second: float, without the first call, which compiles; NaN if there is only one
            call.
        examples: list of `(image, truth, prediction)`, arrays, spread over the data set.
        image_counts: `ImageCounts` of each image.
        losses: dict from the name of a loss to float, its mean over the labeled pixels of the
            batches; NaN if there are no labeled pixels. Empty if the evaluator has no losses.
        non_finite: int, the number of images with labels for which the model gave logits that are
            NaN or infinite, so that their predictions are arbitrary.
    """

    scores: Scores
    num_images: int
    images_per_second: float
    examples: list
    image_counts: ImageCounts
    losses: dict = dataclasses.field(default_factory=dict)
    non_finite: int = 0

    def warning(self):
        """Says in one line how many images have logits that are not finite; None if none has."""
        if not self.non_finite:
            return None
        return (
            f"warning: the logits of {self.non_finite} of {self.num_images} images are NaN or "
            "infinite, and the predictions there arbitrary. Float16 overflows beyond 65,504, "
            "mostly before the moving statistics of batch norms have settled. If it lasts, use the "
            "precision float32 or mixed_bfloat16"
        )

    def to_dict(self, class_names, **more):
        """Returns a JSON-able dict of the number of images, speed (None if unknown) and scores.

        Args:
            class_names, **more: as for `Scores.to_dict`.
        """
        speed = self.images_per_second
        return {
            "num_images": self.num_images,
            "images_per_second": None if math.isnan(speed) else speed,
            **self.scores.to_dict(class_names, **more),
        }


class Evaluator:
    """Evaluates a model any number of times, compiled once for all image sizes.

    Args:
        model: keras model from images, uint8 `(batch, height, width, 3)`, to float logits
            `(batch, height, width, num_classes)` of the same size; or any callable with a
            `training` argument. The model is not modified.
        num_classes: int, at most 255.
        losses: dict from a name to a function of (labels, outputs) to a float32 scalar, as
            `kseg.training.trainer.SegmentationTrainer` takes them, which may use only the output
            `logits`. A loss is computed for each batch and weighted by the batch's labeled pixels,
            so that a mean over pixels, such as cross-entropy without class weights, becomes the
            mean over the pixels of the data set. What a loss takes from "the batch" (OHEM's least
            number of pixels, Dice's sums) is that of one evaluation batch here. None: no losses.
        strategy: `tf.distribute.Strategy` on one host, in whose scope the model was built; or
            None. Each replica takes whole batches, so the result equals that of one replica for any
            number and size of batches.
        pixel_format: `kseg.pixel_format.PixelFormat` of the images, which then have its channels
            and dtype; None: 8-bit RGB.

    Raises:
        ValueError: at the first call, if the number of classes of the model is not `num_classes`,
            or the logits differ in size from the labels.

    Example:
        >>> import keras, numpy as np, tensorflow as tf
        >>> from kseg import Evaluator
        >>> inputs = keras.Input((None, None, 3))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs))
        >>> images = np.zeros((4, 8, 8, 3), "uint8")
        >>> labels = np.zeros((4, 8, 8), "uint8")
        >>> dataset = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})
        >>> evaluation = Evaluator(model, num_classes=2)(dataset.batch(2))
        >>> evaluation.num_images, evaluation.scores.matrix.sum().item()
        (4, 256)
    """

    def __init__(self, model, num_classes, *, losses=None, strategy=None, pixel_format=None):
        self._pixel_format = pixel_format
        self._num_classes = num_classes
        self._loss_names = list(losses or {})
        self._strategy = strategy or tf.distribute.get_strategy()
        self._num_replicas = self._strategy.num_replicas_in_sync

        def count(images, labels):
            logits = _logits(model, images, num_classes)
            predictions = _labels_of(logits)
            matrices = confusion_matrices(labels, predictions, num_classes)
            parts = tf.linalg.diag_part(matrices), *(tf.reduce_sum(matrices, i) for i in (2, 1))
            sums = _sums(losses or {}, labels, logits, num_classes)
            return tf.reduce_sum(matrices, 0), sums, tf.stack(parts, 1), predictions

        # All replicas get the same lists, and each picks its batch. Unlike per-replica values,
        # lists can have a signature with unknown sizes.
        @tf.function(
            input_signature=[
                [images_spec(pixel_format)] * self._num_replicas,
                [tf.TensorSpec((None, None, None), "int32")] * self._num_replicas,
            ],
            autograph=False,
        )
        def count_on_replicas(images, labels):
            def count_mine():
                context = tf.distribute.get_replica_context()
                replica = int(tf.get_static_value(context.replica_id_in_sync_group))
                return count(images[replica], labels[replica])

            *sums, labels_of_images, predictions = self._strategy.run(count_mine)
            sums = [self._strategy.reduce("SUM", x, axis=None) for x in sums]
            of_images = labels_of_images, predictions
            return *sums, *map(self._strategy.experimental_local_results, of_images)

        self._count = count_on_replicas

    def __call__(self, dataset, *, num_examples=0, progress=None, consumers=()):
        """Evaluates the model on a data set.

        Args:
            dataset: batches `{"image": uint8 (batch, height, width, 3), "label": int (batch,
                height, width), "id": string (batch,)}`, 255 = ignored; sizes may differ between
                batches. Without ids, images are numbered.
            num_examples: int, number of examples to return, at most one per image; their images
                are uint8 RGB, see `kseg.pixel_format.to_picture`.
            progress: function or None, called with the number of images processed so far.
            consumers: functions called with each batch in order: `(ids, labels, predictions)`, a
                list of str and two arrays `(batch, height, width)`.

        Returns:
            `Evaluation`.
        """
        chosen = _spread(num_examples, max(int(dataset.cardinality()), 1))
        examples, ids, pixels = [], [], []
        matrix = np.zeros((self._num_classes,) * 2, "int64")
        total_sums = np.zeros(2 + len(self._loss_names))
        num_images, timed, start, number = 0, 0, None, 0
        for batches in _groups(dataset, self._num_replicas):
            images = [batch["image"] for batch in batches]
            labels = [tf.cast(batch["label"], "int32") for batch in batches]
            missing = self._num_replicas - len(batches)
            # A replica without a batch gets a copy of one in which every pixel is ignored.
            counted, sums, of_images, predictions = self._count(
                images + images[:1] * missing,
                labels + [tf.fill(tf.shape(labels[0]), self._num_classes)] * missing,
            )
            matrix += counted.numpy()
            total_sums += sums.numpy()
            for batch, parts, predicted in zip(batches, of_images, predictions, strict=False):
                size = batch["image"].shape[0]
                ids += _ids(batch, num_images)
                pixels.append(parts.numpy())
                if consumers:
                    arrays = ids[num_images:], batch["label"].numpy(), predicted.numpy()
                    for consume in consumers:
                        consume(*arrays)
                for i in sorted({int(fraction * size) for fraction in chosen.get(number, ())}):
                    arrays = (batch["image"], batch["label"], predicted)
                    image, *others = (array[i].numpy() for array in arrays)
                    examples.append((to_picture(image, self._pixel_format), *others))
                number += 1
                num_images += size
                timed += size if start is not None else 0
            if start is None:
                start = time.perf_counter()
            if progress is not None:
                progress(num_images)
        speed = timed / (time.perf_counter() - start) if timed else float("nan")
        nothing = np.zeros((0, 3, self._num_classes), "int64")
        image_counts = ImageCounts(ids, np.concatenate([nothing, *pixels]))
        total, broken, *sums = total_sums
        means = [value / total if total else math.nan for value in sums]
        losses = dict(zip(self._loss_names, means, strict=True))
        return Evaluation(
            Scores(matrix), num_images, speed, examples, image_counts, losses, int(broken)
        )


def images_spec(pixel_format, name=None):
    """Describes batches of images of any size.

    Args:
        pixel_format: `kseg.pixel_format.PixelFormat`, or None: 8-bit RGB.
        name: str or None, of the tensor.

    Returns:
        `tf.TensorSpec` of shape `(None, None, None, channels)`.
    """
    channels, dtype = (
        (3, "uint8") if pixel_format is None else (pixel_format.channels, pixel_format.dtype)
    )
    return tf.TensorSpec((None, None, None, channels), dtype, name=name)


def predict(model, images, num_classes):
    """Labels images.

    Args:
        model: as `Evaluator` takes it.
        images: uint8 tensor `(batch, height, width, 3)`.
        num_classes: int, at most 255.

    Returns:
        uint8 tensor `(batch, height, width)` of class indices.

    Raises:
        ValueError: if the number of classes of the model is not `num_classes`.
    """
    return _labels_of(_logits(model, images, num_classes))


def _logits(model, images, num_classes):
    logits = model(images, training=False)
    check_logits(logits, num_classes)
    return logits


def _labels_of(logits):
    return tf.cast(tf.argmax(logits, axis=-1, output_type="int32"), "uint8")


def _sums(losses, labels, logits, num_classes):
    """Computes what an evaluation adds up over its batches.

    Returns:
        float32 tensor `(2 + losses,)`: the numbers of labeled pixels and of images with labels and
        with logits that are not finite; then each loss times the former.
    """
    valid = tf.logical_and(labels >= 0, labels < num_classes)
    count = tf.reduce_sum(tf.cast(valid, "float32"))
    finite = tf.math.is_finite(tf.reduce_sum(tf.cast(logits, "float32"), axis=(1, 2, 3)))
    broken = tf.logical_and(tf.reduce_any(valid, axis=(1, 2)), tf.logical_not(finite))
    numbers = [count, tf.reduce_sum(tf.cast(broken, "float32"))]
    if not losses:
        return tf.stack(numbers)
    labels = tf.where(valid, labels, 255)
    with replicas.alone():  # Batches of replicas may differ in size.
        values = [loss(labels, {"logits": logits}) for loss in losses.values()]
    return tf.stack([*numbers, *(count * tf.cast(value, "float32") for value in values)])


def check_logits(logits, num_classes):
    """Raises a ValueError unless the last axis of logits has one entry for each class."""
    check_num_classes(num_classes)
    if logits.shape[-1] != num_classes:
        raise ValueError(
            f"A model of {num_classes} classes must give as many logits. "
            f"Received shape: {logits.shape}"
        )


def _ids(batch, first):
    """Names the images of a batch; `first` is the number of the first one."""
    if "id" in batch:
        return [name.decode() for name in batch["id"].numpy()]
    return [str(first + i) for i in range(batch["image"].shape[0])]


def _groups(dataset, size):
    """Yields lists of `size` consecutive batches; the last may be shorter."""
    group = []
    for batch in waiting.each_batch(dataset):
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _spread(count, num_batches):
    """Spreads examples: returns a dict from batch index to relative positions in [0, 1)."""
    chosen = {}
    for i in range(count):
        batch, fraction = divmod((i + 0.5) * num_batches / count, 1)
        chosen.setdefault(int(batch), []).append(fraction)
    return chosen
