import importlib

import numpy as np
import pytest

from kseg.errors import UserError
from kseg.evaluation.cityscapes import official
from kseg.evaluation.cityscapes.submission import LabelImages
from kseg.evaluation.metrics import Scores
from tests.evaluation.cityscapes.fake_cityscapes import NAMES, REGULAR_IDS, write_annotation

FRAMES = ["lindau_000000_000019", "ulm_000001_000019"]
AVERAGE_CAR = 12794.0202738185  # Pixels; a constant of the official script.


def example():
    """Two images of 8 x 10: two cars in the first one, a single one in the second."""
    truth = np.zeros((2, 8, 10), int)
    truth[:, :3] = 1
    instances = np.zeros_like(truth)
    for image, rows, columns, number in (
        (0, slice(3, 7), slice(0, 5), 1),
        (0, slice(4, 6), slice(7, 9), 2),
        (1, slice(5, 8), slice(2, 6), 1),
    ):
        truth[image, rows, columns], instances[image, rows, columns] = 2, number
    truth[0, 7, 9] = 255
    predictions = truth.copy()
    predictions[0, 3, 0:5] = 1  # 5 of the 20 pixels of the first car are missed,
    predictions[0, 4, 7] = 0  # 1 of the 4 of the second,
    predictions[1, 0, :7] = 2  # and 7 pixels are no car.
    predictions[0, 7, 9] = 2  # Ignored: no mistake.
    return truth, instances, predictions


def write(tmp_path):
    truth, instances, predictions = example()
    for arrays in zip(FRAMES, truth, instances, strict=True):
        write_annotation(tmp_path / "gtFine", *arrays)
    images = LabelImages(tmp_path / "predictions", REGULAR_IDS)
    images(FRAMES, truth, predictions)
    return images.files


def test_official_scores_by_hand(tmp_path):
    files = write(tmp_path)
    truth = official.find_ground_truth(tmp_path, FRAMES)
    found = official.official_scores([files[frame] for frame in FRAMES], truth)

    labels, _, predictions = example()
    matrix = np.zeros((3, 3), int)
    known = labels < 3
    np.add.at(matrix, (labels[known], predictions[known]), 1)
    scores = Scores(matrix)
    for name, iou in zip(NAMES, scores.iou, strict=True):
        assert found["classes"][name]["iou"] == pytest.approx(iou)
    assert found["mean_iou"] == pytest.approx(scores.mean_iou)

    # Each pixel of a car weighs average / size of that car; pixels that are no car weigh 1.
    weights = [AVERAGE_CAR / size for size in (20, 4, 12)]
    hits = np.dot(weights, (15, 3, 12))
    expected = hits / (hits + np.dot(weights, (5, 1, 0)) + 7)
    assert found["classes"]["car"]["iiou"] == pytest.approx(expected)
    assert found["mean_iiou"] == pytest.approx(expected)  # No other class here has instances.
    assert found["classes"]["road"]["iiou"] is None
    assert found["classes"]["bus"]["iou"] is None
    # One class each: categories are scored as the classes.
    names = ("flat", "sky", "vehicle")
    assert [found["categories"][n]["iou"] for n in names] == pytest.approx([*scores.iou])
    assert found["categories"]["vehicle"]["iiou"] == pytest.approx(expected)
    assert (len(found["classes"]), len(found["categories"])) == (19, 7)

    lines = [line.split() for line in official.table(found).splitlines()]
    assert ["car", f"{100 * scores.iou[2]:.2f}", f"{100 * expected:.2f}"] in lines
    assert ["road", f"{100 * scores.iou[0]:.2f}", "-"] in lines


def test_ground_truth_that_is_missing(tmp_path):
    write_annotation(tmp_path, FRAMES[0], np.zeros((2, 2), int))
    with pytest.raises(UserError, match=f"such as {FRAMES[1]}_gtFine_labelIds.png: 1 of 2 are"):
        official.find_ground_truth(tmp_path, FRAMES)
    with pytest.raises(UserError, match=f"There is no .*{FRAMES[0]}_gtFine_instanceIds.png"):
        official.find_ground_truth(tmp_path, FRAMES[:1])


def test_ground_truth_of_another_size(tmp_path):
    files = write(tmp_path)
    other = np.zeros((9, 10), int)
    write_annotation(tmp_path / "gtFine", FRAMES[0], other, other)
    truth = official.find_ground_truth(tmp_path, FRAMES)
    with pytest.raises(UserError, match="cityscapesscripts stopped: ERROR: Image heights"):
        official.official_scores([files[frame] for frame in FRAMES], truth)


def test_package_that_is_not_installed(monkeypatch):
    def missing(name, *arguments):
        raise ModuleNotFoundError(f"No module named {name.split('.')[0]!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'kseg\[cityscapes\]'"):
        official.check_installed()
