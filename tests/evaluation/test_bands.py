import numpy as np
import pytest

from kseg.evaluation import bands
from kseg.evaluation.bands import BandedWindows
from kseg.evaluation.sliding_window import SlidingWindow
from tests.evaluation.test_evaluator import NUM_CLASSES
from tests.evaluation.test_sliding_window import images, model


class Rows:
    """An image that is read in ascending order, each row once."""

    def __init__(self, image):
        self.image, self.next = image, 0

    def __call__(self, first, last):
        assert first == self.next < last
        self.next = last
        return self.image[first:last]


@pytest.mark.parametrize("blend", ["flat", "gaussian", "center"])
@pytest.mark.parametrize(
    "size, window, overlap",
    [
        ((50, 41), (16, 12), 0.5),
        ((50, 41), (16, 12), 0.7),  # Three windows cover a pixel.
        ((33, 70), (16, 16), 0.0),
        ((20, 9), (64, 64), 0.5),  # One window.
    ],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_is_the_sliding_window_of_the_whole_image(
    size, window, overlap, blend, in_memory, monkeypatch
):
    if not in_memory:
        monkeypatch.setattr(bands, "_MOST_HELD", 0)
    network, (image,) = model(), images(1, *size)
    arguments = {"overlap": overlap, "blend": blend, "batch_size": 3}
    expected = SlidingWindow(network, NUM_CLASSES, window, **arguments)(image[None])[0]
    windows, rows = BandedWindows(network, NUM_CLASSES, window, **arguments), Rows(image)
    found, seen, counts = np.zeros(expected.shape), np.zeros(size, int), []
    for row, column, logits in windows(size, rows, progress=counts.append):
        part = slice(row, row + logits.shape[0]), slice(column, column + logits.shape[1])
        found[part] = logits
        seen[part] += 1
    assert (seen == 1).all() and rows.next == size[0]
    assert sum(counts) == windows.num_windows(size)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
