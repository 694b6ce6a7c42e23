import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.evaluation.evaluator import Evaluator
from kseg.evaluation.sliding_window import SlidingWindow, place_windows
from tests.evaluation.test_evaluator import NUM_CLASSES, batches_of, examples


def model():
    """Returns other logits for the same pixel in another window: padding reaches all of them."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 5, padding="same", activation="relu", name="conv")(image)
    return keras.Model(image, keras.layers.Conv2D(NUM_CLASSES, 3, padding="same", name="out")(x))


def images(batch, height, width):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, height, width, 3)).astype("uint8")


def by_loop(network, image, window, overlap):
    """The same by a NumPy loop over the windows of one image."""
    total = np.zeros((*image.shape[:2], NUM_CLASSES))
    count = np.zeros((*image.shape[:2], 1))
    places = []
    for size, most in zip(image.shape[:2], window, strict=True):
        stride = max(math.ceil(round(most * (1 - overlap), 6)), 1)
        starts, start = [0], 0
        while starts[-1] + most < size:
            start += stride
            starts.append(min(start, size - most))
        places.append(starts)
    for y in places[0]:
        for x in places[1]:
            part = slice(y, y + window[0]), slice(x, x + window[1])
            total[part] += network(image[part][None])[0]
            count[part] += 1
    assert count.min() == 1
    return total / count, len(places[0]) * len(places[1])


@pytest.mark.parametrize(
    "size, window, overlap, windows",
    [
        ((17, 23), (8, 10), 0.5, 4 * 4),
        ((17, 23), (8, 10), 0.0, 3 * 3),  # The last ones overlap all the same.
        ((16, 20), (8, 10), 0.0, 2 * 2),
        ((12, 30), (30, 12), 1 / 3, 1 * 4),  # Not larger along one axis.
        ((9, 9), (9, 9), 0.9, 1),
        ((7, 5), (9, 9), 0.5, 1),
        ((6, 11), (6, 5), 0.99, 1 * 7),  # A stride of one pixel.
    ],
)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_is_the_mean_over_the_windows(size, window, overlap, windows, batch_size):
    network, batch = model(), images(2, *size)
    sliding = SlidingWindow(network, NUM_CLASSES, window, overlap=overlap, batch_size=batch_size)
    found = sliding(batch).numpy()
    for image, logits in zip(batch, found, strict=True):
        expected, count = by_loop(network, image, window, overlap)
        assert count == windows
        np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("window", [(300, 300), (3, 3), (100, 90)])
def test_stride_of_two_thirds_is_exact(window):
    expected = [-(-2 * size // 3) for size in window]  # Rounded up.
    found = [place_windows(10 * size, size, 1 / 3, "flat")[1] for size in window]
    assert [int(starts[1] - starts[0]) for starts in found] == expected


def test_image_that_fits_is_seen_as_it_is():
    network, batch = model(), images(2, 8, 10)
    expected = network(batch).numpy()
    for window in ((8, 10), (80, 100)):
        found = SlidingWindow(network, NUM_CLASSES, window)(batch).numpy()
        np.testing.assert_array_equal(found, expected)


def test_one_trace_for_all_sizes_and_the_answer_of_two_devices(mirrored):
    items = list(examples([(6, 8), (19, 15), (7, 27)]))
    with mirrored.scope():
        network = model()
    sliding = SlidingWindow(network, NUM_CLASSES, (6, 8), batch_size=3)
    one, two = Evaluator(sliding, NUM_CLASSES), Evaluator(sliding, NUM_CLASSES, strategy=mirrored)
    matrices = [evaluator(batches_of(items, [1, 1, 1])).scores.matrix for evaluator in (one, two)]
    np.testing.assert_array_equal(*matrices)
    assert one._count.experimental_get_tracing_count() == 1
    expected = np.zeros((NUM_CLASSES,) * 2, "int64")
    for image, labels in items:
        logits, _ = by_loop(network, image, (6, 8), 1 / 3)
        known = labels < NUM_CLASSES
        np.add.at(expected, (labels[known], logits.argmax(-1)[known]), 1)
    # Graphs round differently: a pixel on the edge between two classes may change sides.
    assert np.abs(matrices[0] - expected).sum() <= 2


def test_floats_are_taken_as_well():
    network, batch = model(), images(1, 9, 9)
    sliding = SlidingWindow(network, NUM_CLASSES, (4, 4))
    np.testing.assert_array_equal(sliding(batch), sliding(tf.cast(batch, "float32")))


@pytest.mark.parametrize(
    "arguments",
    [{"window": (0, 4)}, {"window": (4,)}, {"overlap": 1.0}, {"overlap": -0.1}, {"batch_size": 0}],
)
def test_refuses(arguments):
    with pytest.raises(ValueError, match=r"`overlap` in \[0, 1\)\. Received"):
        SlidingWindow(model(), NUM_CLASSES, **{"window": (4, 4), **arguments})


def test_refuses_a_model_of_other_classes():
    with pytest.raises(ValueError, match="A model of 5 classes"):
        SlidingWindow(model(), 5, (4, 4))(images(1, 4, 4))


def test_gaussian_weights_by_hand():
    """A one-pixel network whose logits tell the window: only the weights matter."""
    image = np.zeros((1, 6, 1, 3), "uint8")
    image[0, :, 0, 0] = np.arange(6)

    def network(windows, training=False):
        first = tf.cast(windows[:, :1, :, :1], "float32")  # The window's first row.
        return tf.broadcast_to(first, (*windows.shape[:3], 1))

    sliding = SlidingWindow(network, 1, (4, 1), overlap=0.5, blend="gaussian")
    weight = [math.exp(-0.5 * ((i - 1.5) / 0.5) ** 2) for i in range(4)]
    # Windows begin at rows 0 and 2, and their logits are 0 and 2.
    mixed = [2 * weight[i - 2] / (weight[i] + weight[i - 2]) for i in (2, 3)]
    np.testing.assert_allclose(sliding(image)[0, :, 0, 0], [0, 0, *mixed, 2, 2], rtol=1e-5)


@pytest.mark.parametrize("size", [(160, 96), (164, 100), (64, 300), (40, 30)])
def test_centers_of_windows_are_the_whole_image(size):
    """The receptive field, 3 pixels to each side, lies within the 16 that windows overlap by."""
    network, batch = model(), images(1, *size)
    sliding = SlidingWindow(network, NUM_CLASSES, (64, 64), overlap=0.5, blend="center")
    np.testing.assert_allclose(sliding(batch), network(batch), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("blend", ["flat", "gaussian", "center"])
def test_a_map_that_needs_no_context_is_not_changed(blend):
    image, layer = keras.Input((None, None, 3)), keras.layers.Conv2D(NUM_CLASSES, 1)
    network, batch = keras.Model(image, layer(image)), images(2, 50, 75)
    sliding = SlidingWindow(network, NUM_CLASSES, (20, 33), overlap=0.4, blend=blend)
    np.testing.assert_allclose(sliding(batch), network(batch), rtol=1e-5, atol=1e-3)


def test_refuses_unknown_blends():
    with pytest.raises(ValueError, match=r"flat, gaussian, center\. Received: 'round'"):
        SlidingWindow(model(), NUM_CLASSES, (4, 4), blend="round")
