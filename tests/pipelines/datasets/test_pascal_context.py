import io
import json

import numpy as np
import pytest
import scipy.io

from pipelines.datasets import pascal_context
from pipelines.errors import DataError
from tests.pipelines.tiny_data import all_labels, pack, write_pairs

IDS = ["2008_000002", "2008_000003", "2009_000001"]
SPLITS = {"train": IDS[:2], "val": IDS[2:]}
VOC = "VOCdevkit/VOC2010"
# Not of the 59, aeroplane, bag, bed, bedclothes.
DERIVED = np.uint8([[0, 1, 2], [3, 4, 0]])
NUMBERS_459 = np.uint16([[431, 2, 9], [18, 19, 0]])
LABELS = [[255, 0, 1], [2, 3, 255]]


def mat(values):
    file = io.BytesIO()
    scipy.io.savemat(file, {"LabelMap": values})
    return file.getvalue()


def write_images(folder, label, content):
    pairs = {(f"{VOC}/JPEGImages/{key}.jpg", label.format(key)): content for key in IDS}
    write_pairs(folder, pairs, DERIVED.shape)
    for kind in ("Main", "SegmentationContext"):
        lists = folder / VOC / "ImageSets" / kind
        lists.mkdir(parents=True)
        for split, ids in SPLITS.items():
            (lists / f"{split}.txt").write_text("\n".join(ids))


def check(found):
    labels = all_labels(found)
    assert {split: list(ids) for split, ids in labels.items()} == SPLITS
    for arrays in labels.values():
        for array in arrays.values():
            np.testing.assert_array_equal(array, LABELS)


def test_derived_pngs_beside_the_images(tmp_path):
    write_images(tmp_path, VOC + "/SegmentationClassContext/{}.png", DERIVED)
    for source in (tmp_path, tmp_path / "VOCdevkit", tmp_path / VOC):
        check(pascal_context.find(source))


def test_derived_pngs_by_split(tmp_path):
    pairs = {
        (f"{split}/image/{key}.jpg", f"{split}/label/{key}.png"): DERIVED
        for split, ids in SPLITS.items()
        for key in ids
    }
    write_pairs(tmp_path, pairs)
    check(pascal_context.find(tmp_path))


def test_official_matlab_files(tmp_path):
    write_images(tmp_path, "trainval/{}.mat", mat(NUMBERS_459))
    check(pascal_context.find(tmp_path))
    assert pascal_context.find(tmp_path).splits["train"][0].label.suffix == ".mat"


def test_the_archives(tmp_path):
    """The layout of the downloads: VOC's tar, and the annotations as a compressed one."""
    write_images(tmp_path / "set", "trainval/{}.mat", mat(NUMBERS_459))
    archives = [tmp_path / "VOCtrainval_03-May-2010.tar", tmp_path / "trainval.tar.gz"]
    pack(archives[0], tmp_path / "set" / "VOCdevkit", "VOCdevkit/")
    pack(archives[1], tmp_path / "set" / "trainval", "trainval/")
    check(pascal_context.find(archives))


def run_lengths(mask):
    """Encodes a mask as COCO does: runs of 0 and 1 in turn, column by column."""
    runs, last = [0], 0
    for value in mask.T.reshape(-1).astype(int):
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    text = ""
    for i, run in enumerate(runs):
        number = run - runs[i - 2] if i > 2 else run
        while True:
            group = number & 31
            number >>= 5
            done = number == (-1 if group & 16 else 0)
            text += chr(48 + group + (0 if done else 32))
            if done:
                break
    return text


def detail(values, key="category_id"):
    """The content of trainval_merged.json; 0 is of no mask."""
    height, width = values.shape
    images = [
        {
            "file_name": f"{name}.jpg",
            "image_id": number,
            "phase": split,
            "height": height,
            "width": width,
        }
        for number, (split, name) in enumerate(
            (split, name) for split, ids in SPLITS.items() for name in ids
        )
    ]
    masks = [
        {
            "id": 100,
            "image_id": image["image_id"],
            key: int(value),
            "segmentation": {"size": [height, width], "counts": run_lengths(values == value)},
        }
        for image in images
        for value in np.unique(values[values > 0])
    ]
    return {"images": images, "annos_segmentation": masks, "categories": []}


def write_detail(folder, content):
    write_images(folder, "unused/{}.png", DERIVED)
    (folder / "trainval_merged.json").write_text(json.dumps(content))


def test_detail_json(tmp_path):
    write_detail(tmp_path, detail(np.uint16([[0, 2, 9], [18, 19, 0]])))
    check(pascal_context.find(tmp_path))


def test_long_runs(tmp_path):
    """Runs need several characters, differences below zero too."""
    rng = np.random.default_rng(0)
    numbers = np.kron(rng.integers(0, 3, (4, 5)), np.ones((50, 60), int))
    numbers[rng.integers(0, 200, 30), rng.integers(0, 300, 30)] = 2
    content = detail(np.array([0, 2, 459])[numbers])
    write_detail(tmp_path, content)
    example = pascal_context.find(tmp_path).splits["val"][0]
    values = example.decode.reader(example.read()[1])
    np.testing.assert_array_equal(values, np.array([0, 2, 459])[numbers])


def test_detail_mistakes(tmp_path):
    write_detail(tmp_path, detail(NUMBERS_459, key="category"))
    with pytest.raises(DataError, match="must be the annotations of PASCAL in Detail"):
        pascal_context.find(tmp_path)
    content = detail(NUMBERS_459)
    content["annos_segmentation"][0]["segmentation"]["counts"] = "5"
    (tmp_path / "trainval_merged.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{IDS[0]}: a mask of class 2 does not fill 2x3 pixels"):
        all_labels(pascal_context.find(tmp_path))
    (tmp_path / VOC / "JPEGImages" / f"{IDS[1]}.jpg").unlink()
    with pytest.raises(DataError, match=f"names what has no image file: {IDS[1]}"):
        pascal_context.find(tmp_path)


def test_mistakes(tmp_path):
    with pytest.raises(DataError, match=r"with VOC2010/JPEGImages/, and beside it .* nothing$"):
        pascal_context.find(tmp_path)
    write_images(tmp_path, "unused/{}.png", DERIVED)
    with pytest.raises(DataError, match=r"or trainval_merged\.json.* VOCdevkit/"):
        pascal_context.find(tmp_path)
    (tmp_path / "trainval").mkdir()
    with pytest.raises(DataError, match=f"has no label file: {IDS[0]}, {IDS[1]}"):
        pascal_context.find(tmp_path)


def test_a_number_above_459(tmp_path):
    write_images(tmp_path, "trainval/{}.mat", mat(np.uint16([[460, 2, 9], [18, 19, 0]])))
    with pytest.raises(DataError, match=r"of the 459 classes; found 460 \(1 pixels\)"):
        all_labels(pascal_context.find(tmp_path))
