"""The examples of docs/keras.md, as they stand there."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kseg
from kseg.contrast.region_contrast import RegionContrast

PAGE = (pathlib.Path(__file__).parents[1] / "docs/keras.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def example(marker):
    (found,) = (text for text in EXAMPLES if marker in text)
    return found


@pytest.fixture
def names(monkeypatch, tmp_path):
    """Names that the examples assume; published weights would be downloaded."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (10, 4, 4)), np.ones((32, 32), int)).astype("uint8")
    labels[:, :8] = 255
    images = rng.integers(0, 256, (10, 128, 128, 3)).astype("uint8")
    build = keras.applications.MobileNetV2

    def without_weights(shape, include_top, weights):
        assert weights == "imagenet"
        return build(shape, include_top=include_top, weights=None, alpha=0.35)

    monkeypatch.setattr(keras.applications, "MobileNetV2", without_weights)
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    return {"num_classes": 3, "images": images, "labels": labels}


def test_losses_and_metric_in_a_model_of_keras(names):
    exec(example("kseg.losses.CrossEntropy"), names)
    assert names["model"].history.history["mean_iou"][0] > 0


def test_region_contrast_and_the_trainer_as_a_model_of_keras(names):
    exec(example("RegionContrast(num_classes)"), names)
    trainer = names["trainer"]
    history = trainer.history.history
    assert history["region_contrast/centers"][0] > 0  # The banks held the first batch's centers.
    np.testing.assert_array_equal(trainer.objectives[0].bank.count > 0, [True] * 3)
    names["kseg"] = kseg
    exec(example("SwapEMAWeights"), names)
    history = names["history"].history
    assert {"dice", "iou", "val_mean_iou"} <= set(history)
    np.testing.assert_array_equal(names["trainer"].objectives[0].bank.count > 0, [True] * 3)
    assert names["logits"].shape == (10, 128, 128, 3)


def test_contextrast_on_stages_of_ones_own(names):
    exec(example("Contextrast(num_classes"), names)
    history = names["trainer"].history.history
    assert history["contextrast/pixel_anchor"][0] > 0
    assert np.isfinite(history["loss"][0])


def test_a_loop_of_ones_own(names):
    """The statement of the last paragraph."""
    image = keras.Input((128, 128, 3))
    features = keras.layers.Conv2D(4, 8, strides=8)(image)
    outputs = {"logits": keras.layers.Conv2D(3, 1)(features), "features": features}
    model, objective = keras.Model(image, outputs), RegionContrast(3, capacity=5)
    objective.prepare(model.output)
    for part in (slice(0, 4), slice(4, 8)):
        with tf.GradientTape():
            outputs = model(names["images"][part], training=True)
            terms, found = objective.contrast(outputs, names["labels"][part])
        objective.remember(found)
    assert float(terms["centers"]) > 0
