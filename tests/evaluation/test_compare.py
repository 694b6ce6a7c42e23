import json

import numpy as np
import pytest

from kseg.errors import UserError
from kseg.evaluation.compare import bootstrap, compare
from kseg.evaluation.image_counts import ImageCounts, iou_of


def counts(pixels, ids=None):
    pixels = np.asarray(pixels, "int64")
    return ImageCounts(ids or [str(i) for i in range(len(pixels))], pixels)


def of_one_class(hits, union=1000):
    """Images of one class whose unions are equal: the IoU is the mean of `hits / union`."""
    return [[[h], [union], [h]] for h in hits]


def random_counts(rng, num_images, num_classes):
    hits = rng.integers(0, 100, (num_images, num_classes))
    others = rng.integers(0, 50, (2, num_images, num_classes))
    return np.stack([hits, hits + others[0], hits + others[1]], axis=1)


def test_scores_are_those_of_all_pixels():
    rng = np.random.default_rng(0)
    first, second = random_counts(rng, 7, 3), random_counts(rng, 7, 3)
    found = compare(counts(first), counts(second), resamples=10)
    for scores, pixels in ((found.first, first), (found.second, second)):
        hits, truth, predicted = pixels.sum(axis=0)
        iou = hits / (truth + predicted - hits)
        np.testing.assert_allclose(scores, [*iou, iou.mean()])
    np.testing.assert_allclose(found.difference, found.second - found.first)
    assert found.num_images == 7


def test_interval_of_a_mean_is_that_of_statistics():
    """With equal unions the difference is a mean: its error is s / sqrt(n), nearly normal."""
    rng = np.random.default_rng(1)
    first = rng.integers(300, 500, 400)
    second = first + rng.integers(-80, 120, 400)
    found = compare(counts(of_one_class(first)), counts(of_one_class(second)), resamples=4000)
    differences = (second - first) / 1000
    np.testing.assert_allclose(found.difference[0], differences.mean())
    error = differences.std() / np.sqrt(400)
    for end, z in ((found.low[0], -1.96), (found.high[0], 1.96)):
        # Quantiles of 4000 draws lie within a tenth of the error.
        np.testing.assert_allclose(end, differences.mean() + z * error, atol=0.15 * error)
    assert found.significant[0]


def test_images_are_paired():
    """A difference that is the same in all images is certain, however much the images differ."""
    first = np.random.default_rng(2).integers(0, 900, 30)
    found = compare(counts(of_one_class(first)), counts(of_one_class(first + 50)))
    np.testing.assert_allclose([found.low[0], found.high[0]], 0.05, atol=1e-12)
    same = compare(counts(of_one_class(first)), counts(of_one_class(first)))
    np.testing.assert_array_equal([same.low, same.high], 0)
    assert not same.significant.any()


def test_is_that_of_a_loop_over_the_draws():
    rng = np.random.default_rng(3)
    first, second = random_counts(rng, 5, 3), random_counts(rng, 5, 3)
    found = compare(counts(first), counts(second), confidence=0.8, resamples=50, seed=9)
    draws = np.random.default_rng(9).multinomial(5, [0.2] * 5, size=50)
    differences = []
    for times in draws:
        a, b = (iou_of(np.repeat(pixels, times, axis=0).sum(axis=0)) for pixels in (first, second))
        differences.append([*(b - a), b.mean() - a.mean()])
    np.testing.assert_allclose(found.low, np.quantile(differences, 0.1, axis=0))
    np.testing.assert_allclose(found.high, np.quantile(differences, 0.9, axis=0))
    again = compare(counts(first), counts(second), confidence=0.8, resamples=50, seed=10)
    assert np.any(again.low != found.low)


def test_order_of_images_does_not_matter():
    rng = np.random.default_rng(4)
    first, second = random_counts(rng, 6, 2), random_counts(rng, 6, 2)
    order = rng.permutation(6)
    expected = compare(counts(first), counts(second))
    found = compare(counts(first), counts(second[order], [str(i) for i in order]))
    np.testing.assert_array_equal(found.low, expected.low)


def test_classes_that_do_not_occur():
    """Class 0 is in one image of two, class 1 nowhere: draws without it are left out."""
    first = [[[5, 0], [10, 0], [5, 0]], [[0, 0], [0, 0], [0, 0]]]
    second = [[[9, 0], [10, 0], [9, 0]], [[0, 0], [0, 0], [0, 0]]]
    found = compare(counts(first), counts(second))
    np.testing.assert_allclose([found.low[0], found.high[0]], 0.4)
    np.testing.assert_allclose([found.low[2], found.high[2]], 0.4)  # The mean is over class 0.
    assert np.isnan([found.first[1], found.low[1], found.high[1]]).all()
    text = json.dumps(found.to_dict(["car", "pole"]), allow_nan=False)
    assert json.loads(text)["classes"]["pole"]["low"] is None
    lines = found.table(["car", "pole"]).splitlines()
    assert lines[1].split() == ["car", "50.00", "90.00", "+40.00", "[+40.00,", "+40.00]", "*"]
    assert lines[2].split() == ["pole", "-", "-", "-", "[-,", "-]"]
    assert lines[4].split()[:2] == ["mean", "IoU"]


def test_refuses():
    one, two = (counts(of_one_class([1] * n)) for n in (1, 2))
    with pytest.raises(UserError, match="Received: 1 and 2 images; only one has '1'"):
        compare(one, two)
    with pytest.raises(UserError, match="Received: 0 and 0 images"):
        compare(counts(np.zeros((0, 3, 1))), counts(np.zeros((0, 3, 1))))
    with pytest.raises(UserError, match="1 and 2 classes"):
        compare(one, counts(np.zeros((1, 3, 2))))
    for arguments in ({"confidence": 1.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match="Received"):
            compare(one, one, **arguments)


def test_several_runs_of_a_method_count_by_their_mean():
    """The score is the mean over runs, each draw of images the same for all of them."""
    rng = np.random.default_rng(4)
    first, second = ([random_counts(rng, 9, 2) for _ in range(2)] for _ in range(2))
    found = bootstrap(*([counts(p) for p in runs] for runs in (first, second)), resamples=300)
    for scores, runs in ((found.first, first), (found.second, second)):
        mean = np.mean([iou_of(pixels.sum(axis=0)) for pixels in runs], axis=0)
        np.testing.assert_allclose(scores, [*mean, mean.mean()])
    draws = np.random.default_rng(0).multinomial(9, np.full(9, 1 / 9), size=300)
    differences = []
    for times in draws:
        picked = np.repeat(np.arange(9), times)
        scores = [
            np.mean([iou_of(pixels[picked].sum(axis=0)).mean() for pixels in runs])
            for runs in (first, second)
        ]
        differences.append(scores[1] - scores[0])
    np.testing.assert_allclose(
        [found.low[-1], found.high[-1]], np.quantile(differences, [0.025, 0.975])
    )
