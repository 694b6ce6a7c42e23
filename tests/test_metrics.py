"""The metrics for `compile`, in models of Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.evaluation.metrics import Scores
from kseg.losses import CrossEntropy
from kseg.metrics import MeanIoU
from tests.evaluation.test_metrics import MATRIX, count_by_loop, random_pair


def one_hot(predictions, num_classes):
    return np.eye(num_classes, dtype="float32")[predictions]


def test_metric_over_unequal_batches_is_that_of_one_batch():
    labels, predictions = random_pair(np.random.default_rng(1), (5, 6, 7), 4)
    logits = one_hot(predictions, 4)
    whole, parts = MeanIoU(4), MeanIoU(4)
    whole.update_state(labels, logits)
    parts.update_state(labels[:2], logits[:2])
    parts.update_state(labels[2:], logits[2:])
    expected = Scores(count_by_loop(labels, predictions, 4)).mean_iou
    np.testing.assert_allclose(whole.result(), expected, rtol=1e-6)
    assert float(whole.result()) == float(parts.result())
    parts.reset_state()
    assert np.isnan(parts.result())


def test_metric_leaves_out_classes_that_do_not_occur():
    metric = MeanIoU(4)
    metric.matrix.assign(MATRIX)
    np.testing.assert_allclose(metric.result(), Scores(MATRIX).mean_iou, rtol=1e-6)


def test_metric_counts_single_pixels_beyond_float32():
    metric = MeanIoU(2)
    metric.matrix.assign([[2**40, 0], [0, 0]])
    metric.update_state(np.zeros((1, 1, 1), "int32"), one_hot(np.ones((1, 1, 1), "int32"), 2))
    np.testing.assert_array_equal(metric.matrix, [[2**40, 1], [0, 0]])


def test_metric_on_two_replicas_is_that_of_one(mirrored):
    labels, predictions = random_pair(np.random.default_rng(2), (3, 6, 7), 4)
    logits = one_hot(predictions, 4)
    with mirrored.scope():
        metric = MeanIoU(4)

    @tf.function
    def update():
        def on_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            # Two images on one replica, one on the other.
            mine = slice(0, 2) if int(tf.get_static_value(replica)) == 0 else slice(2, 3)
            metric.update_state(labels[mine], logits[mine])

        mirrored.run(on_replica)

    update()
    update()
    expected = Scores(count_by_loop(labels, predictions, 4)).mean_iou
    np.testing.assert_allclose(metric.result(), expected, rtol=1e-6)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(metric.matrix), 2 * count_by_loop(labels, predictions, 4)
    )


def test_metric_refuses_what_it_cannot_count():
    labels = np.zeros((1, 2, 2), "int32")
    with pytest.raises(ValueError, match="takes no sample weights"):
        MeanIoU(3).update_state(labels, np.zeros((1, 2, 2, 3), "float32"), sample_weight=labels)
    with pytest.raises(ValueError, match="MeanIoU of 3 classes needs logits"):
        MeanIoU(3).update_state(labels, np.zeros((1, 2, 2, 2), "float32"))


def test_metric_config_round_trip():
    again = keras.metrics.deserialize(keras.metrics.serialize(MeanIoU(3, name="score")))
    assert (again.num_classes, again.name) == (3, "score")


def test_metric_takes_masks_with_a_channel_and_another_class_to_ignore():
    labels, predictions = random_pair(np.random.default_rng(3), (2, 6, 7), 4)
    metric = MeanIoU(4, ignore_class=0)
    metric.update_state(labels[..., None].astype("uint8"), one_hot(predictions, 4))
    expected = count_by_loop(np.where(labels == 0, 255, labels), predictions, 4)
    np.testing.assert_array_equal(metric.matrix, expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_metric_of_logits_at_a_stride_in_compile(jit_compile):
    """Logits are resized to the labels as before any loss; XLA compiles it."""
    image = keras.Input((8, 12, 3))
    model = keras.Model(image, keras.layers.Conv2D(3, 2, strides=2)(image))
    model.compile(loss=CrossEntropy(), metrics=[MeanIoU(3)], jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    images, labels = rng.random((3, 8, 12, 3)), rng.integers(0, 3, (3, 8, 12))
    found = model.evaluate(images, labels, batch_size=2, return_dict=True, verbose=0)["mean_iou"]
    predictions = np.argmax(tf.image.resize(model(images), (8, 12)), axis=-1)
    assert found == pytest.approx(Scores(count_by_loop(labels, predictions, 3)).mean_iou)
