import dataclasses
import json
import pathlib

import cv2
import numpy as np
import pytest

import pipelines
from pipelines import data_report
from tests.pipelines.tiny_data import TAXONOMY, ArrayExample, noise_example

WALL, SKY = 1, 2


def example(name, number, rows, suffix=".png"):
    """An image of noise; its rows hold one label each."""
    labels = np.repeat(np.uint8(rows)[:, None], 6, axis=1)
    return ArrayExample(name, noise_example(number, labels.shape).image, labels, suffix)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two splits: ground never occurs, an image is in both, another twice in one."""
    folder = tmp_path_factory.mktemp("prepared")
    splits = {
        "train": [
            example("a", 0, [WALL, WALL, SKY, 7]),
            example("b", 1, [SKY, SKY]),
            example("c", 1, [SKY, WALL]),
            example("d", 2, [SKY, SKY]),
        ],
        "val": [example("e", 2, [SKY, 7]), example("f", 3, [SKY, SKY])],
    }
    found = []
    manifest = pipelines.records.write(
        folder,
        "tiny",
        TAXONOMY,
        splits,
        workers=1,
        progress=False,
        describe=lambda *arguments: found.append(arguments),
    )
    assert found[0][0] == manifest
    return manifest, found[0][1]


def test_summary_by_hand(prepared):
    summary = data_report.summarize(*prepared)
    train, val = summary["splits"]["train"], summary["splits"]["val"]
    assert (train["images"], val["images"]) == (4, 2)
    assert train["sizes"] == [[2, 6, 3], [4, 6, 1]] and val["sizes"] == [[2, 6, 2]]
    assert train["pixels"] == {"ground": 0, "wall": 18, "sky": 36}
    assert train["class_images"] == {"ground": 0, "wall": 2, "sky": 4}
    assert (train["ignored_pixels"], train["ignored_share"]) == (6, 0.1)
    assert (val["ignored_pixels"], val["ignored_share"]) == (6, 0.25)
    assert train["absent_classes"] == ["ground"] and val["absent_classes"] == ["ground", "wall"]
    assert summary["absent_classes"] == ["ground"]
    assert summary["duplicates_between_splits"] == [["train/d", "val/e"]]
    assert summary["duplicates_within_splits"] == [["train/b", "train/c"]]


def test_text(prepared):
    lines = data_report.as_text(data_report.summarize(*prepared)).splitlines()
    assert lines[1].split()[:3] == ["train", "4", "1"]
    assert lines[1].endswith("various: 2 sizes from 2x6 to 4x6, 75 % 2x6")
    assert lines[2].endswith("2x6")
    cells = {line.split()[0]: line.split()[1:] for line in lines[5:9]}
    assert cells == {
        "ground": ["0.00", "(0)", "0.00", "(0)"],
        "wall": ["30.00", "(2)", "0.00", "(0)"],
        "sky": ["60.00", "(4)", "75.00", "(2)"],
        "(ignored)": ["10.00", "25.00"],
    }
    assert lines[10:] == [
        "note: 1 class (wall) is not in val",
        "WARNING: 1 class (ground) is not in any split",
        "WARNING: equal images in two splits, 1 times: train/d = val/e",
        "note: equal images in one split, 1 times: train/b = train/c",
    ]


def test_published_counts(prepared):
    manifest, contents = prepared
    text = data_report.as_text(
        data_report.summarize(dataclasses.replace(manifest, dataset="camvid"), contents)
    )
    assert "note: train has 4 images, the published split has 367" in text
    one = {"images": 367, "published_images": 367}
    summary = data_report.summarize(manifest, contents)
    summary["splits"]["train"] |= one
    assert "published" not in data_report.as_text(summary)


def test_a_report_made_anew_is_the_same(prepared):
    """Gathered while the records are written, or read from them."""
    manifest, contents = prepared
    assert data_report.write(manifest) == data_report.summarize(manifest, contents)


def test_files(prepared):
    manifest, contents = prepared
    summary = data_report.write(manifest, contents)
    assert cv2.imread(f"{manifest.folder}/report.png").shape[1] > 1000
    assert json.loads(pathlib.Path(manifest.folder, "report.json").read_text()) == summary
    assert data_report.read(manifest) == summary


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": "other"}'])
def test_a_report_of_other_data_is_made_anew(prepared, content):
    manifest, contents = prepared
    pathlib.Path(manifest.folder, "report.json").write_text(content)
    assert data_report.read(manifest) == data_report.summarize(manifest, contents)


def test_equal_pixels_in_other_files(tmp_path):
    """PNG files of one picture that are compressed in two ways are duplicates; JPEG is not."""
    image = noise_example(0).image
    splits = {}
    for split, (compression, suffix) in {
        "a": (0, ".png"),
        "b": (9, ".png"),
        "c": (0, ".jpg"),
    }.items():
        item = noise_example(0)
        label = item.read()[1]
        content = cv2.imencode(suffix, image, [cv2.IMWRITE_PNG_COMPRESSION, compression])[
            1
        ].tobytes()
        item.read = lambda content=content, label=label: (content, label)
        splits[split] = [item]
    contents = []
    manifest = pipelines.records.write(
        tmp_path,
        "tiny",
        TAXONOMY,
        splits,
        progress=False,
        describe=lambda *a: contents.append(a[1]),
    )
    summary = data_report.summarize(manifest, contents[0])
    assert summary["duplicates_between_splits"] == [["a/000", "b/000"]]


def test_picture_shows_classes_where_they_are(tmp_path):
    """One image, sky over wall: each half has its class's colour, ignored pixels are striped."""
    labels = np.full((240, 320), SKY, "uint8")
    labels[120:] = WALL
    labels[:, 300:] = 7
    item = ArrayExample("x", np.full((240, 320, 3), 100, "uint8"), labels)
    manifest = pipelines.records.write(
        tmp_path, "tiny", TAXONOMY, {"train": [item]}, progress=False
    )
    picture = data_report.draw_samples(manifest)
    top, left = 34 + 8, 8 + 320 + 8  # Below the heading, right of the image.
    for row, label in ((10, SKY), (230, WALL)):
        expected = 0.4 * 100 + 0.6 * np.array(TAXONOMY.palette[label])
        np.testing.assert_allclose(picture[top + row, left + 5], expected, atol=1)
        np.testing.assert_array_equal(picture[top + row, 13], [100] * 3)
    stripes = picture[top : top + 240, left + 300 : left + 320].reshape(-1, 3)
    assert len(np.unique(stripes, axis=0)) == 2


def test_the_seed_chooses(tmp_path):
    splits = {"train": [example(f"{i}", i, [SKY] * 20) for i in range(30)]}
    manifest = pipelines.records.write(tmp_path, "tiny", TAXONOMY, splits, progress=False)
    pictures = [data_report.draw_samples(manifest, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_a_class_without_training_images_is_a_warning(prepared):
    summary = data_report.summarize(*prepared)
    train, val = (summary["splits"][name] for name in ("train", "val"))
    train["absent_classes"], val["absent_classes"] = val["absent_classes"], train["absent_classes"]
    text = data_report.as_text(summary)
    assert "WARNING: 1 class (wall) is not in train" in text
    assert "note: 1 class (wall)" not in text
