import copy

import numpy as np
import pytest

from pipelines.datasets import folder, label_studio
from pipelines.errors import DataError
from tests.pipelines.datasets.tiny_annotations import (
    SIZE,
    expected,
    label_studio_task,
    write_image,
    write_json,
    write_label_studio,
)
from tests.pipelines.tiny_data import all_labels


def one(tmp_path, change=None, name="/data/upload/3/a.png", twice=False):
    write_image(tmp_path / "a.png")
    task = label_studio_task(name)
    if change:
        change(task)
    write_json(tmp_path / "export.json", [task, copy.deepcopy(task)] if twice else [task])
    return label_studio.find(tmp_path, split={"train": 1})


def labels_of(found):
    return all_labels(found)["train"]["a"]


def result(task):
    return task["annotations"][0]["result"][0]


@pytest.mark.parametrize(
    "name",
    [
        "/data/upload/3/a.png",
        "/data/upload/3/01ab23cd-a.png",
        "/data/local-files/?d=some/folder/a.png",
        "s3://bucket/x/a.png",
    ],
)
def test_names_of_images(tmp_path, name):
    found = one(tmp_path, name=name)
    assert found.taxonomy.class_names == ["background", "car", "tree"]
    np.testing.assert_array_equal(labels_of(found), expected())


def test_splits(tmp_path):
    write_label_studio(tmp_path)
    labels = all_labels(label_studio.find(tmp_path))
    np.testing.assert_array_equal(labels["val"]["val/b"], expected())
    with pytest.raises(DataError, match=r"\(export.json\), .*kseg prepare label_studio"):
        folder.find(tmp_path)


def test_brushes_and_boxes(tmp_path):
    opaque = [0, 0, 0, 0] * 16 + [0, 0, 0, 255] * (SIZE[0] * SIZE[1] - 16)  # All but a row.
    bits = f"{len(opaque):032b}" + f"{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    bits += "0" + "11" + f"{len(opaque) - 1:016b}" + "".join(f"{value:08b}" for value in opaque)
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]

    def brush(task):
        result(task).update(
            type="brushlabels", value={"format": "rle", "rle": rle, "brushlabels": ["car"]}
        )

    labels = np.ones(SIZE)
    labels[0] = 0
    labels[5:10, 6:14] = 2
    np.testing.assert_array_equal(labels_of(one(tmp_path, brush)), labels)

    def box(task):
        value = {"x": 12.5, "y": 25, "width": 25, "height": 50, "rotation": 0, "labels": ["car"]}
        result(task).update(type="labels", value=value)

    labels = np.zeros(SIZE)
    labels[3:9, 2:6] = 1
    labels[5:10, 6:14] = 2
    np.testing.assert_array_equal(labels_of(one(tmp_path, box)), labels)


def test_which_annotation_counts(tmp_path):
    def another(**values):
        def change(task):
            other = copy.deepcopy(task["annotations"][0])
            other["result"].pop()
            task["annotations"].insert(0, {**other, **values})

        return change

    assert 2 in labels_of(one(tmp_path, another(was_cancelled=True)))
    assert 2 not in labels_of(one(tmp_path, another(ground_truth=True)))
    message = "task 1: an image must have one annotation, and has 2. Mark one as ground truth"
    with pytest.raises(DataError, match=message):
        one(tmp_path, another())


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: result(t)["value"].update(points=[[1, 2], [3, 4]]),
            r"export.json, task 1: a polygon must have three points or more, and has 2 points",
        ),
        (lambda t: result(t).pop("original_width"), "a result's 'original_width' is missing"),
        (lambda t: result(t).update(original_width=3), "task 1: two sizes of one image"),
        (lambda t: result(t).update(image_rotation=90), "an image that was rotated in Label Stu"),
        (lambda t: t.update(data={"text": "no"}), "task 1: `data` must name an image"),
        (lambda t: t["data"].update(image="gone.png"), r"images that are missing: gone.png"),
    ],
)
def test_mistakes(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        one(tmp_path, change)


def test_tasks_twice_empty_or_bare(tmp_path):
    with pytest.raises(DataError, match=r"a.png must be annotated once. It is annotated twice in"):
        one(tmp_path, twice=True)
    with pytest.raises(DataError, match=r"must hold a JSON export of Label Studio"):
        one(tmp_path, lambda t: t.update(annotations=[]))
    (tmp_path / "export.json").write_text("")
    with pytest.raises(DataError, match=r"export.json must hold annotations, and is empty"):
        label_studio.find(tmp_path)


def test_regions_without_label_are_counted(tmp_path):
    found = one(tmp_path, lambda t: result(t)["value"].pop("polygonlabels"))
    assert found.notes[0] == "1 results of kind 'polygon without label' are not drawn"
    np.testing.assert_array_equal(labels_of(found), expected(car=0, tree=1))


def test_regions_whose_label_is_another_result(tmp_path):
    """`<Polygon>` with `<Labels>`: two results of one id, one without the label."""

    def change(task):
        first = result(task)
        first["id"] = "r1"
        labeled = copy.deepcopy(first)
        labeled["type"] = "labels"
        labeled["value"]["labels"] = labeled["value"].pop("polygonlabels")
        first["type"] = "polygon"
        del first["value"]["polygonlabels"]
        task["annotations"][0]["result"].insert(1, labeled)

    found = one(tmp_path, change)
    assert "without label" not in " ".join(found.notes)
    np.testing.assert_array_equal(labels_of(found), expected())


@pytest.mark.parametrize("names", [["car", "tree"], "car", {"car": 1}, [3], [""]])
def test_regions_have_one_label(tmp_path, names):
    with pytest.raises(DataError, match=r"task 1: a .* must (have one label|be a name)"):
        one(tmp_path, lambda t: result(t)["value"].update(polygonlabels=names))


def brush_of(rle):
    value = {"format": "rle", "rle": rle, "brushlabels": ["car"]}
    return lambda t: result(t).update(type="brushlabels", value=value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.update(data=["a.png"]), "task 1: `data` must name an image, not "),
        (lambda t: t["data"].update(image="http://[x/a.png"), "task 1: the address 'http://"),
        (lambda t: t["annotations"][0].update(result=5), "task 1: an annotation must have a `resu"),
        (lambda t: t["annotations"][0].update(result=[5]), "task 1: an annotation must have a `r"),
        (lambda t: t.update(annotations=5), "task 1: an annotation must have a `result`"),
        (lambda t: result(t).update(value=5), "task 1: an entry is missing or wrong"),
        (brush_of(10**9), "task 1: a brush must be a list of bytes, in `rle`"),
        (brush_of([300]), "task 1: an entry is missing or wrong"),
    ],
)
def test_damaged_tasks(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        one(tmp_path, change)


def test_a_brush_that_claims_to_be_huge(tmp_path):
    with pytest.raises(DataError, match="a brush must fill 12x16 pixels of 4 channels"):
        labels_of(one(tmp_path, brush_of([255] * 40)))
