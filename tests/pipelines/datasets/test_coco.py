import copy
import json

import numpy as np
import pytest

import pipelines
from pipelines.datasets import coco, folder
from pipelines.errors import DataError
from tests.pipelines.datasets.tiny_annotations import (
    CAR,
    SIZE,
    TREE,
    coco_content,
    expected,
    write_coco,
    write_image,
    write_json,
)
from tests.pipelines.tiny_data import all_labels, encode, pack


def labels_of(found):
    """The labels of the only image."""
    (split,) = all_labels(found).values()
    (labels,) = split.values()
    return labels


def one(tmp_path, content=None, **options):
    """Reads one image by one file."""
    write_image(tmp_path / "images/a.png")
    write_json(tmp_path / "notes.json", content or coco_content(["a.png"]))
    return coco.find(tmp_path, split={"train": 1}, **options)


def test_official_layout(tmp_path):
    write_coco(tmp_path / "set")
    pack(tmp_path / "set.zip", tmp_path / "set", "top/")
    for source in (tmp_path / "set", tmp_path / "set.zip"):
        found = coco.find(source)
        assert found.taxonomy.class_names == ["background", "car", "tree"]
        labels = all_labels(found)
        assert {split: list(images) for split, images in labels.items()} == {
            "train": ["train"],
            "val": ["val"],
        }
        np.testing.assert_array_equal(labels["train"]["train"], expected())


def test_equal_names_in_two_splits(tmp_path):
    """Roboflow: the file lies among the images; the first category names the set."""
    for number, split in enumerate(("train", "valid")):
        write_image(tmp_path / f"{split}/a.jpg", number)
        content = coco_content(["a.jpg"], [CAR])
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        write_json(tmp_path / f"{split}/_annotations.coco.json", content)
    found = coco.find(tmp_path)
    assert found.notes[0] == "No area has the class 'things', 'tree'"
    for split, file in (("train", "train/a.jpg"), ("val", "valid/a.jpg")):
        assert found.splits[split][0].image == tmp_path / file


def test_run_lengths_plain_compressed_and_crowd(tmp_path):
    # Column 2 from row 4: 28 without, 2 with, the rest without.
    plain = {"size": list(SIZE), "counts": [28, 2, 162]}
    content = coco_content(["a.png"], [plain, TREE])
    content["annotations"][0]["iscrowd"] = 1
    labels = np.zeros(SIZE)
    labels[4:6, 2] = 1
    labels[5:10, 6:14] = 2
    np.testing.assert_array_equal(labels_of(one(tmp_path, content)), labels)
    ignored = np.where(labels == 1, 255, labels)
    np.testing.assert_array_equal(labels_of(one(tmp_path, content, crowd="ignore")), ignored)
    dropped = np.where(labels == 1, 0, labels)
    np.testing.assert_array_equal(labels_of(one(tmp_path, content, crowd="drop")), dropped)
    # 28 = 11100, below 32 but with the sign's bit: "l0"; 2 = "2"; 162 - 28 = 134 = 4, 6: "V4".
    # The fourth number alone is a difference, so the third is 162 = 5, 2: "R5".
    content["annotations"][0]["segmentation"] = {"size": list(SIZE), "counts": "l02R5"}
    np.testing.assert_array_equal(labels_of(one(tmp_path, content)), labels)


def test_crowds_lie_below(tmp_path):
    everything = {"size": list(SIZE), "counts": [0, SIZE[0] * SIZE[1]]}
    content = coco_content(["a.png"], [CAR, everything])
    content["annotations"][1]["iscrowd"] = 1
    labels = labels_of(one(tmp_path, content))
    assert (labels[3:8, 2:9] == 1).all() and (labels == 1).sum() == 35
    assert (labels == 2).sum() == SIZE[0] * SIZE[1] - 35


def test_overlap_unlabeled_and_class_map(tmp_path):
    found = one(tmp_path, overlap="smaller")  # 35 pixels against 40.
    labels = expected()
    labels[3:8, 2:9] = 1
    np.testing.assert_array_equal(labels_of(found), labels)
    assert found.notes[-1].startswith("Where areas overlap, the area of fewer pixels is seen")
    found = one(tmp_path, unlabeled="ignore")
    assert found.taxonomy.class_names == ["car", "tree"]
    np.testing.assert_array_equal(labels_of(found), expected(255, 0, 1))
    found = one(tmp_path, unlabeled="tree")
    np.testing.assert_array_equal(labels_of(found), expected(1, 0, 1))
    found = one(tmp_path, class_map={"tree": "plant", "car": None})
    assert found.taxonomy.class_names == ["background", "plant"]
    np.testing.assert_array_equal(labels_of(found), expected(0, 0, 1))
    found = one(tmp_path, class_map={"tree": "ignore", "car": "tree"})
    np.testing.assert_array_equal(labels_of(found), expected(0, 1, 255))
    # A class that becomes that of the unlabeled cuts a hole.
    found = one(tmp_path, class_map={"tree": "background", "car": "car"})
    np.testing.assert_array_equal(labels_of(found), expected(0, 1, 0))


def test_images_without_areas_are_unlabeled(tmp_path):
    write_image(tmp_path / "images/b.png", 1)
    content = coco_content(["a.png"])
    content["images"].append({"id": 9, "file_name": "b.png", "height": 12, "width": 16})
    found = one(tmp_path, content)
    assert not all_labels(found)["train"]["b"].any()


def test_given_files(tmp_path):
    one(tmp_path)
    write_image(tmp_path / "images/b.png", 1)
    write_json(tmp_path / "more/b.json", coco_content(["b.png"]))
    found = coco.find(tmp_path, annotations={"train": "notes.json", "val": "more/b.json"})
    assert {split: [e.id for e in examples] for split, examples in found.splits.items()} == {
        "train": ["a"],
        "val": ["b"],
    }
    with pytest.raises(DataError, match=r"The file gone.json is neither there nor in"):
        coco.find(tmp_path, annotations={"train": "gone.json"})


def panoptic(tmp_path):
    """One image: the segment 300 (car) in the upper half, 7 (tree, crowd) in the lower one."""
    ids = np.zeros((*SIZE, 3), "uint8")
    ids[:6] = [300 % 256, 300 // 256, 0]
    ids[6:10] = [7, 0, 0]
    write_image(tmp_path / "train/a.png")
    path = tmp_path / "annotations/panoptic_train/a.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(encode(ids))
    content = coco_content(["a.png"], [])
    segments = [
        {"id": 300, "category_id": 3, "iscrowd": 0},
        {"id": 7, "category_id": 7, "iscrowd": 1},
    ]
    content["annotations"] = [{"image_id": 0, "file_name": "a.png", "segments_info": segments}]
    write_json(tmp_path / "annotations/panoptic_train.json", content)
    return content


def test_panoptic(tmp_path):
    content = panoptic(tmp_path)
    labels = np.zeros(SIZE)
    labels[:6], labels[6:10] = 1, 2
    found = coco.find(tmp_path)
    assert found.splits["train"][0].image == tmp_path / "train/a.png"
    np.testing.assert_array_equal(labels_of(found), labels)
    labels[6:10] = 255
    np.testing.assert_array_equal(labels_of(coco.find(tmp_path, crowd="ignore")), labels)
    content["annotations"][0]["segments_info"].pop()
    write_json(tmp_path / "annotations/panoptic_train.json", content)
    with pytest.raises(DataError, match="the picture holds the segment 7, which its JSON lacks"):
        labels_of(coco.find(tmp_path))
    (tmp_path / "annotations/panoptic_train/a.png").unlink()
    with pytest.raises(DataError, match=r"panoptic picture panoptic_train/a.png is missing"):
        coco.find(tmp_path)


def changed(change):
    content = copy.deepcopy(coco_content(["a.png"]))
    change(content)
    return content


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3, 4]]),
            "notes.json, annotation 1: a polygon must have three points or more, and has 2 points",
        ),
        (
            lambda c: c["annotations"][0].update(category_id=5),
            "notes.json, annotation 0: unknown class 5. The file has 3: car, 7: tree",
        ),
        (
            lambda c: c["annotations"][0].update(image_id=5),
            "annotation 0: there is no image 5",
        ),
        (
            lambda c: c["images"][0].update(file_name="gone.png"),
            "notes.json names images that are missing: gone.png. Put them into the source",
        ),
        (lambda c: c["images"].append(c["images"][0]), "must list an image once. Twice: id 0"),
        (
            lambda c: c["images"].append({**c["images"][0], "id": 8}),
            "a.png must be annotated once. It is annotated twice in .*notes.json. Remove one",
        ),
        (lambda c: c["images"][0].pop("height"), "a.png: an image must have height and width"),
        (lambda c: c.update(annotations=[]), "holds no areas in its annotations: 1 images"),
        (lambda c: c.pop("categories"), "must hold a JSON file with `images`, `annotations` and"),
        (lambda c: c["annotations"][0].pop("image_id"), "'image_id' is missing or wrong"),
        (
            lambda c: c["annotations"][0].update(segmentation="here"),
            "annotation 0: `segmentation` must be polygons or run lengths",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [3, 3]}),
            "annotation 0: run lengths must have `counts` and `size`",
        ),
        (lambda c: c["categories"].append(c["categories"][0]), "a category once. Twice: 3"),
    ],
)
def test_mistakes(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        one(tmp_path, changed(change))


def test_mistakes_in_files(tmp_path):
    one(tmp_path)
    write_json(tmp_path / "second.json", coco_content(["a.png"]))
    with pytest.raises(DataError, match=r"is annotated in .*notes.json and in .*second.json"):
        coco.find(tmp_path, split={"train": 1})
    (tmp_path / "second.json").write_text("")
    with pytest.raises(DataError, match=r"second.json must hold annotations, and is empty"):
        coco.find(tmp_path, annotations={"train": "second.json"})
    with pytest.raises(DataError, match=r"is not divided into splits. Give ratios"):
        coco.find(tmp_path)
    with pytest.raises(DataError, match="`overlap` must be one of later, smaller"):
        one(tmp_path, overlap="first")
    with pytest.raises(DataError, match="`crowd` must be one of draw, ignore, drop"):
        one(tmp_path, crowd="all")


def test_size_of_the_image(tmp_path):
    found = one(tmp_path, changed(lambda c: c["images"][0].update(height=13)))
    with pytest.raises(DataError, match=r"notes.json: a label must have the size of its image"):
        labels_of(found)


def test_records(tmp_path):
    write_coco(tmp_path / "set")
    (tmp_path / "map.json").write_text('{"tree": "plant", "*": null}')
    arguments = {"class_map": tmp_path / "map.json", "overlap": "later", "progress": False}
    manifest = pipelines.prepare("coco", tmp_path / "set", tmp_path / "out", **arguments)
    assert manifest.class_names == ["background", "plant"]
    assert manifest.options["class_map"] == {"tree": "plant", "*": None}
    assert manifest.splits["train"].pixels == [12 * 16 - 40, 40, 0]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["notes"][-1].startswith("Where areas overlap, the later area is seen")


def test_the_folder_importer_names_the_command(tmp_path):
    write_coco(tmp_path)
    message = r"holds annotations \(annotations/instances_train2017.json\), .*: kseg prepare coco "
    with pytest.raises(DataError, match=message):
        folder.find(tmp_path)


@pytest.mark.parametrize(
    "first, encoding",
    [
        ({"version": 1}, "utf-8"),
        ({}, "utf-8-sig"),
        ({}, "utf-16"),
        ({"history": "x" * 70_000}, "utf-8"),
    ],
    ids=["another first key", "UTF-8 with BOM", "UTF-16", "lists after 64 KB"],
)
def test_files_are_found_by_their_lists(tmp_path, first, encoding):
    write_coco(tmp_path)
    content = {**first, **coco_content(["val.jpg"])}
    file = tmp_path / "annotations/instances_val2017.json"
    file.write_text(json.dumps(content), encoding=encoding)
    write_json(tmp_path / "annotations/other.json", {"images": 3})
    write_json(tmp_path / "annotations/list.json", ["images"])
    labels = all_labels(coco.find(tmp_path))
    np.testing.assert_array_equal(labels["val"]["val"], expected())


def test_files_that_are_left_out_are_noted(tmp_path):
    write_coco(tmp_path)
    captions = coco_content(["val.jpg"])
    del captions["categories"]
    write_json(tmp_path / "annotations/captions_val2017.json", captions)
    (tmp_path / "annotations/empty.json").write_text("")
    assert coco.find(tmp_path).notes[:2] == [
        "annotations/empty.json is empty or no JSON and is left out",
        "annotations/captions_val2017.json has no list `categories` and is left out",
    ]


def write_names(folder, names, files, annotation="notes.json"):
    """A COCO file that lists `names`, and the images `files`."""
    for number, name in enumerate(files):
        write_image(folder / name, number)
    write_json(folder / annotation, coco_content(names))


@pytest.mark.parametrize(
    "names, files",
    [
        (["a/0.png", "b/0.png"], ["a/0.png"]),
        (["b/0.png", "a/0.png"], ["a/0.png"]),
        (["a/0.png", "b/0.png"], ["a/0.png", "a/1.png"]),
        (["p/x/0.png", "q/x/0.png"], ["p/x/0.png"]),
        (["a/0.png", "b/0.PNG"], ["a/0.png"]),
        (["a/0.png", "b/0.png"], ["images/a/0.png"]),
    ],
)
def test_an_image_of_another_folder_is_not_taken(tmp_path, names, files):
    write_names(tmp_path, names, files)
    lacking = next(name for name in names if name[0] in "bq")
    with pytest.raises(DataError, match=f"names images that are missing: {lacking}"):
        coco.find(tmp_path, split={"train": 1})


@pytest.mark.parametrize(
    "names, files",
    [
        (["elsewhere/0.png"], ["images/0.png"]),  # The only one of that name.
        (["old/a/0.png", "old/b/0.png"], ["new/a/0.png", "new/b/0.png"]),
        (["./0.png", "../images/1.png"], ["images/0.png", "images/1.png"]),
        (["0.PNG", "Images\\1.Png"], ["images/0.png", "images/1.png"]),
        (["A/0.PNG", "B/0.PNG"], ["a/0.png", "b/0.png"]),
    ],
)
def test_other_folders_are_allowed_where_names_are_unique(tmp_path, names, files):
    write_names(tmp_path, names, files)
    (examples,) = coco.find(tmp_path, split={"train": 1}).splits.values()
    assert {example.image for example in examples} == {tmp_path / name for name in files}


def test_an_image_of_another_annotation_file_is_not_taken(tmp_path):
    write_names(tmp_path, ["p/0.png"], ["p/0.png"], "one.json")
    write_names(tmp_path, ["q/0.png"], [], "two.json")
    with pytest.raises(DataError, match=r"two.json names images that are missing: q/0.png"):
        coco.find(tmp_path, split={"train": 1})


def test_a_single_split_can_be_divided(tmp_path):
    names = [f"{i}.png" for i in range(4)]
    write_names(tmp_path / "train", names, names, "train.json")
    found = coco.find(tmp_path, split={"train": 0.75, "val": 0.25})
    assert {name: len(examples) for name, examples in found.splits.items()} == {
        "train": 3,
        "val": 1,
    }
    assert list(coco.find(tmp_path).splits) == ["train"]
    write_names(tmp_path / "val", names, names, "val.json")
    with pytest.raises(DataError, match=r"is divided already: train, val. Leave out `split`"):
        coco.find(tmp_path, split={"train": 0.75, "val": 0.25})


@pytest.mark.parametrize("unpacked", ["source", "source/set"])
def test_an_archive_beside_its_content(tmp_path, unpacked):
    write_coco(tmp_path / unpacked)
    pack(tmp_path / "set.zip", tmp_path / unpacked)
    (tmp_path / "set.zip").rename(tmp_path / "source/set.zip")
    found = coco.find(tmp_path / "source")
    assert found.splits["train"][0].image == tmp_path / unpacked / "train2017/train.jpg"
    # Also if archive and folder are named one by one.
    found = coco.find([tmp_path / "source/set.zip", tmp_path / unpacked])
    assert found.splits["val"][0].label.parent == tmp_path / unpacked / "annotations"


def test_an_archive_that_holds_more_than_the_folder(tmp_path):
    write_coco(tmp_path / "set")
    pack(tmp_path / "set.zip", tmp_path / "set")
    (tmp_path / "set/annotations/instances_val2017.json").unlink()
    (tmp_path / "set.zip").rename(tmp_path / "set/set.zip")
    assert list(coco.find(tmp_path / "set").splits) == ["train", "val"]


def test_crowds_lie_below_larger_areas(tmp_path):
    """By `smaller` too: 35 pixels of a crowd, in an area of all 192."""
    everything = [0, 0, SIZE[1], 0, *SIZE[::-1], 0, SIZE[0]]
    content = coco_content(["a.png"], [everything, CAR])
    content["annotations"][1]["iscrowd"] = 1
    assert (labels_of(one(tmp_path, content, overlap="smaller")) == 1).all()
    # A class that is dropped does not count among those below.
    content["categories"].append({"id": 9, "name": "boat"})
    crowd = {**content["annotations"][1], "id": 7, "category_id": 9}
    content["annotations"].append(crowd)
    mapped = {"overlap": "smaller", "class_map": {"boat": None, "*": "*"}}
    assert (labels_of(one(tmp_path, content, **mapped)) == 1).all()


@pytest.mark.parametrize("empty", [[], [[]], [[], []], None])
def test_annotations_without_points_are_counted(tmp_path, empty):
    content = changed(lambda c: c["annotations"][0].update(segmentation=empty))
    found = one(tmp_path, content)
    assert found.notes[0] == "1 annotations have a box and no area: they are not drawn"
    np.testing.assert_array_equal(labels_of(found), expected(car=0))
    content["annotations"][1]["segmentation"] = [[], TREE]
    np.testing.assert_array_equal(labels_of(one(tmp_path, content)), expected(car=0))


def test_a_degenerate_polygon_has_a_way_out(tmp_path):
    content = changed(lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3, 4]]))
    with pytest.raises(DataError, match=r"and has 2 points. Correct the annotation, or remove it"):
        one(tmp_path, content)


def test_equal_names_in_one_split_are_named(tmp_path):
    for place in ("p", "q"):
        write_names(tmp_path / "train" / place, ["0.png"], ["0.png"], "_annotations.json")
    message = r"Used twice: 0, of .*train/p/0.png and of .*train/q/0.png. Rename one"
    with pytest.raises(DataError, match=message):
        coco.find(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["categories"][0].update(name=5), "category's `name` must be a name, not 5"),
        (lambda c: c["categories"][0].update(name=[]), "category's `name` must be a name, not li"),
        (lambda c: c["images"][0].update(height=float("inf")), "must have height and width, not i"),
        (lambda c: c["images"][0].update(width=16.7), "must have height and width, not 12, 16.7"),
        (lambda c: c["images"][0].update(width=True), "must have height and width, not 12, True"),
        (
            lambda c: c["annotations"][0].update(segmentation=[[10**400] * 6]),
            "annotation 0: a polygon must be a list of numbers",
        ),
        (
            lambda c: c["annotations"][0].update(
                segmentation={"size": list(SIZE), "counts": [1.5, 190.5]}
            ),
            "annotation 0: run lengths must have `counts` and `size`",
        ),
    ],
)
def test_damaged_values(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        one(tmp_path, changed(change))


def test_a_stated_size_beyond_all_memory(tmp_path):
    found = one(tmp_path, changed(lambda c: c["images"][0].update(height=10**12)))
    with pytest.raises(
        DataError, match=r"the size of its image, \(12, 16\) .* \(1000000000000, 16"
    ):
        labels_of(found)


def test_a_panoptic_picture_is_not_the_image(tmp_path):
    """Images at the top of the source, of the same ending as the missing pictures."""
    panoptic(tmp_path)
    (tmp_path / "annotations/panoptic_train/a.png").unlink()
    (tmp_path / "train/a.png").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"panoptic picture panoptic_train/a.png is missing"):
        coco.find(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "train"}, "`split` must give each split a ratio or a list file"),
        ({"split": {"train": None}}, "`split` must give each split a ratio or a list file"),
        ({"split": {"train": float("nan")}}, "`split` must give each split a ratio or a list f"),
        ({"annotations": "x.json"}, "`annotations` must give the file of each split"),
        ({"annotations": {"train": 3}}, "`annotations` must give the file of each split"),
        ({"unlabeled": None}, "`unlabeled` must be a name, not None"),
        ({"class_map": 3}, "`class_map` must be a file, or a dict of names. Received: 3"),
    ],
)
def test_options_of_another_type(tmp_path, options, message):
    write_image(tmp_path / "images/a.png")
    write_json(tmp_path / "notes.json", coco_content(["a.png"]))
    with pytest.raises(DataError, match=message):
        coco.find(tmp_path, **options)
    with pytest.raises(DataError, match=r"has no option `foo`. Its own options: `annotations`, "):
        pipelines.prepare("coco", tmp_path, tmp_path / "out", foo=1, progress=False)


def test_the_command_names_each_source(tmp_path):
    write_coco(tmp_path / "a")
    (tmp_path / "b").mkdir()
    message = r"kseg prepare coco `source=\[\"\S+/a\", \"\S+/b\"\]`"
    with pytest.raises(DataError, match=message):
        folder.find([tmp_path / "a", tmp_path / "b"])
