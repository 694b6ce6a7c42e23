"""Predictions averaged over sizes and mirror images of an image."""

import tensorflow as tf

from kseg.evaluation.evaluator import check_logits
from kseg.layers import resize

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


class MultiScale:
    """Wraps a model to average its predictions over several sizes of an image and mirror images.

    The image is resized bilinearly, the logits are resized bilinearly to the image's own size, and
    their softmax is averaged over all views. The graph contains the network once, in a loop.

    Source: `aug_test` of mmsegmentation, and semseg (PSPNet): both average probabilities. HRNet's
    own code sums exponentials of logits instead, which gives more weight to views with larger
    logits. Departure: resized images are not rounded to integers, as OpenCV does there.

    Args:
        model: callable from images, float `(batch, height, width, 3)`, to float logits `(batch,
            height, width, num_classes)`, for any image size; may be a `SlidingWindow`.
        num_classes: int.
        scales: floats > 0, factors of height and width.
        flip: bool, whether to add a horizontally flipped view for each size.

    Raises:
        ValueError: if there are no scales, or a scale is not positive.
    """

    def __init__(self, model, num_classes, scales=SCALES, *, flip=False):
        if not scales or min(scales) <= 0:
            raise ValueError(f"`scales` must be one or more numbers above 0. Received: {scales}")
        self._model = model
        self._num_classes = num_classes
        views = [(scale, mirrored) for scale in scales for mirrored in (False, True)[: 1 + flip]]
        self._scales, self._mirrored = map(list, zip(*views, strict=True))

    def __call__(self, images, training=False):
        """Returns float32 probabilities `(batch, height, width, num_classes)`."""
        images = tf.cast(images, "float32")
        size = tf.shape(images)[1:3]
        scales = tf.constant(self._scales, "float32")
        mirrored = tf.constant(self._mirrored)
        count = len(self._scales)

        def one_view(number, total):
            wanted = tf.cast(size, "float32") * scales[number]
            wanted = tf.maximum(tf.cast(wanted + 0.5, "int32"), 1)
            view = _mirror(resize(images, wanted), mirrored[number])
            logits = self._model(view, training=False)
            check_logits(logits, self._num_classes)
            logits = resize(_mirror(tf.cast(logits, "float32"), mirrored[number]), size)
            return number + 1, total + tf.nn.softmax(logits)

        total = tf.zeros((*tf.unstack(tf.shape(images)[:3]), self._num_classes))
        _, total = tf.while_loop(
            lambda number, _: number < count,
            one_view,
            (tf.constant(0), total),
            shape_invariants=(tf.TensorShape(()), total.shape),
            parallel_iterations=1,
        )
        return total / count


def _mirror(images, wanted):
    return tf.cond(wanted, lambda: tf.reverse(images, [2]), lambda: images)
