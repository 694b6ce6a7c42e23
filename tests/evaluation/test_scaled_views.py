import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.evaluation.evaluator import Evaluator
from kseg.evaluation.scaled_views import SCALES, MultiScale
from kseg.evaluation.sliding_window import SlidingWindow
from tests.evaluation.test_evaluator import NUM_CLASSES, batches_of, examples
from tests.evaluation.test_sliding_window import images, model


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def resized(image, height, width):
    return cv2.resize(image.astype("float32"), (width, height), interpolation=cv2.INTER_LINEAR)


def scaled(network):
    """Logits small enough that no probability is all or nothing: the test would be weak."""
    image = network.input
    return keras.Model(image, network(keras.layers.Rescaling(1 / 255)(image)))


@pytest.mark.parametrize("scales, flip", [((0.5, 1.0, 1.7), True), ((0.4,), False)])
def test_is_the_mean_over_the_views(scales, flip):
    network, batch = scaled(model()), images(2, 17, 22)
    found = MultiScale(network, NUM_CLASSES, scales, flip=flip)(batch).numpy()
    for image, probabilities in zip(batch, found, strict=True):
        views = []
        for scale in scales:
            height, width = int(17 * scale + 0.5), int(22 * scale + 0.5)
            view = resized(image, height, width)
            views.append(softmax(resized(network(view[None]).numpy()[0], 17, 22)))
            if flip:
                logits = network(view[None, :, ::-1]).numpy()[0, :, ::-1]
                views.append(softmax(resized(logits, 17, 22)))
        np.testing.assert_allclose(probabilities, np.mean(views, axis=0), atol=2e-5)
    assert found.max() < 0.99
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_one_scale_unmirrored_is_the_model_itself():
    network, batch = model(), images(2, 9, 12)
    found = MultiScale(network, NUM_CLASSES, [1.0])(batch)
    np.testing.assert_array_equal(found, tf.nn.softmax(network(batch)))


def test_mirrored_images_have_mirrored_answers():
    """With flipping no side is preferred, whatever the model does."""
    both = MultiScale(scaled(model()), NUM_CLASSES, (1.0, 1.5), flip=True)
    batch = images(1, 8, 11)
    np.testing.assert_allclose(both(batch[:, :, ::-1]), both(batch)[:, :, ::-1], atol=1e-6)
    symmetric = np.concatenate([batch, batch[:, :, ::-1]], axis=2)
    found = both(symmetric)
    np.testing.assert_allclose(found, found[:, :, ::-1], atol=1e-6)
    # The model alone does prefer one.
    alone = MultiScale(scaled(model()), NUM_CLASSES, [1.0])(symmetric)
    assert np.abs(alone - alone[:, :, ::-1]).max() > 1e-3


def test_one_trace_for_all_sizes_and_the_answer_of_two_devices(mirrored):
    items = list(examples([(6, 8), (9, 15), (7, 17)]))
    with mirrored.scope():
        network = scaled(model())
    views = MultiScale(
        SlidingWindow(network, NUM_CLASSES, (6, 8)), NUM_CLASSES, (0.75, 1.0, 2.0), flip=True
    )
    one, two = Evaluator(views, NUM_CLASSES), Evaluator(views, NUM_CLASSES, strategy=mirrored)
    matrices = [evaluator(batches_of(items, [1, 1, 1])).scores.matrix for evaluator in (one, two)]
    np.testing.assert_array_equal(*matrices)
    assert one._count.experimental_get_tracing_count() == 1
    # Wrapped, an image is scored on its own pixels, all of them.
    assert matrices[0].sum() == sum((labels < NUM_CLASSES).sum() for _, labels in items)


def test_default_scales_are_those_of_the_papers():
    assert (SCALES[0], SCALES[-1], len(SCALES)) == (0.5, 2.0, 7)


@pytest.mark.parametrize("scales", [[], [0.0], [1.0, -1.0]])
def test_refuses(scales):
    with pytest.raises(ValueError, match="one or more numbers above 0"):
        MultiScale(model(), NUM_CLASSES, scales)


def test_refuses_a_model_of_other_classes():
    with pytest.raises(ValueError, match="A model of 5 classes"):
        MultiScale(model(), 5, [1.0])(images(1, 4, 4))
