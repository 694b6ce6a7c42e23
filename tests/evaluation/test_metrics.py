import json
import time

import numpy as np
import pytest
import tensorflow as tf

from kseg.evaluation.metrics import Scores, confusion_matrices, confusion_matrix


def count_by_loop(labels, predictions, num_classes):
    matrix = np.zeros((num_classes, num_classes), "int64")
    for label, prediction in zip(labels.reshape(-1), predictions.reshape(-1), strict=True):
        if 0 <= label < num_classes:
            matrix[label, prediction] += 1
    return matrix


def random_pair(rng, shape, num_classes, dtype="int32"):
    """Labels of which some are ignored, and predictions that are often right."""
    labels = rng.integers(0, num_classes, shape)
    predictions = np.where(
        rng.random(shape) < 0.6, labels, rng.integers(0, num_classes, shape)
    ).astype("int32")
    labels[rng.random(shape) < 0.1] = 255
    return labels.astype(dtype), predictions


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
@pytest.mark.parametrize("num_classes", [2, 7])
def test_confusion_matrix_counts(dtype, num_classes):
    labels, predictions = random_pair(np.random.default_rng(0), (2, 9, 11), num_classes, dtype)
    labels[0, 0, :2] = num_classes, 254  # Above the classes: left out like 255.
    matrix = confusion_matrix(labels, predictions, num_classes)
    assert matrix.dtype == "int64"
    np.testing.assert_array_equal(matrix, count_by_loop(labels, predictions, num_classes))


def test_confusion_matrices_are_those_of_each_image():
    labels, predictions = random_pair(np.random.default_rng(3), (3, 4, 5), 4)
    labels[1] = 255
    matrices = confusion_matrices(labels, predictions, 4)
    expected = [count_by_loop(*pair, 4) for pair in zip(labels, predictions, strict=True)]
    np.testing.assert_array_equal(matrices, expected)
    assert not matrices[1].numpy().any()


def test_confusion_matrix_where_all_is_ignored():
    labels = np.full((1, 2, 3), 255, "uint8")
    assert not confusion_matrix(labels, np.zeros((1, 2, 3), "int32"), 4).numpy().any()


def test_confusion_matrix_of_negative_labels():
    assert confusion_matrix(np.array([-1, 0]), np.array([0, 0]), 2).numpy().sum() == 1


def test_confusion_matrix_takes_milliseconds():
    labels = tf.zeros((4, 360, 480), "int32")
    count = tf.function(lambda: confusion_matrix(labels, labels, 11))
    count()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        count()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05  # 2 ms on two quiet cores.


# Rows are the truth. Class 2 is predicted but has no pixels, class 3 does not occur at all.
MATRIX = np.array([[6, 2, 0, 0], [1, 9, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
NAMES = ["road", "sky", "a car", "pole"]


def test_scores_by_hand():
    scores = Scores(MATRIX)
    nan = np.nan
    np.testing.assert_allclose(scores.iou, [6 / 9, 9 / 14, 0, nan])
    np.testing.assert_allclose(scores.accuracy, [6 / 8, 9 / 12, nan, nan])
    np.testing.assert_allclose(scores.pixel_share, [8 / 20, 12 / 20, 0, 0])
    np.testing.assert_allclose(scores.mean_iou, (6 / 9 + 9 / 14) / 3)
    np.testing.assert_allclose(scores.mean_accuracy, 0.75)
    np.testing.assert_allclose(scores.pixel_accuracy, 15 / 20)
    np.testing.assert_allclose(scores.frequency_weighted_iou, 0.4 * 6 / 9 + 0.6 * 9 / 14)


def test_scores_of_nothing():
    scores = Scores(np.zeros((3, 3), "int64"))
    for name in ("mean_iou", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou"):
        assert np.isnan(getattr(scores, name)), name
    assert scores.to_dict(["a", "b", "c"])["mean_iou"] is None
    assert "nan" not in scores.table(["a", "b", "c"])


def test_scores_refuse_a_matrix_that_is_not_square():
    with pytest.raises(ValueError, match=r"must be square. Received shape: \(2, 3\)"):
        Scores(np.zeros((2, 3)))


def test_scores_as_json():
    found = json.loads(json.dumps(Scores(MATRIX).to_dict(NAMES), allow_nan=False))
    assert found["confusion_matrix"] == MATRIX.tolist()
    assert list(found["classes"]) == NAMES
    assert found["classes"]["a car"] == {"iou": 0.0, "accuracy": None, "pixel_share": 0.0}
    assert found["pixel_accuracy"] == 0.75


def test_table():
    lines = Scores(MATRIX).table(NAMES).splitlines()
    assert lines[0].split() == ["class", "IoU", "%", "accuracy", "%", "pixels", "%"]
    assert lines[1].split() == ["road", "66.67", "75.00", "40.00"]
    assert lines[3].split() == ["a", "car", "0.00", "-", "0.00"]
    assert lines[4].split() == ["pole", "-", "-", "0.00"]
    assert lines[6].split() == ["mean", "43.65", "75.00"]
    assert lines[7].split() == ["frequency", "weighted", "65.24"]
    assert lines[8].split() == ["all", "pixels", "75.00"]
    ends = {len(line) for line in lines[:5]}
    assert len(ends) == 1, "columns are aligned"


# A category of one class is that class; one that is nowhere has no score.
CATEGORIES = {"flat": [0], "scene": [0, 1], "thing": [2, 3], "nowhere": [3]}
GROUPS = {"all": [0, 1, 2, 3], "rare": [3], "common": [0, 1]}


def test_categories_and_groups_by_hand():
    scores = Scores(MATRIX)
    # Of 20 pixels of the scene 2 are taken for things, so no other class is taken for it.
    expected = {"flat": 6 / 9, "scene": 18 / 20, "thing": 0, "nowhere": np.nan}
    assert scores.category_iou(CATEGORIES) == pytest.approx(expected, nan_ok=True)
    expected = {"all": (6 / 9 + 9 / 14) / 3, "rare": np.nan, "common": (6 / 9 + 9 / 14) / 2}
    assert scores.group_iou(GROUPS) == pytest.approx(expected, nan_ok=True)


def test_category_is_as_if_its_classes_were_one():
    labels, predictions = random_pair(np.random.default_rng(4), (2, 9, 11), 4)
    scores = Scores(count_by_loop(labels, predictions, 4))
    merge = np.zeros(256, int)
    merge[[0, 2, 1, 3, 255]] = [0, 0, 1, 1, 255]
    merged = Scores(count_by_loop(merge[labels], merge[predictions], 2))
    found = scores.category_iou({"even": [0, 2], "odd": [1, 3]})
    np.testing.assert_allclose([*found.values()], merged.iou)


def test_further_scores_in_json_and_table():
    boundary = np.array([0.5, 0.25, 0, np.nan])
    more = {"categories": CATEGORIES, "groups": GROUPS, "boundary_iou": boundary}
    found = json.loads(json.dumps(Scores(MATRIX).to_dict(NAMES, **more), allow_nan=False))
    assert found["mean_boundary_iou"] == 0.25
    assert [row["boundary_iou"] for row in found["classes"].values()] == [0.5, 0.25, 0, None]
    assert found["categories"]["scene"] == 0.9
    assert found["mean_category_iou"] == pytest.approx((6 / 9 + 0.9 + 0) / 3)
    assert found["groups"]["rare"] is None
    lines = [line.split() for line in Scores(MATRIX).table(NAMES, **more).splitlines()]
    assert " ".join(lines[0]) == "class IoU % accuracy % pixels % boundary IoU %"
    assert lines[1] == ["road", "66.67", "75.00", "40.00", "50.00"]
    assert lines[6] == ["mean", "43.65", "75.00", "25.00"]
    assert lines[10:13] == [["category", "IoU", "%"], ["flat", "66.67"], ["scene", "90.00"]]
    assert ["mean", "of", "categories", "52.22"] in lines
    assert lines[-4:] == [
        ["group", "(mean)", "IoU", "%"],
        ["all", "43.65"],
        ["rare", "-"],
        ["common", "65.48"],
    ]


def test_table_needs_all_names():
    with pytest.raises(ValueError):
        Scores(MATRIX).table(NAMES[:3])
