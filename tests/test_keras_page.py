"""The examples of docs/keras.md, as they stand there."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

PAGE = (pathlib.Path(__file__).parents[1] / "docs/keras.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def example(marker):
    (found,) = (text for text in EXAMPLES if marker in text)
    return found


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 128, 128, 3)).astype("uint8")
    labels = np.kron(rng.integers(0, 3, (8, 4, 4)), np.ones((32, 32), int)).astype("uint8")
    labels[:, :8] = 255
    return tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(
        4, drop_remainder=True
    )


def test_region_contrast_on_a_model_of_keras_applications(dataset):
    names = {"num_classes": 3, "dataset": dataset}
    keras.utils.set_random_seed(0)
    exec(example("RegionContrast(num_classes)"), names)
    trainer = names["trainer"]
    history = trainer.fit(dataset, verbose=0).history
    assert history["region_contrast/centers"][0] > 0  # The banks held the first epoch's centres.
    assert np.isfinite(history["loss"][0])
    np.testing.assert_array_equal(trainer.objectives[0].bank.count > 0, [True] * 3)


def test_contextrast_on_a_model_of_keras_applications(dataset):
    names = {"num_classes": 3, "dataset": dataset}
    keras.utils.set_random_seed(0)
    exec(example("Contextrast(num_classes"), names)
    before = names["model"].get_layer("embedding_fine_linear").kernel.numpy()
    history = names["trainer"].fit(dataset, verbose=0).history
    assert history["contextrast/pixel_anchor"][0] > 0
    assert np.isfinite(history["loss"][0])
    after = names["model"].get_layer("embedding_fine_linear").kernel.numpy()
    assert not np.array_equal(before, after)


def test_batches_need_a_static_size(dataset):
    names = {"num_classes": 3, "dataset": dataset.unbatch().batch(4)}
    with pytest.raises(ValueError, match="drop_remainder=True"):
        exec(example("RegionContrast(num_classes)"), names)


def test_a_loop_of_ones_own(dataset):
    keras.utils.set_random_seed(0)
    names = {"num_classes": 3, "dataset": dataset.take(0).concatenate(dataset.take(1))}
    exec(example("RegionContrast(num_classes)"), names)
    model, objective = names["model"], names["RegionContrast"](3, capacity=5)
    objective.prepare(model.output)
    for batch in dataset:
        with tf.GradientTape():
            outputs = model(batch["image"], training=True)
            terms, found = objective.contrast(outputs, batch["label"])
        objective.remember(found)
    assert float(terms["centers"]) > 0
