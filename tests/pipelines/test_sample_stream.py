import numpy as np
import pytest
import tensorflow as tf

from pipelines.sample_stream import Order, repeat_factors


def test_repeat_factors_by_hand():
    """Class 0 is in all four images, class 1 in two, class 2 in one, class 3 in none."""
    classes = [[0], [0, 1], [0, 1, 2], [0]]
    expected = [1, 1, np.sqrt(0.5 / 0.25), 1]
    np.testing.assert_allclose(repeat_factors(classes, 4, 0.5), expected)
    np.testing.assert_allclose(repeat_factors(classes, 4, 1.0), [1, 2**0.5, 2, 1])
    np.testing.assert_allclose(repeat_factors(classes, 4, 0.1), [1, 1, 1, 1])
    np.testing.assert_allclose(repeat_factors([[], [1]], 4, 1.0), [1, 2**0.5])


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_bad_threshold(threshold):
    with pytest.raises(ValueError, match="threshold"):
        repeat_factors([[0]], 1, threshold)


def epochs_of(order, epochs):
    """The images of some epochs, `(epochs, samples)`."""
    numbers = tf.data.Dataset.range(epochs * order.epoch_length).map(order)
    return np.array(list(numbers.as_numpy_iterator())).reshape(epochs, -1)


def test_without_factors_every_image_once():
    for epoch in epochs_of(Order(3, 13), 4):
        assert sorted(epoch) == list(range(13))


def test_repeated_as_the_factors_say():
    """In each epoch the factor rounded down or up; on average the factor."""
    factors = np.array([1, 1, 2.5, 1.25, 3, 1, 1.75, 1])
    order = Order(0, 8, factors)
    assert order.epoch_length == 12  # 12.5 rounds to even.
    scaled = factors * 12 / 12.5
    epochs = epochs_of(order, 400)
    counts = np.array([np.bincount(epoch, minlength=8) for epoch in epochs])
    assert (counts >= np.floor(scaled)).all() and (counts <= np.ceil(scaled)).all()
    # Five standard deviations of a mean of 400 roundings, each at most 0.5 from its mean.
    np.testing.assert_allclose(counts.mean(axis=0), scaled, atol=5 * 0.5 / 20)
    assert len(set(map(tuple, epochs))) > 390


def test_factors_of_one_show_every_image_once():
    for epoch in epochs_of(Order(1, 7, np.ones(7)), 5):
        assert sorted(epoch) == list(range(7))
