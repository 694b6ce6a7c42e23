"""A run small enough for tests: a network of a few thousand weights, data drawn in memory."""

import numpy as np
import pytest
import tensorflow as tf

from kseg import backbones, config
from kseg.classes import Classes
from kseg.layers.photometric import PhotometricDistortion
from kseg.runs import Run
from tests.tiny_networks import tiny_backbone

CLASSES = Classes(["road", "sky", "car"], [[90, 90, 90], [80, 160, 250], [200, 30, 30]])
SIZE = (32, 64)


@pytest.fixture
def tiny_network(monkeypatch):
    """Puts the tiny backbone in the place of hrnet_w18_small."""
    monkeypatch.setitem(backbones.BACKBONES, "hrnet_w18_small", tiny_backbone)


def experiment(optimizer=None, **train):
    """A config with all losses; `train` goes into its train section."""
    scales = {"c2": 1.0, "c4": 0.5}
    return config.parse(
        {
            "name": "tiny",
            "model": {
                "backbone": {"name": "hrnet_w18_small"},
                "head": {"name": "ocr", "channels": 8, "key_channels": 4, "dropout": 0.3},
                "embedding_dim": 8,
            },
            "contrast": [
                {
                    "name": "multi_scale",
                    "scale_weights": scales,
                    "cross_scale_pairs": [["c2", "c4"]],
                    "min_count": 1,
                }
            ],
            "optimizer": {"name": "sgd", **(optimizer or {})},
            "data": {"dataset": "none", "crop_size": SIZE, "batch_size": 2},
            "train": {
                "steps": 4,
                "devices": 1,
                "log_every": 1,
                "evaluate_every": 2,
                "checkpoint_every": 2,
                "panels": 1,
                **train,
            },
        },
        source="test",
    )


def create_run(folder, **train):
    return Run.create(folder, experiment(**train), CLASSES)


def create_quick_run(folder, *, train=None, **sections):
    """A run whose step compiles in a few seconds: the tiny backbone, a linear head, cross-entropy.

    Args:
        folder: of the run.
        train: dict of keys of the section `train`.
        **sections: dicts of keys of other sections; `contrast` a list.
    """
    values = experiment(**(train or {})).model_dump(mode="json") | {"contrast": []}
    values["model"]["head"] = {"name": "hrnet"}
    for name, section in sections.items():
        other = isinstance(section, list) or "name" in section
        values[name] = section if other else {**values[name], **section}
    return Run.create(folder, config.parse(values, source="test"), CLASSES)


def batch(number, size=2):
    """Batch `number` of an endless stream: blocks of classes with matching colours and noise."""
    rng = np.random.default_rng(number)
    labels = rng.integers(0, 3, (size, 2, 4)).repeat(16, axis=1).repeat(16, axis=2)
    noise = rng.integers(-40, 40, (*labels.shape, 3))
    images = (np.array(CLASSES.palette)[labels] + noise).clip(0, 255).astype("uint8")
    labels[:, :4] = 255
    return {
        "image": images,
        "label": labels.astype("uint8"),
        "draws": rng.random((size, PhotometricDistortion.NUM_DRAWS), dtype="float32"),
    }


def training_batches(start_step):
    signature = {
        "image": tf.TensorSpec((2, *SIZE, 3), "uint8"),
        "label": tf.TensorSpec((2, *SIZE), "uint8"),
        "draws": tf.TensorSpec((2, PhotometricDistortion.NUM_DRAWS), "float32"),
    }

    def generate():
        number = start_step
        while True:
            yield batch(number)
            number += 1

    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def evaluation_batches():
    return tf.data.Dataset.from_tensor_slices(batch(10_000, size=3)).batch(2)
