"""The keys of `data` as the commands read them."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import pipelines
from kseg import config
from kseg.commands import augmentations
from kseg.commands.data import ExperimentData
from kseg.config import schema
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
    assert data.rare_classes("key", schema.RareClasses()) == rare
    named = schema.RareClasses(classes=[names[3], names[1]])
    assert data.rare_classes("key", named) == [3, 1]
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
    result = train(folder, *settings("losses.dice.class_weights=[1,2]"))
    assert "`losses.dice.class_weights` must have a number for each" in error_line(result)
    assert not (folder / "runs").exists()


def invert(batch, seed, strength=255):
    """An augmentation as a user writes one."""
    flip = tf.random.stateless_uniform((batch["image"].shape[0], 1, 1, 1), seed) < 0.5
    return {**batch, "image": tf.where(flip, strength - batch["image"], batch["image"])}


def lose_labels(batch, seed):
    return {"image": batch["image"]}


def to_float(batch, seed):
    return {**batch, "image": tf.cast(batch["image"], "float32")}


NOT_CALLABLE = 3
HERE = "tests.commands.test_data"
EVERY = [
    {"name": "cutmix"},
    {"name": "copy_paste"},
    {"name": f"{HERE}:invert"},
    {"name": "keras.layers:RandomErasing", "arguments": {"factor": 1.0}},
    {"name": "keras.layers:RandomRotation", "arguments": {"factor": 0.2, "fill_mode": "constant"}},
    {"name": "keras.layers:GaussianDropout", "arguments": {"rate": 0.1}},
]


def test_augmentations_are_exact_on_resume(folder):
    data = opened(folder, augmentations=EVERY)
    found = take(data.training_batches(0), 5)
    assert_same(take(data.training_batches(3), 2), found[3:])
    assert_same(take(opened(folder, augmentations=EVERY).training_batches(0), 5), found)
    plain = take(opened(folder).training_batches(0), 5)
    for one, other in zip(found, plain, strict=True):
        assert (one["image"] != other["image"]).any() and (one["label"] != other["label"]).any()
        np.testing.assert_array_equal(one["draws"], other["draws"])


def test_two_devices_share_the_batches_of_one(folder, mirrored):
    data = opened(
        folder,
        augmentations=EVERY[:4],
        rare_crops={"probability": 0.5},
        train_split={"train": 1, "val": 0.5},
    )
    whole = take(data.training_batches(2), 2)
    shared = mirrored.experimental_distribute_dataset(data.training_batches(2))
    for batch, parts in zip(whole, shared, strict=False):
        for key, value in batch.items():
            halves = mirrored.experimental_local_results(parts[key])
            np.testing.assert_array_equal(np.concatenate(halves), value)


@pytest.mark.parametrize("entry", EVERY, ids=lambda entry: entry["name"])
def test_each_augmentation_differs_from_step_to_step(folder, entry):
    (batch,) = take(opened(folder).training_batches(0), 1)
    same = tf.data.Dataset.from_tensors(batch).repeat()
    data = opened(folder, augmentations=[entry])
    settings = {"seed": 1, "start_step": 0, "pasted_classes": [[1, 2]]}
    found = take(augmentations.augmented(same, data.config.data.augmentations, **settings), 6)
    assert len({found_batch["image"].tobytes() for found_batch in found}) > 2
    later = {**settings, "start_step": 4}
    again = take(augmentations.augmented(same, data.config.data.augmentations, **later), 2)
    assert_same(again, found[4:])


def test_labels_move_with_the_pixels_in_a_keras_layer(folder):
    label = np.random.default_rng(0).integers(0, 8, (3, 16, 24)).astype("uint8")
    label[:, :4, :6] = 255
    image = np.repeat(label[..., None], 3, axis=-1)
    same = tf.data.Dataset.from_tensors({"image": image, "label": label}).repeat()
    arguments = {"height_factor": 0.4, "width_factor": 0.4, "fill_mode": "constant"}
    entry = {
        "name": "keras.layers:RandomTranslation",
        "arguments": {**arguments, "fill_value": 77.0, "interpolation": "nearest"},
    }
    for value in (77.0, 0.0):
        entry["arguments"]["fill_value"] = value
        entries = opened(folder, augmentations=[entry]).config.data.augmentations
        found = augmentations.augmented(same, entries, seed=1, start_step=0, pasted_classes=[[]])
        (batch,) = take(found, 1)
        inside = batch["image"][..., 0] != value
        if value:  # What comes in from outside has a color of its own.
            np.testing.assert_array_equal(batch["label"][inside], batch["image"][inside][:, 0])
            assert not inside.all()
        else:
            assert (batch["label"] == 255).sum() > (label == 255).sum() / 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "cutmax"}, r"`data\.augmentations\.0\.name` is unknown.*Did you mean 'cutmix'"),
        ({"name": "cutmix", "alpha": 0}, r"alpha`: .*greater than 0"),
        ({"name": "copy_paste", "classes": ["x"]}, r"data\.augmentations\.0\.classes must be"),
        ({"name": "no.such:thing"}, r"'no\.such:thing' must name something in a module"),
        ({"name": f"{HERE}:NOT_CALLABLE"}, r"must name Keras layers and functions\. .* is int"),
        ({"name": f"{HERE}:invert", "arguments": {"a": 1}}, r"function\(batch, seed.*'a'"),
        ({"name": "keras.layers:RandomErasing", "arguments": {"a": 1}}, r"RandomErasing.*a"),
        ({"name": f"{HERE}:lose_labels"}, r"must return a dict with \['draws', 'image', 'label'"),
        ({"name": f"{HERE}:to_float"}, r"`image` as uint8 \(2, 64, 96, 3\)\. Received: float32"),
    ],
)
def test_mistakes_about_augmentations(folder, entry, message):
    with pytest.raises(UserError, match=message):
        opened(folder, augmentations=[entry]).training_batches(0)


def test_mixing_needs_another_image(folder):
    values = ["data.batch_size=1", 'data.augmentations=[{"name": "cutmix"}]']
    with pytest.raises(UserError, match=r"cutmix takes pixels from another image.*`batch_size` 1"):
        config.load(ROOT / "configs/quickstart.json", values)


def test_crops_are_not_larger_than_tiles(folder, monkeypatch):
    manifest = pipelines.read_manifest(folder / "data/synthetic")
    for tile, fits in (([64, 96], True), ([63, 96], False), ([128, 95], False)):
        options = {**manifest.options, "tile": tile}
        cut = dataclasses.replace(manifest, options=options)
        monkeypatch.setattr(pipelines, "read_manifest", lambda _, cut=cut: cut)
        if fits:
            assert opened(folder).manifest.options["tile"] == tile
            continue
        with pytest.raises(
            UserError, match=rf"data\.crop_size must not be .*{tile[0]} x {tile[1]}"
        ):
            opened(folder)
