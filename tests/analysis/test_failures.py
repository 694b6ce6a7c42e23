import numpy as np
import pytest

from kseg.analysis.failures import (
    ComparisonCollector,
    ConfusedPair,
    FailureCollector,
    confused_pairs,
    image_mean_iou,
)
from kseg.analysis.observation import ObservedBatch


def seen(ids, labels, predictions):
    labels, predictions = np.array(labels, "uint8"), np.array(predictions, "uint8")
    images = np.zeros((*labels.shape, 3), "uint8")
    return ObservedBatch(ids, images, images, labels, predictions, None, None)


LABELS = [[[0, 0, 1, 1]], [[0, 0, 1, 255]], [[255] * 4], [[1, 1, 1, 1]]]


def test_mean_iou_of_an_image_by_hand():
    # Class 0: 1 of 2, class 1: 2 of 3; class 2 is in neither.
    result = image_mean_iou(np.array([0, 0, 1, 1, 255]), np.array([0, 1, 1, 1, 2]), 3)
    assert result == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert np.isnan(image_mean_iou(np.array([255]), np.array([0]), 3))


def test_worst_images_first():
    # Mean IoU 1, then (1 + 0 + 0) / 3, no labeled pixel, and (1 / 2 + 0) / 2.
    predictions = [[[0, 0, 1, 1]], [[0, 0, 2, 2]], [[0] * 4], [[1, 1, 0, 0]]]
    whole, parts = FailureCollector(3, count=2), FailureCollector(3, count=2)
    whole.add(seen("abcd", LABELS, predictions))
    for i, name in enumerate("abcd"):
        parts.add(seen([name], [LABELS[i]], [predictions[i]]))
    for collector in (whole, parts):
        assert collector.mean_iou == pytest.approx({"a": 1, "b": 1 / 3, "d": 1 / 4})
        assert [example.id for example in collector.worst()] == ["d", "b"]
        np.testing.assert_array_equal(collector.matrix, [[4, 0, 0], [2, 4, 1], [0, 0, 0]])
    example = whole.worst()[0]
    np.testing.assert_array_equal(example.truth, LABELS[3])
    np.testing.assert_array_equal(example.predictions, [predictions[3]])
    assert example.mean_iou == [1 / 4]


def test_comparison_keeps_the_greatest_gains_and_losses():
    labels = [[[0, 0, 0, 0]]] * 5 + [[[255] * 4]]
    # Wrong pixels are class 1, so that k correct pixels yield a mean IoU of k / 8.
    rights = [(4, 4), (1, 3), (3, 0), (2, 3), (2, 1), (0, 0)]

    def predictions(run):
        return [[[0] * right[run] + [1] * (4 - right[run])] for right in rights]

    collector = ComparisonCollector(2, count=3)
    views = [seen("abcdef", labels, predictions(run)) for run in (0, 1)]
    collector.add(views)
    assert [example.id for example in collector.examples()] == ["b", "d", "c"]
    assert collector.mean_iou["b"] == [1 / 8, 3 / 8]
    assert "f" not in collector.mean_iou
    assert len(collector.examples()[0].predictions) == 2


def test_confused_pairs_by_hand():
    matrix = np.array([[8, 2, 0], [0, 0, 0], [30, 10, 60]])
    assert confused_pairs(matrix, 2) == [ConfusedPair(2, 0, 30, 0.3), ConfusedPair(0, 1, 2, 0.2)]
    assert len(confused_pairs(matrix, 10)) == 3
    assert confused_pairs(np.eye(2, dtype=int), 10) == []
