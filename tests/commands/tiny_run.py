"""A run and its data, as small as they get, for tests of what comes after training."""

import dataclasses
import pathlib

import cv2
import keras
import numpy as np
import pytest

from kseg import backbones, config
from kseg.classes import Classes
from kseg.runs import Run, checkpoints
from pipelines import records
from pipelines.datasets.dataset import Taxonomy
from tests.tiny_networks import tiny_backbone

NAMES = ["sky", "road", "car"]
PALETTE = [[70, 130, 180], [128, 64, 128], [0, 0, 142]]
SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A run of a network with a few thousand weights, and its data, for the tests of a module."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "hrnet_w18_small", tiny_backbone)
        yield write_run(folder / "run", write_data(folder / "data"))


@dataclasses.dataclass
class Example:
    id: str
    size: tuple

    @property
    def fingerprint(self):
        return f"{self.id} {self.size}"

    def read(self):
        rng = np.random.default_rng(int(self.id))
        labels = rng.integers(0, 3, self.size).astype("uint8")
        labels[:2] = 255
        return png(rng.integers(0, 256, (*self.size, 3)).astype("uint8")), png(labels)


def png(picture):
    """The bytes of a PNG file."""
    return cv2.imencode(".png", picture)[1].tobytes()


def write_data(folder, names=NAMES, sizes=((40, 56), (33, 47), (40, 56)), dataset="tiny", **more):
    """Writes records; `more` are categories and groups."""
    label_map = {**{i: i for i in range(3)}, 255: 255}
    taxonomy = Taxonomy(names, (PALETTE * 2)[: len(names)], label_map, **more)
    examples = [Example(str(i), size) for i, size in enumerate(sizes)]
    splits = {"val": examples, "test": examples[:1]}
    records.write(folder, dataset, taxonomy, splits, workers=1, progress=False)
    return folder


def scramble(segmenter, rng):
    """Brings weights far from their initial state, with all classes equally likely."""
    for weight in segmenter.weights:
        value = weight * rng.uniform(0.5, 1.5, weight.shape)
        if weight.path.endswith(("beta", "bias", "moving_mean")):
            value = value + rng.normal(0, 0.3, weight.shape)
        weight.assign(value)
    noise = rng.integers(0, 256, (1, 64, 64, 3)).astype("uint8")
    mean = np.mean(segmenter(noise, training=False)["logits"], axis=(0, 1, 2))
    bias = next(w for w in segmenter.weights if w.path == "ocr_logits/bias")
    bias.assign(bias - mean)


def write_run(folder, data, *, precision="float32"):
    """A run with random weights as its best checkpoint, and others as step 7."""
    values = {
        "name": "tiny",
        "model": {
            "backbone": {"name": "hrnet_w18_small"},
            "head": {"name": "ocr", "channels": 16, "key_channels": 8},
        },
        "data": {"dataset": "tiny", "path": str(data), "crop_size": [32, 32], "batch_size": 2},
        "train": {"steps": 10, "precision": precision},
    }
    run = Run.create(folder, config.parse(values, source="tiny"), Classes(NAMES, PALETTE))
    keras.utils.set_random_seed(0)  # Fixtures of modules come before the seeds of their tests.
    segmenter = run.build_segmenter()
    variables = checkpoints.model_variables(segmenter)
    rng = np.random.default_rng(0)
    for file in ("best.npz", "step-00000007.npz"):
        scramble(segmenter, rng)
        checkpoints.save(run.path / "checkpoints" / file, variables, {"step": 7})
    return run
