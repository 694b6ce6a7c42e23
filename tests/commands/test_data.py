"""The keys of `data` as the commands read them."""

import json
import pathlib

import numpy as np
import pytest

import pipelines
from kseg import config
from kseg.commands.data import ExperimentData
from kseg.errors import UserError
from tests.commands.test_train import error_line, settings, train

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    pipelines.prepare_once("synthetic", folder / "data/synthetic", train_images=6, val_images=4)
    return folder


def opened(folder, **data):
    overrides = [f"data.{key}={json.dumps(value)}" for key, value in data.items()]
    overrides += [f"data.path={folder / 'data/synthetic'}", "data.batch_size=2"]
    overrides += ["data.crop_size=[64, 96]"]
    return ExperimentData.open(config.load(ROOT / "configs/quickstart.json", overrides))


def take(batches, count):
    return [{k: v.numpy() for k, v in batch.items()} for batch in batches.take(count)]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for key, value in other.items():
            np.testing.assert_array_equal(one[key], value, err_msg=key)


def test_several_training_splits(folder):
    both = opened(folder, train_split={"train": 1, "val": 0.5})
    parts = [both.manifest.split(name) for name in ("train", "val")]
    assert both.classes.training_images == [
        sum(n) for n in zip(*(part.images[:-1] for part in parts), strict=True)
    ]
    assert both.classes.training_pixels == [
        round(one + other / 2)
        for one, other in zip(*(part.pixels[:-1] for part in parts), strict=True)
    ]
    assert both.identity()["splits"].keys() == {"train", "val"}
    assert any("is trained on and evaluated" in warning for warning in both.check_labels())
    assert not any("trained on and" in warning for warning in opened(folder).check_labels())
    assert_same(take(both.training_batches(3), 2), take(both.training_batches(0), 5)[3:])


def test_rare_classes_are_named_or_found(folder):
    names = opened(folder).manifest.class_names
    pixels = opened(folder).classes.training_pixels
    rare = [n for n, count in enumerate(pixels) if 0 < count < 0.02 * sum(pixels)]
    data = opened(folder, rare_crops={})
    assert data.rare_classes() == rare and opened(folder).rare_classes() == []
    named = opened(folder, rare_crops={"classes": [names[3], names[1]]})
    assert named.rare_classes() == [3, 1]
    found = take(data.training_batches(0), 6)
    assert_same(take(data.training_batches(4), 2), found[4:])
    plain = take(opened(folder).training_batches(0), 6)
    assert not all(
        np.array_equal(a["label"], b["label"]) for a, b in zip(found, plain, strict=True)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train_split": []}, r"`data\.train_split`: .*at least 1 item.*Received: \[\]"),
        ({"train_split": ["val", "val"]}, r"must name each split once\. Received: \['val', 'val'"),
        ({"train_split": {"train": 0}}, r"`data\.train_split\.train`: .*greater than 0"),
        ({"train_split": ["train", "x"]}, r"has no split 'x'\. It has: train, val"),
        ({"rare_crops": {"probability": 0}}, r"`data\.rare_crops\.probability`: .*greater than 0"),
        ({"rare_crops": {"classes": ["no"]}}, r"Received: \['no'\]\. Choose from \['sky', "),
        ({"rare_crops": {"below": 1e-9}}, r"must be above the share of a class.*Raise it, or name"),
    ],
)
def test_mistakes(folder, data, message):
    with pytest.raises(UserError, match=message):
        opened(folder, **data)


def test_a_mistake_is_one_line_of_the_command(folder):
    result = train(folder, *settings('data.rare_crops.classes=["no"]'))
    assert "data.rare_crops.classes must be classes of 'synthetic'" in error_line(result)
