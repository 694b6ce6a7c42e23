import numpy as np
import pytest

from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.reduction import global_mean


def test_pixels_by_hand():
    logits = np.zeros((1, 1, 4, 2), "float32")
    logits[0, 0, :, 0] = np.log([1, 3, 3, 3])  # Class 0 has probability 1/2, then 3/4.
    labels = np.array([[[0, 0, 1, 255]]], "uint8")
    loss, valid = cross_entropy(labels, logits)
    np.testing.assert_allclose(loss, [[[np.log(2), np.log(4 / 3), np.log(4), 0]]], rtol=1e-6)
    assert np.array_equal(valid, [[[1, 1, 1, 0]]])
    np.testing.assert_allclose(
        global_mean(loss, valid), (np.log(2) + np.log(4 / 3) + np.log(4)) / 3, rtol=1e-6
    )


def test_logits_are_resized_bilinearly_to_the_labels():
    logits = np.zeros((1, 1, 2, 2), "float32")
    logits[0, 0, :, 0] = [0.0, 4.0]
    labels = np.zeros((1, 1, 4), "int32")
    # Half-pixel centres: sources -0.25, 0.25, 0.75, 1.25 of 0 and 4, clamped at the ends.
    expected = np.log1p(np.exp(-np.array([0.0, 1.0, 3.0, 4.0])))
    np.testing.assert_allclose(cross_entropy(labels, logits)[0][0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("label", [255, -1, 2])
def test_ignored_everywhere_is_zero(label):
    loss, valid = cross_entropy(np.full((2, 3, 3), label), np.ones((2, 3, 3, 2), "float32"))
    assert not np.any(loss) and not np.any(valid)
    assert float(global_mean(loss, valid)) == 0


def test_half_precision_logits_are_computed_in_float32():
    loss, _ = cross_entropy(np.zeros((1, 1, 1)), np.full((1, 1, 1, 2), 1.0, "float16"))
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
