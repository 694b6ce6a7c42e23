"""A run and its data, as small as they get, for tests of what comes after training."""

import dataclasses

import cv2
import numpy as np

from kseg import config
from kseg.runs import Classes, Run
from kseg.training import checkpoints
from pipelines import records
from pipelines.datasets.dataset import Taxonomy

NAMES = ["sky", "road", "car"]
PALETTE = [[70, 130, 180], [128, 64, 128], [0, 0, 142]]


@dataclasses.dataclass
class Example:
    id: str
    size: tuple

    def read(self):
        rng = np.random.default_rng(int(self.id))
        labels = rng.integers(0, 3, self.size).astype("uint8")
        labels[:2] = 255
        return png(rng.integers(0, 256, (*self.size, 3)).astype("uint8")), png(labels)


def png(picture):
    """The bytes of a PNG file."""
    return cv2.imencode(".png", picture)[1].tobytes()


def write_data(folder, names=NAMES, sizes=((40, 56), (33, 47), (40, 56))):
    taxonomy = Taxonomy(names, (PALETTE * 2)[: len(names)], {**{i: i for i in range(3)}, 255: 255})
    examples = [Example(str(i), size) for i, size in enumerate(sizes)]
    splits = {"val": examples, "test": examples[:1]}
    records.write(folder, "tiny", taxonomy, splits, workers=1, progress=False)
    return folder


def write_run(folder, data, *, precision="float32"):
    """A run with untrained weights as its best checkpoint, and as step 7."""
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
    variables = checkpoints.model_variables(run.build_segmenter())
    for file in ("best.npz", "step-00000007.npz"):
        checkpoints.save(run.path / "checkpoints" / file, variables, {"step": 7})
    return run
