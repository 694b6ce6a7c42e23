import json
import shutil
import unicodedata

import numpy as np
import pytest

from pipelines import prepare
from pipelines.datasets import folder
from pipelines.errors import DataError
from tests.pipelines.datasets.tiny_annotations import labelme_content, write_json
from tests.pipelines.tiny_data import all_labels, encode, pack, write_pairs

GRASS, VOID, SKY = (10, 200, 30), (0, 0, 0), (80, 140, 220)
CLASSES = [
    {"name": "grass", "color": GRASS, "value": 3},
    {"name": "void", "color": VOID, "value": 0, "ignore": True},
    {"name": "sky", "color": SKY, "value": 9},
]
VALUES = np.uint8([[3, 9, 0, 255]])
LABELS = [[0, 1, 255, 255]]
SETS = ("train", "val", "test")
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
    with pytest.raises(DataError, match=r"01.png: .* this has colors"):
        all_labels(folder.find(source, split={"train": 1}))
    with pytest.raises(DataError, match=r"00.png: colors must be in the class table"):
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
        ({"train": ".8,val=.2"}, "Give each split separately, as in"),
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


def nfd(text):
    return unicodedata.normalize("NFD", text)


def test_names_of_macos(tmp_path):
    """Decomposed in one place, composed in the other."""
    names = [(f"images/{nfd('café')}_{i}.jpg", f"labels/café_{i}.png") for i in range(4)]
    source = write_source(tmp_path, names)
    wanted = {"train": ["café_0", "café_2"], "val": ["café_1"]}
    lists = {"train": "train.txt", "val": "val.txt"}
    for form in ("NFC", "NFD"):
        for split, found in wanted.items():
            text = "".join(unicodedata.normalize(form, f"{name}.jpg\n") for name in found)
            (source / f"{split}.txt").write_text(text)
        check(folder.find(source, split=lists), wanted)
    (source / f"images/{nfd('café')}_9.jpg").write_bytes(b"")
    (source / "images/café_9.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"Two files are called 'café_9' in .*images"):
        folder.find(source, split=lists)


def test_folders_of_macos(tmp_path):
    source = write_source(tmp_path, flat(2, nfd("Größe/é"), nfd("Masken ü")))
    found = folder.find(source, images="Größe\\é", labels="Masken ü/", split={"train": 1})
    check(found, {"train": ["00", "01"]})


def test_skip_in_either_form(tmp_path):
    names = [(f"images/é{i}.jpg", f"labels/é{i}.png") for i in range(3)]
    write_source(tmp_path / "set", names)
    manifest = prepare(
        "folder",
        tmp_path / "set",
        tmp_path / "out",
        split={"train": 1},
        skip=[nfd("é1")],
        progress=False,
    )
    assert manifest.split("train").num_images == 2


@pytest.mark.parametrize(
    "form",
    [
        "images\\{}.jpg labels\\{}.png",
        "C:\\data\\images\\{}.jpg;C:\\data\\labels\\{}.png",
        '"images/{}.jpg","labels/{}.png"',
        "images/{}.jpg\tlabels/{}.png",
        "./images/{}.jpg , ./labels/{}.png, 0.5",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_windows(tmp_path, form, encoding):
    names = ["00", "01", "with a blank", "a, comma", "été"]
    source = write_source(tmp_path, [(f"images/{n}.jpg", f"labels/{n}.png") for n in names])
    for split, found in (("train", names[:2]), ("Validation", names[2:])):
        lines = "".join(form.replace("{}", name) + "\r\n" for name in found)
        (source / f"{split}.txt").write_bytes(lines.encode(encoding))
    check(folder.find(source), {"train": names[:2], "val": sorted(names[2:])})


def test_a_list_that_pairs_differently(tmp_path):
    source = write_source(tmp_path, flat(2))
    (source / "train.txt").write_text("images/00.jpg labels/01.png\n")
    with pytest.raises(DataError, match=r"train.txt: .* A line pairs '00' with '01'"):
        folder.find(source)


def test_a_list_that_is_no_text(tmp_path):
    source = write_source(tmp_path, flat(2))
    (source / "train.txt").write_bytes(b"\x00\x01\x02")
    with pytest.raises(DataError, match=r"train.txt must be a text file"):
        folder.find(source)


def test_roboflow(tmp_path):
    """Masks beside images, a table in each split."""
    truth = np.uint8([[0, 1, 2, 255]])
    pairs = {
        (f"{s}/{n}_jpg.rf.0a1.jpg", f"{s}/{n}_jpg.rf.0a1_mask.png"): truth
        for s, n in (("train", "a"), ("train", "b"), ("valid", "c"))
    }
    write_pairs(tmp_path, pairs)
    for split in ("train", "valid"):
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, a\n1, b\n2, c\n")
    found = folder.find(tmp_path)
    assert ids(found) == {"train": ["a_jpg.rf.0a1", "b_jpg.rf.0a1"], "val": ["c_jpg.rf.0a1"]}
    assert found.taxonomy.class_names == ["a", "b", "c"]
    for labels in all_labels(found)["train"].values():
        np.testing.assert_array_equal(labels, truth)
    given = folder.find(tmp_path, images="train", labels="train", split={"x": 0.5, "y": 0.5})
    assert sum(map(len, ids(given).values())) == 2
    (tmp_path / "train/lonely_mask.png").write_bytes(encode(truth))
    assert "lonely_mask" in str(folder_error(tmp_path))
    (tmp_path / "train/lonely_mask.png").unlink()
    (tmp_path / "valid/_classes.csv").write_text("Pixel Value, Class\n0, a\n1, c\n2, b\n")
    assert "There must be one class table." in str(folder_error(tmp_path))


def folder_error(*arguments, **options):
    with pytest.raises(DataError) as error:
        folder.find(*arguments, **options)
    assert "\n" not in str(error.value)
    return error.value


def test_cvat(tmp_path):
    pairs = [(f"JPEGImages/{i}.jpg", f"SegmentationClass/{i}.png") for i in range(2)]
    write_source(tmp_path, pairs, COLORS, None)
    write_source(tmp_path, [("x/y.jpg", "SegmentationObject/0.png")], COLORS, None)
    lines = ["grass:10,200,30::", "sky:80,140,220::", "void:0,0,0::"]
    (tmp_path / "labelmap.txt").write_text(
        "\n".join(["# label:color_rgb:parts:actions", *lines, ""])
    )
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("0\n1\n")
    assert "is not divided into splits" in str(folder_error(tmp_path))
    found = folder.find(tmp_path, split={"train": "ImageSets/Segmentation/default.txt"})
    assert ids(found) == {"train": ["0", "1"]}
    assert found.taxonomy.class_names == ["grass", "sky", "void"]
    np.testing.assert_array_equal(all_labels(found)["train"]["0"], [[0, 1, 2, 2]])


@pytest.mark.parametrize(
    "end, message",
    [
        (".gif", r"must hold PNG masks\. GIF is not read; there are 2 such files\. Convert"),
        (".webp", r"must hold PNG masks\. WebP is not read"),
        (".npy", r"must hold PNG masks\. NumPy is not read"),
        (".json", r"must hold PNG masks\. JSON is not read"),
        (".JPG", r"must hold PNG masks\. JPEG changes their values; .*`masks=\"binary\"`"),
    ],
)
@pytest.mark.parametrize("some", [False, True])
def test_other_kinds_of_masks(tmp_path, end, message, some):
    """Also where there are PNG masks beside them."""
    source = write_source(tmp_path, flat(2 + some))
    for number in range(2):
        (source / f"labels/{number:02d}.png").rename(source / f"labels/{number:02d}{end}")
    with pytest.raises(DataError, match=message):
        folder.find(source, split={"train": 1})


def test_other_kinds_of_images(tmp_path):
    source = write_source(tmp_path, flat(2))
    for number in range(2):
        (source / f"images/{number:02d}.jpg").rename(source / f"images/{number:02d}.heic")
    with pytest.raises(DataError, match=r"images must hold images as JPEG, .* 2 HEIC files"):
        folder.find(source, split={"train": 1})


def test_litter(tmp_path):
    source = write_source(tmp_path, flat(2))
    names = ("Thumbs.db", "desktop.ini", ".DS_Store", "._00.png", ".ipynb_checkpoints/0.png")
    for name in (*names, "@eaDir/00.jpg/THUMB.jpg", "__MACOSX/0.png"):
        for place in ("images", "labels", "__MACOSX/images", "__MACOSX/labels"):
            (source / place / name).parent.mkdir(parents=True, exist_ok=True)
            (source / place / name).write_bytes(b"litter")
    check(folder.find(source, split={"train": 1}), {"train": ["00", "01"]})


@pytest.mark.parametrize("nested", [False, True])
def test_images_without_masks_are_those_of_test(tmp_path, nested):
    form = "{split}/{kind}" if nested else "{kind}/{split}"

    def place(kind, split):
        return form.format(kind=kind, split=split)

    names = [(f"{place('images', s)}/0.jpg", f"{place('labels', s)}/0.png") for s in SETS]
    source = write_source(tmp_path, names)
    shutil.rmtree(source / place("labels", "test"))
    found = folder.find(source)
    check(found, {"train": ["0"], "val": ["0"]})
    (note,) = found.notes
    assert note.endswith("test holds images, and no masks: the split test is left out")
    shutil.rmtree(source / place("labels", "val"))
    with pytest.raises(DataError, match=r"val holds images, and no|divided in the same way"):
        folder.find(source)


def test_endings_of_all_kinds_of_images(tmp_path):
    names = ("a.JPG", "b.JpEg", "c.jfif", "d.GIF", "e.Tif", "f.webp", "g.BMP", "h.PNG")
    source = write_source(tmp_path, [(f"images/{n[0]}.jpg", f"labels/{n[0]}.PNG") for n in names])
    for name in names:
        (source / f"images/{name[0]}.jpg").rename(source / f"images/{name}")
    check(folder.find(source, split={"train": 1}), {"train": [*"abcdefgh"]})


@pytest.mark.parametrize("target", ["gone.jpg", "link.jpg"])
def test_a_link_to_a_missing_file_is_not_passed_over(tmp_path, target):
    source = write_source(tmp_path / "set", flat(2))
    (source / "images/link.jpg").symlink_to(target)
    (source / "labels/link.png").symlink_to("gone.png")
    options = {"split": {"train": 1}, "progress": False}
    with pytest.raises(DataError, match=r"images/link\.jpg, a link: .* leave out its image"):
        prepare("folder", source, tmp_path / "out", **options)
    manifest = prepare("folder", source, tmp_path / "out", skip=["link"], **options)
    assert manifest.split("train").num_images == 2


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    source = write_source(tmp_path, flat(2))
    (source / "images/again").symlink_to("..")
    (source / "labels/again").symlink_to(tmp_path / "labels")
    check(folder.find(source, split={"train": 1}), {"train": ["00", "01"]})


def test_names_in_another_encoding(tmp_path):
    source = write_source(tmp_path, flat(2))
    try:
        (source / "images/00.jpg").rename(source / "images" / "\udce9t\udce9.jpg")
    except OSError:
        pytest.skip("the file system allows UTF-8 only")
    message = r"must be UTF-8\. In .*images there is b'\\xe9t\\xe9\.jpg'"
    with pytest.raises(DataError, match=message):
        folder.find(source, split={"train": 1})


def test_two_tables(tmp_path):
    source = write_source(tmp_path, flat(2))
    (source / "classes.csv").write_text("name\nother\n")
    found = folder.find(source, split={"train": 1})
    check(found, {"train": ["00", "01"]})
    assert "classes.json; " in found.notes[0] and "classes.csv is not read" in found.notes[0]


def test_a_mistake_in_masks_is_not_hidden_by_annotations(tmp_path):
    """A JSON of labelme in the source does not explain a damaged table or a misspelt folder."""
    source = write_source(tmp_path / "set", [("images/a.jpg", "labels/a.png")])
    write_json(source / "other/a.json", labelme_content("a.jpg"))
    with pytest.raises(DataError, match="must be a folder, or a zip or tar file, with imagse/"):
        folder.find(source, images="imagse", labels="labels", split={"train": 1})
    (source / "classes.json").write_text('["ground", "wa')
    with pytest.raises(DataError, match=r"classes.json") as error:
        folder.find(source, split={"train": 1})
    assert "kseg prepare" not in str(error.value)
    (source / "classes.json").unlink()
    with pytest.raises(DataError, match=r"\(other/a.json\), .*kseg prepare labelme"):
        folder.find(source, split={"train": 1})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "train"}, "`split` must give each split a ratio or a list file"),
        ({"classes": 5}, "`classes` must be a file. Received: 5"),
        ({"images": 5, "labels": "labels"}, "`images` must be a folder of the source. Received: 5"),
        ({"masks": "foo"}, "`masks` must be one of auto"),
        ({"unknown": []}, "`unknown` must be one of error, ignore"),
    ],
)
def test_options_of_another_type(tmp_path, options, message):
    source = write_source(tmp_path / "set", [("images/a.jpg", "labels/a.png")])
    with pytest.raises(DataError, match=message):
        folder.find(source, **options)
