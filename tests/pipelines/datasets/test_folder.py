import json

import numpy as np
import pytest

from pipelines import prepare
from pipelines.datasets import folder
from pipelines.errors import DataError
from tests.pipelines.tiny_data import all_labels, encode, pack, write_pairs

GRASS, VOID, SKY = (10, 200, 30), (0, 0, 0), (80, 140, 220)
CLASSES = [
    {"name": "grass", "color": GRASS, "value": 3},
    {"name": "void", "color": VOID, "value": 0, "ignore": True},
    {"name": "sky", "color": SKY, "value": 9},
]
VALUES = np.uint8([[3, 9, 0, 255]])
LABELS = [[0, 1, 255, 255]]
COLORS = np.uint8([[GRASS, SKY, VOID, VOID]])


def write_source(path, names, masks=VALUES, classes=CLASSES):
    """Writes images and masks; `names` are pairs of paths."""
    write_pairs(path, dict.fromkeys(names, masks))
    if classes:
        (path / "classes.json").write_text(json.dumps(classes))
    return path


def flat(count, images="images", labels="labels"):
    return [(f"{images}/{i:02d}.jpg", f"{labels}/{i:02d}.png") for i in range(count)]


def ids(found):
    return {split: [e.id for e in examples] for split, examples in found.splits.items()}


def check(found, expected):
    assert ids(found) == expected
    assert found.taxonomy.class_names == ["grass", "sky"]
    assert found.taxonomy.palette == [list(GRASS), list(SKY)]
    for arrays in all_labels(found).values():
        for array in arrays.values():
            np.testing.assert_array_equal(array, LABELS)


@pytest.mark.parametrize("masks", [VALUES, COLORS, np.dstack([COLORS, COLORS[..., :1]])])
def test_index_and_colour_masks(tmp_path, masks):
    write_source(tmp_path, [("train/images/a.png", "train/labels/a.png")], masks)
    check(folder.find(tmp_path), {"train": ["a"]})


@pytest.mark.parametrize(
    "train, val",
    [
        (("images/train/a.jpg", "labels/train/a.png"), ("images/val/b.jpg", "labels/val/b.png")),
        (("Images/Training/a.jpg", "masks/train/a.png"), ("Images/valid/b.jpg", "masks/val/b.png")),
        (("train/image/a.jpg", "train/mask/a.png"), ("val/imgs/b.jpg", "val/gt/b.png")),
        (("train/a.jpg", "trainannot/a.png"), ("val/b.jpg", "valannot/b.png")),
        (("train/a.png", "train_labels/a_L.png"), ("val/b.png", "val_labels/b_L.png")),
        (("x/images/train/a.bmp", "x/gt/train/a.bmp"), ("x/images/val/b.tif", "x/gt/val/b.tif")),
    ],
)  # fmt: skip
def test_divided_by_folders(tmp_path, train, val):
    write_source(tmp_path / "set", [train, val])
    check(folder.find(tmp_path / "set"), {"train": ["a"], "val": ["b"]})
    pack(tmp_path / "set.zip", tmp_path / "set", "top/")
    check(folder.find(tmp_path / "set.zip"), {"train": ["a"], "val": ["b"]})


def test_ratios(tmp_path):
    source = write_source(tmp_path, flat(10))
    ratios = {"train": 0.7, "val": 0.2, "test": 0.1}
    found = folder.find(source, split=ratios)
    assert {split: len(names) for split, names in ids(found).items()} == {
        "train": 7,
        "val": 2,
        "test": 1,
    }
    assert sorted(sum(ids(found).values(), [])) == [f"{i:02d}" for i in range(10)]  # noqa: RUF017
    check(found, ids(folder.find(source, split=ratios)))
    assert ids(found) != ids(folder.find(source, split=ratios, seed=1))


def test_ratios_move_few_images_when_one_is_added(tmp_path):
    ratios = {"train": 0.75, "val": 0.25}
    before = ids(folder.find(write_source(tmp_path / "a", flat(20)), split=ratios))
    after = ids(folder.find(write_source(tmp_path / "b", flat(21)), split=ratios))
    # The cut may move by one place, and the new image may come in before it.
    assert len(set(before["val"]) ^ set(after["val"])) <= 2


@pytest.mark.parametrize("where", ["", "splits/", "ImageSets/Segmentation/"])
@pytest.mark.parametrize("form", ["{}", "{}.jpg", "/SegNet/images/{}.jpg /SegNet/labels/{}.png"])
def test_lists_are_found(tmp_path, where, form):
    source = write_source(tmp_path, flat(4))
    for split, numbers in (("train", (0, 2)), ("val", (3,))):
        path = source / f"{where}{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(form.replace("{}", f"{i:02d}") for i in numbers) + "\n\n")
    check(folder.find(source), {"train": ["00", "02"], "val": ["03"]})


def test_given_lists(tmp_path):
    names = [(f"images/{n}.jpg", f"labels/{n}.png") for n in ("north/a", "south/a", "south/b")]
    source = write_source(tmp_path / "set", names)
    outside = tmp_path / "mine.txt"
    outside.write_text("north/a\nb.jpg\n")
    (source / "other.txt").write_text("south/a.jpg, anything\n")
    split = {"train": str(outside), "holdout": "other.txt"}
    check(
        folder.find(source, split=split), {"train": ["north/a", "south/b"], "holdout": ["south/a"]}
    )
    outside.write_text("a\n")
    with pytest.raises(DataError, match=r"mine.txt: 'a' could be any of north/a, south/a"):
        folder.find(source, split=split)
    outside.write_text("c\n")
    with pytest.raises(DataError, match=r"mine.txt names what has no image file: c"):
        folder.find(source, split=split)
    with pytest.raises(DataError, match=r"The list file gone.txt is neither there nor in"):
        folder.find(source, split={"train": "gone.txt"})


def test_given_folders_and_classes(tmp_path):
    source = write_source(tmp_path / "set", flat(2, "pictures/all", "truth"), classes=None)
    (tmp_path / "mine.csv").write_text(
        "name,r,g,b,value,ignore\ngrass,10,200,30,3,\nvoid,0,0,0,0,1\nsky,80,140,220,9,\n"
    )
    arguments = {"images": "pictures/all", "labels": "truth", "split": {"train": 1.0}}
    found = folder.find(source, classes=tmp_path / "mine.csv", **arguments)
    check(found, {"train": ["00", "01"]})
    with pytest.raises(DataError, match="with nothing/"):
        folder.find(source, classes=tmp_path / "mine.csv", images="nothing", labels="truth")
    with pytest.raises(DataError, match="Give both `images` and `labels`, or neither"):
        folder.find(source, images="pictures/all")
    with pytest.raises(DataError, match=r"The class table .*gone cannot be read"):
        folder.find(source, classes=tmp_path / "gone")
    with pytest.raises(DataError, match=r"A class table is needed: classes.json, classes.csv"):
        folder.find(source)


def test_unknown_values_and_colours(tmp_path):
    index = write_source(tmp_path / "index", flat(1), np.uint8([[3, 9, 7, 200]]))
    colors = write_source(tmp_path / "colors", flat(1), np.uint8([[GRASS, SKY, (1, 2, 3), VOID]]))
    split = {"train": 1}
    with pytest.raises(DataError, match=r"00.png: .* class table; found 7 \(1 pixels\), 200 \(1 p"):
        all_labels(folder.find(index, split=split))
    with pytest.raises(DataError, match=r"00.png: .* class table; found #010203 \(1 pixels\)"):
        all_labels(folder.find(colors, split=split))
    for source in (index, colors):
        check(folder.find(source, split=split, unknown="ignore"), {"train": ["00"]})


def test_other_masks_than_the_first(tmp_path):
    source = write_source(tmp_path, flat(2))
    (source / "labels" / "01.png").write_bytes(encode(COLORS))
    with pytest.raises(DataError, match=r"01.png: .* this has colours"):
        all_labels(folder.find(source, split={"train": 1}))
    with pytest.raises(DataError, match=r"00.png: colours must be in the class table"):
        all_labels(folder.find(source, split={"train": 1}, masks="colors"))


def test_16_bits(tmp_path):
    classes = [{"name": "grass", "value": 3}, {"name": "sky", "value": 1000}]
    source = write_source(tmp_path, flat(1), np.uint16([[3, 1000]]), classes)
    labels = all_labels(folder.find(source, split={"train": 1}))["train"]["00"]
    np.testing.assert_array_equal(labels, [[0, 1]])


def test_the_table_is_a_part_of_the_data(tmp_path):
    source = write_source(tmp_path / "set", flat(1))
    arguments = {"split": {"train": 1}, "progress": False}
    prepare("folder", source, tmp_path / "out", **arguments)
    other = [{**entry, "value": {3: 9, 9: 3}.get(entry["value"], 0)} for entry in CLASSES]
    (source / "classes.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match="made from other files or with other options"):
        prepare("folder", source, tmp_path / "out", **arguments)


@pytest.mark.parametrize(
    "split, message",
    [
        ({"train": 0.5, "val": 0.4}, r"must be positive and sum to 1\. Received: .*0\.4"),
        ({"train": 1.5, "val": -0.5}, "must be positive and sum to 1"),
        ({"train": 0.5, "val": "val.txt"}, "ratios for all splits, or list files for all"),
        ({"train": 0.99, "val": 0.01}, "4 images are too few for a split of 0.01: val"),
        (None, r"images is not divided into splits\. Give ratios"),
    ],
)
def test_bad_splits(tmp_path, split, message):
    source = write_source(tmp_path, flat(4))
    with pytest.raises(DataError, match=message):
        folder.find(source, split=split)


def test_mistakes(tmp_path):
    source = write_source(tmp_path / "set", [("train/images/a.jpg", "train/labels/b.png")])
    with pytest.raises(DataError, match=r"Without partner: .*images/a.jpg, .*labels/b.png"):
        folder.find(source)
    with pytest.raises(DataError, match=r"is divided into folders already: train\. Leave out"):
        folder.find(source, split={"train": 1})
    with pytest.raises(DataError, match="`masks` must be one of auto, index, colors"):
        folder.find(source, masks="rgb")
    with pytest.raises(DataError, match="`unknown` must be one of error, ignore"):
        folder.find(source, unknown="skip")
    write_source(source, [("copy/train/images/a.jpg", "copy/train/labels/a.png")], classes=None)
    write_source(source, [("save/train/images/a.jpg", "save/train/labels/a.png")], classes=None)
    (source / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"could be .*/copy or .*/save"):
        folder.find(source)


def test_more_mistakes(tmp_path):
    write_source(tmp_path / "a", [("pictures/a.jpg", "truth/a.png")])
    with pytest.raises(DataError, match=r"with images/ and labels/ .* It holds classes.json, pic"):
        folder.find(tmp_path / "a")
    write_source(tmp_path / "b", [("images/train/a.jpg", "labels/a.png")])
    with pytest.raises(DataError, match=r"must be divided in the same way. Found: train; nothing"):
        folder.find(tmp_path / "b")
    source = write_source(tmp_path / "c", [("images/a.jpg", "labels/a.png")])
    (source / "labels" / "a.png").rename(source / "labels" / "a.jpg")
    with pytest.raises(DataError, match=r"labels must hold PNG masks\. JPEG changes their values"):
        folder.find(source, split={"train": 1})
    write_source(tmp_path / "d", flat(1), COLORS, [{"name": "grass"}, {"name": "sky"}])
    with pytest.raises(DataError, match="must give every class a color"):
        folder.find(tmp_path / "d", split={"train": 1})
    write_source(tmp_path / "e", flat(1), b"nonsense")
    with pytest.raises(DataError, match=r"00.png: the label cannot be decoded"):
        folder.find(tmp_path / "e", split={"train": 1})
