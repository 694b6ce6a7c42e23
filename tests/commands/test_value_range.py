"""The range of deep images goes from preparation to whatever labels images later."""

import json

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import config, serving
from kseg.classes import Classes
from kseg.commands import predict, prepare
from kseg.commands.data import ExperimentData
from kseg.runs import Run
from kseg.serving import portable
from kseg.serving.onnx import export_onnx
from pipelines import loader, pictures

SIZE = (9, 14)
GREYS = Classes([f"grey {i}" for i in range(255)], [[i, i, i] for i in range(255)])


def red_model():
    """Labels each pixel with its red value r: the class k of the largest `2 k r - k^2`.

    There is no class 255: its place is taken by 254.
    """
    image = keras.Input((None, None, 3), name="image")
    layer = keras.layers.Conv2D(255, 1, name="logits")
    model = keras.Model(image, {"logits": layer(image)})
    values = np.arange(255)
    layer.kernel.assign(np.stack([2 * values, 0 * values, 0 * values])[None, None])
    layer.bias.assign(-(values**2))
    return model


def write_source(folder, low, high):
    """Images of 16 bits with values from low to high - 1, and of 8 bits; gives their files."""
    rng = np.random.default_rng(0)
    deep = rng.integers(low, high, (4, *SIZE, 3)).astype("uint16")
    deep[:, 0, 0], deep[:, 0, 1] = low, high - 1
    pictures_of = {
        "a.png": deep[0],
        "b.png": deep[1, ..., 0],
        "c.tif": deep[2],
        "d.png": rng.integers(0, 256, (*SIZE, 3)).astype("uint8"),
    }
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for name, picture in pictures_of.items():
        cv2.imwrite(str(folder / "images" / name), picture)
        mask = rng.integers(0, 2, SIZE).astype("uint8")
        cv2.imwrite(str(folder / "masks" / f"{name[0]}.png"), mask)
    (folder / "classes.json").write_text(
        json.dumps([{"name": "no", "value": 0}, {"name": "yes", "value": 1}])
    )
    return {name[0]: folder / "images" / name for name in pictures_of}


def red_as_told(value, low, high):
    """The rule in words: the share of the range, of 255, rounded; of n bits the higher 8."""
    bits = high.bit_length() if isinstance(high, int) else 0
    if low == 0 and high == 2**bits - 1:
        return int(min(value, high)) >> (bits - 8)
    return round(min(max((int(value) - low) / (high - low), 0), 1) * 255)


@pytest.mark.parametrize(
    "limits, given, expected",
    [
        ((0, 4096), ["--range", "0", "4095"], (0, 4095)),
        ((90, 4000), ["--range", "100", "3000.5"], (100, 3000.5)),
        ((0, 1 << 16), [], (0, 65535)),  # Found: half of the range is reached.
    ],
)
def test_deep_images_are_read_alike_everywhere(tmp_path, capsys, limits, given, expected):
    source, data = tmp_path / "source", tmp_path / "data"
    inputs = write_source(source, *limits)
    split = ["--split", "train=0.5", "--split", "val=0.5"]
    arguments = ["folder", "--source", source, "--output", data, *split, *given]
    assert prepare.main([str(argument) for argument in arguments]) == 0

    experiment = config.parse(
        {
            "name": "x",
            "model": {"backbone": {"name": "resnet18"}, "head": {"name": "deeplabv3"}},
            "data": {"dataset": "folder", "path": str(data), "crop_size": [8, 8], "batch_size": 1},
            "train": {"steps": 1},
        },
        source="test",
    )
    opened = ExperimentData.open(experiment)
    Run.create(tmp_path / "run", experiment, opened.classes, opened.identity())
    run = Run.open(tmp_path / "run")
    assert run.value_range == expected
    prepared = {
        batch["id"][0].numpy().decode(): batch["image"][0].numpy()
        for split in ("train", "val")
        for batch in loader.evaluation_dataset(data, split, batch_size=1)
    }
    stored = cv2.imread(str(inputs["a"]), cv2.IMREAD_UNCHANGED)[..., 2]
    told = [[red_as_told(value, *expected) for value in row] for row in stored]
    np.testing.assert_array_equal(prepared["a"][..., 0], told)

    model = red_model()
    serving.export_saved_model(model, tmp_path / "model", GREYS, value_range=run.value_range)
    export_onnx(model, tmp_path / "model.onnx", GREYS, value_range=run.value_range)
    served = serving.load_saved_model(tmp_path / "model")
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_array_equal(loaded.value_range(), expected)
    assert served.value_range == portable.load(tmp_path / "model.onnx").value_range == expected
    # A dark image, whose range could not be told without the data set.
    dark = np.minimum(stored, 1000)
    inputs["dark"] = source / "images" / "dark.png"
    cv2.imwrite(str(inputs["dark"]), dark)
    prepared["dark"] = pictures.read(inputs["dark"].read_bytes(), expected).pixels
    for name in ("model", "model.onnx"):
        arguments = ["--saved-model", tmp_path / name, "--input", source / "images"]
        arguments += ["--output", tmp_path / f"labels of {name}"]
        assert predict.main([str(argument) for argument in arguments]) == 0
    for name, file in inputs.items():
        red = np.minimum(prepared[name][..., 0], 254)
        if file.suffix == ".png":
            found = loaded.signatures["serving_bytes"](encoded=tf.constant(file.read_bytes()))
            np.testing.assert_array_equal(found["classes"], red)
        for written in ("model", "model.onnx"):
            label = cv2.imread(str(tmp_path / f"labels of {written}" / f"{name}.png"), -1)
            np.testing.assert_array_equal(label, red)

    # Another range than that of the training is taken, and said.
    capsys.readouterr()
    arguments += ["--range", "0", "1000"]
    assert predict.main([str(argument) for argument in arguments]) == 0
    assert "note: the model was trained with --range" in capsys.readouterr().err
