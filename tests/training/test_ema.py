import numpy as np
import pytest

from kseg.training.ema import averaged, decay_at


@pytest.mark.parametrize(
    "step, decay, expected",
    [(1, 0.9, 0.0), (2, 0.9, 0.1), (10, 0.9, 0.5), (100, 0.9, 0.9), (100, 0.999, 99 / 108)],
)
def test_decay_of_a_step(step, decay, expected):
    np.testing.assert_allclose(decay_at(step, decay), expected, rtol=1e-6)


def test_the_average_lies_between():
    average, value = np.array([1.0, -2.0], "float32"), np.array([3.0, 2.0], "float32")
    np.testing.assert_allclose(averaged(average, value, 0.75), [1.5, -1.0])
    np.testing.assert_allclose(averaged(average, value, 0.0), value)
