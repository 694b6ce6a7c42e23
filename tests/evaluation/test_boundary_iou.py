import numpy as np
import pytest

from kseg.evaluation.boundary_iou import BoundaryIou, near_outline


def by_loop(labels, distance):
    """A pixel is near an outline unless the whole square around it is inside and of its class."""
    height, width = labels.shape
    near = np.ones(labels.shape, bool)
    for y in range(distance, height - distance):
        for x in range(distance, width - distance):
            square = labels[y - distance : y + distance + 1, x - distance : x + distance + 1]
            near[y, x] = (square != labels[y, x]).any()
    return near


def blocks(rng, classes, size=(20, 26)):
    labels = rng.choice(classes, (5, 6)).astype("uint8")
    return np.repeat(np.repeat(labels, 7, axis=0), 8, axis=1)[: size[0], : size[1]]


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_near_outline(distance):
    rng = np.random.default_rng(distance)
    for classes in ([0, 1, 2], [0, 254, 255], [0, 255], [3]):
        labels = blocks(rng, classes)
        np.testing.assert_array_equal(near_outline(labels, distance), by_loop(labels, distance))


def expected_iou(truth, found, num_classes, distance):
    """The definition, with one mask a class."""
    ignored = truth >= num_classes
    scores = []
    for n in range(num_classes):
        sets = []
        for labels in (truth, found):
            mask = ((labels == n) & ~ignored).astype("uint8")
            sets.append(by_loop(mask, distance) & (mask == 1))
        union = (sets[0] | sets[1]).sum()
        scores.append((sets[0] & sets[1]).sum() / union if union else np.nan)
    return scores


def test_definition():
    rng = np.random.default_rng(0)
    truth, found = blocks(rng, [0, 1, 2, 255]), blocks(rng, [0, 1, 2])
    found[3:14, 5:20] = truth[3:14, 5:20] % 4 % 3
    distance = round(0.05 * np.hypot(*truth.shape))
    assert distance == 2
    count = BoundaryIou(4, 0.05)
    count(["a"], truth[None], found[None])
    np.testing.assert_allclose(count.iou, expected_iou(truth, found, 4, distance))


def test_square_that_is_one_pixel_too_large():
    """Within one pixel of their outlines a square of 4 has 12 pixels and one of 6 has 20."""
    truth, found = np.zeros((2, 20, 20), "uint8")
    truth[4:8, 4:8] = 1
    found[3:9, 3:9] = 1  # Its ring goes round the truth's: no pixel in common.
    count = BoundaryIou(2, 0.01)  # Less than a pixel: one pixel.
    count(["a"], truth[None], found[None])
    assert count.iou[1] == 0
    found = truth.copy()
    found[4, 8] = 1  # One pixel more: 12 in common, and (4, 8) in the prediction alone.
    count = BoundaryIou(2, 0.01)
    count(["a"], truth[None], found[None])
    np.testing.assert_allclose(count.iou[1], 12 / 13)


def test_sums_over_images_and_leaves_out_what_does_not_occur():
    rng = np.random.default_rng(1)
    pairs = [(blocks(rng, [0, 1]), blocks(rng, [0, 1])) for _ in range(3)]
    one, parts = BoundaryIou(3), BoundaryIou(3)
    truth, found = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    one(["a", "b", "c"], truth, found)
    parts(["a"], truth[:1], found[:1])
    parts(["b", "c"], truth[1:], found[1:])
    np.testing.assert_array_equal(one.iou, parts.iou)
    assert np.isnan(one.iou[2]) and 0 < one.iou[0] < 1


def test_right_predictions_are_all_right_whatever_is_ignored():
    rng = np.random.default_rng(2)
    truth = blocks(rng, [0, 1, 255])
    found = np.where(truth == 255, rng.integers(0, 2, truth.shape), truth)
    count = BoundaryIou(2)
    count(["a"], truth[None], found[None])
    np.testing.assert_array_equal(count.iou, [1, 1])


@pytest.mark.parametrize("arguments", [(3, 0.0), (3, 1.0), (0, 0.1), (256, 0.1)])
def test_refuses(arguments):
    with pytest.raises(ValueError, match="Received"):
        BoundaryIou(*arguments)
