"""Data sets of a few small images, in memory and as files."""

import dataclasses
import tarfile
import zipfile

import cv2
import numpy as np

from pipelines import records
from pipelines.datasets.dataset import Taxonomy
from pipelines.examples import read_checked

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
    """The bytes of an image file; colours are red, green, blue and perhaps opacity."""
    if picture.ndim == 3:
        picture = picture[..., [2, 1, 0, 3][: picture.shape[2]]]
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
    return write_splits(folder, {split: examples}, **arguments)


def write_splits(folder, examples, **arguments):
    """Writes a data set; examples by split."""
    arguments = {"workers": 2, "progress": False, **arguments}
    return records.write(folder, "tiny", TAXONOMY, examples, **arguments)


def write_files(images, labels, examples):
    """Writes the files of examples into two folders."""
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for example in examples:
        image, label = example.read()
        (images / f"{example.id}{example.suffix}").write_bytes(image)
        (labels / f"{example.id}.png").write_bytes(label)


def write_pairs(folder, pairs, size=(6, 8)):
    """Writes noise images and given labels below a folder.

    Args:
        folder: `pathlib.Path`.
        pairs: dict from `(image path, label path)` to the labels' array, or bytes to be written as
            they are; an image has the size of its label.
    """
    for number, ((image, label), values) in enumerate(pairs.items()):
        for path in (image, label):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shape = size if isinstance(values, bytes) else values.shape[:2]
        picture = np.random.default_rng(number).integers(0, 256, (*shape, 3)).astype("uint8")
        (folder / image).write_bytes(encode(picture, image[image.rindex(".") :]))
        content = values if isinstance(values, bytes) else encode(values)
        (folder / label).write_bytes(content)


def pack(archive, folder, below=""):
    """Packs a folder's files into a zip or (compressed) tar file, by its name.

    Args:
        archive: `pathlib.Path`.
        folder: `pathlib.Path`.
        below: str, path before those in the archive, with `/` at its end.
    """
    files = {
        below + str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()
    }
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, path in files.items():
                file.write(path, name)
    else:
        with tarfile.open(archive, f"w:{archive.suffix[1:].replace('tar', '')}") as file:
            for name, path in files.items():
                file.add(path, name)


def all_labels(found):
    """Reads and checks a data set: dict from split to dict from id to labels."""
    return {
        split: {e.id: read_checked(e, found.taxonomy).labels for e in examples}
        for split, examples in found.splits.items()
    }
