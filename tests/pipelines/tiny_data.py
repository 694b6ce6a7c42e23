"""Data sets of a few small images, in memory and as files."""

import dataclasses

import cv2
import numpy as np

from pipelines import records
from pipelines.datasets.dataset import Taxonomy

TAXONOMY = Taxonomy(
    class_names=["ground", "wall", "sky"],
    palette=[[90, 60, 30], [200, 180, 160], [80, 140, 220]],
    label_map={0: 0, 1: 1, 2: 2, 7: 255},
)


@dataclasses.dataclass
class ArrayExample:
    """An example from arrays.

    Attributes:
        id: str.
        image: uint8 `(height, width, 3)`.
        labels: array as it is to be stored in the label file.
        suffix: `.png` or `.jpg`, of the image.
    """

    id: str
    image: np.ndarray
    labels: np.ndarray
    suffix: str = ".png"
    reads: int = 0

    @property
    def fingerprint(self):
        return [self.image.tolist(), self.labels.tolist(), self.suffix]

    def read(self):
        self.reads += 1
        return encode(self.image, self.suffix), encode(self.labels)


def encode(picture, suffix=".png"):
    """The bytes of an image file; colours are red, green, blue."""
    if picture.ndim == 3:
        picture = picture[..., ::-1]
    return cv2.imencode(suffix, picture)[1].tobytes()


def noise_example(number, size=(20, 30), **arguments):
    """Random colours and labels."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (*size, 3)).astype("uint8")
    return ArrayExample(
        f"{number:03d}", image, rng.integers(0, 3, size).astype("uint8"), **arguments
    )


def smooth_example(number, size, suffix=".png"):
    """Smooth colours, as JPEG is made for, and labels in blobs."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 5, 3)).astype("uint8")
    image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    return ArrayExample(f"{number:03d}", image, image[..., 0] // 86, suffix)


def solid_examples(count):
    """Images of one colour each: their number."""
    empty = np.zeros((4, 4), "uint8")
    return [ArrayExample(str(i), np.full((4, 4, 3), i, "uint8"), empty) for i in range(count)]


def write(folder, examples, split="train", **arguments):
    """Writes a data set of one split."""
    arguments = {"workers": 2, "progress": False, **arguments}
    return records.write(folder, "tiny", TAXONOMY, {split: examples}, **arguments)


def write_files(images, labels, examples):
    """Writes the files of examples into two folders."""
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for example in examples:
        image, label = example.read()
        (images / f"{example.id}{example.suffix}").write_bytes(image)
        (labels / f"{example.id}.png").write_bytes(label)
