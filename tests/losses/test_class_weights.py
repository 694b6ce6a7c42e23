import math

import numpy as np
import pytest

from kseg.losses.class_weights import class_weights

PIXELS = [600, 0, 100, 300]  # Frequencies 0.6, 0, 0.1, 0.3; the median of those above 0 is 0.3.


@pytest.mark.parametrize(
    "method, expected",
    [
        ("median_frequency", [0.5, 0.0, 3.0, 1.0]),
        ("sqrt_median_frequency", [math.sqrt(0.5), 0.0, math.sqrt(3.0), 1.0]),
        ("log", [1 / math.log(1.62), 0.0, 1 / math.log(1.12), 1 / math.log(1.32)]),
    ],
)
def test_by_hand(method, expected):
    result = class_weights(method, PIXELS)
    np.testing.assert_allclose(result, expected, rtol=1e-12)
    # Twice the pixels, or more classes that never occur, change nothing.
    np.testing.assert_allclose(class_weights(method, [2 * n for n in PIXELS]), result, rtol=1e-12)
    np.testing.assert_allclose(class_weights(method, [*PIXELS, 0]), [*result, 0], rtol=1e-12)
    assert all(isinstance(weight, float) for weight in result)


def test_median_of_an_even_number_of_classes():
    np.testing.assert_allclose(class_weights("median_frequency", [1, 3]), [2.0, 2 / 3])


@pytest.mark.parametrize(
    "method, pixels, message",
    [
        ("median", [1, 2], "'median_frequency', 'sqrt_median_frequency', 'log'.*method='median'"),
        ("log", [0, 0], r"one of them positive. Received: \[0, 0\]"),
        ("log", [1, -1], r"Received: \[1, -1\]"),
        ("log", [], r"Received: \[\]"),
    ],
)
def test_refuses(method, pixels, message):
    with pytest.raises(ValueError, match=message):
        class_weights(method, pixels)
