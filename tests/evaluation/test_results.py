import csv
import json

import numpy as np
import pytest

from kseg.errors import UserError
from kseg.evaluation import results
from kseg.evaluation.image_counts import ImageCounts, iou_of, mean_over_classes
from kseg.evaluation.metrics import Scores

MATRIX = np.array([[6, 2], [1, 9]])
COUNTS = ImageCounts(["a", "ü"], np.arange(12).reshape(2, 3, 2))


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_round_trip(tmp_path):
    found = Scores(MATRIX).to_dict(["road", 'a "car", red'])
    path = tmp_path / "new" / "val.json"
    results.write(path, found, COUNTS)
    again, counts, has_checksum = results.read(path)
    assert (again, has_checksum) == (found, True)
    assert counts.ids == COUNTS.ids
    np.testing.assert_array_equal(counts.pixels, COUNTS.pixels)
    assert sorted(file.name for file in path.parent.iterdir()) == ["val.csv", "val.json", "val.npz"]


def test_table(tmp_path):
    boundary = np.array([0.5, np.nan])
    more = {"categories": {"all": [0, 1]}, "groups": {"rare": [1]}, "boundary_iou": boundary}
    found = Scores(MATRIX).to_dict(["road", 'a "car", red'], **more)
    row = {"iou": 0.5, "iiou": 0.25}
    found["cityscapes"] = {"classes": {"road": row}, "categories": {}, "mean_iiou": 0.125}
    results.write(tmp_path / "val.json", found, COUNTS)
    rows = table(tmp_path / "val.csv")
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("class", "road"),
        ("class", 'a "car", red'),
        ("category", "all"),
        ("group", "rare"),
        ("mean", "classes"),
        ("mean", "categories"),
        ("mean", "frequency weighted"),
        ("mean", "all pixels"),
    ]
    ious = [float(row["iou"]) for row in rows[:6]]
    np.testing.assert_allclose(ious, [6 / 9, 9 / 12, 1, 9 / 12, (6 / 9 + 9 / 12) / 2, 1])
    assert [float(row["accuracy"]) for row in rows[:2]] == [6 / 8, 9 / 10]
    assert [row["boundary_iou"] for row in rows[:3]] == ["0.5", "", ""]
    assert (rows[0]["iiou"], rows[1]["iiou"], rows[4]["iiou"]) == ("0.25", "", "0.125")
    assert float(rows[-1]["accuracy"]) == 15 / 18


def test_refuses(tmp_path):
    path = tmp_path / "val.json"
    with pytest.raises(UserError, match=r"There is no .*val\.json\. Evaluate with"):
        results.read(path)
    huge = '{"classes": [], "confusion_matrix": [[1' + "0" * 400 + "]]}"
    for text in ("{", "[]", "{}", "[" * 100_000, huge):
        path.write_text(text)
        with pytest.raises(UserError, match="holds no scores"):
            results.read(path)
    path.write_text(json.dumps(Scores(MATRIX).to_dict(["a", "b"])))
    with pytest.raises(UserError, match=r"There is no .*val\.npz"):
        results.read(path)
    (tmp_path / "val.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"val\.npz is damaged"):
        results.read(path)


def test_files_of_two_evaluations_are_refused(tmp_path):
    """Files of an evaluation that was killed between them, or copies of one of them."""
    found = Scores(MATRIX).to_dict(["a", "b"])
    results.write(tmp_path / "val.json", found, COUNTS)
    results.write(tmp_path / "other.json", found, ImageCounts(["a"], COUNTS.pixels[:1]))
    (tmp_path / "other.npz").replace(tmp_path / "val.npz")
    with pytest.raises(UserError, match=r"val\.json and val\.npz must be of one evaluation"):
        results.read(tmp_path / "val.json")


def test_results_of_earlier_versions_have_no_checksum(tmp_path):
    # Two images of MATRIX in all: hits, pixels of the truth (rows), of the prediction (columns).
    pixels = [[[6, 4], [6, 6], [6, 6]], [[0, 5], [2, 4], [1, 5]]]
    path = tmp_path / "val.json"
    results.write(path, Scores(MATRIX).to_dict(["a", "b"]), ImageCounts(["x", "y"], pixels))
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "image_counts_sha256": "0" * 64}))
    with pytest.raises(UserError, match="must be of one evaluation"):
        results.read(path)
    del values["image_counts_sha256"]
    path.write_text(json.dumps(values))
    found, counts, has_checksum = results.read(path)
    assert (found, has_checksum) == (values, False)
    np.testing.assert_array_equal(counts.pixels, pixels)
    ImageCounts(["x", "y"], np.array(pixels)[:, :, ::-1]).save(tmp_path / "val.npz")
    with pytest.raises(UserError, match="must be of one evaluation"):
        results.read(path)


def test_cells_are_no_formulas(tmp_path):
    names = ["=1+2", "+x", "-x", "@x", "a=b", "\tx"]
    results.write(tmp_path / "val.json", Scores(np.eye(6, dtype=int)).to_dict(names), COUNTS)
    cells = [row["name"] for row in table(tmp_path / "val.csv") if row["kind"] == "class"]
    assert cells == ["'=1+2", "'+x", "'-x", "'@x", "a=b", "'\tx"]
    assert list(results.read(tmp_path / "val.json")[0]["classes"]) == names


def test_iou_of_counts():
    # Class 1 is predicted, class 2 does not occur.
    pixels = [[[3, 0, 0], [4, 0, 0], [5, 2, 0]]] * 2
    iou = iou_of(pixels)
    np.testing.assert_allclose(iou, [[3 / 6, 0, np.nan]] * 2)
    np.testing.assert_allclose(mean_over_classes(iou), [0.25] * 2)
    assert np.isnan(mean_over_classes(np.full((2, 3), np.nan))).all()
