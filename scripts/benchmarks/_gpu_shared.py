"""Code shared by the cases of `gpu.py`: sizes, synthetic inputs, turns on the GPU, results.

Needs NumPy alone, so that JAX and PyTorch cases read the same inputs.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import statistics
import sys
import time

import numpy as np

# Marks the lines of a case that the driver reads; libraries print what they like in between.
PREFIX = "@gpu "
# Set by the driver for the cases that it starts.
TAKES_TURNS = "KSEG_GPU_TURNS"

STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
METHODS = {
    "ce": [],
    "multi_scale": [("multi_scale", {})],
    "region_contrast": [("region_contrast", {})],
    "contextrast": [("contextrast", {})],
    "pixel_contrast": [("pixel_contrast", {})],
    "pixel_contrast_memory": [("pixel_contrast", {"memory": "both"})],
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of all cases.

    Attributes:
        batch, height, width, classes: of the images and labels.
        dim: int, channels of embeddings and of the features of RegionContrast.
        max_anchors: int, of MS/CS.
        capacity: int, entries of each class in the bank of RegionContrast.
        tiles: ints, rows and columns of the kernel's tiles.
        matrix, copied: int, rows of the square matrices, and bytes of the array that is copied.
        rounds, steps: ints, of a timing: the median of `rounds` means over `steps` calls.
    """

    batch: int = 8
    height: int = 512
    width: int = 1024
    classes: int = 19
    dim: int = 256
    max_anchors: int = 10_000
    capacity: int = 2975
    tiles: tuple = (1024, 2048, 5000, 10_000)
    matrix: int = 8192
    copied: int = 2**32
    rounds: int = 3
    steps: int = 5


PAPERS = Sizes()
TOY = Sizes(
    batch=2,
    height=64,
    width=128,
    classes=5,
    dim=16,
    max_anchors=200,
    capacity=20,
    tiles=(64, 200),
    matrix=256,
    copied=2**20,
    rounds=1,
    steps=1,
)


def die_with_parent():
    """Ends this process when its parent ends for any reason; on Linux only."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def emit(**found):
    """Sends one result to the driver immediately."""
    print(PREFIX + json.dumps(found), flush=True)


@contextlib.contextmanager
def turn():
    """Reserves the GPU for the block: the driver stops all other cases meanwhile."""
    if not os.environ.get(TAKES_TURNS):
        yield
        return
    emit(turn="ask")
    sys.stdin.readline()
    try:
        yield
    finally:
        emit(turn="over")


def median_seconds(function, wait, sizes, warm_up=1):
    """Times calls that may be asynchronous.

    Args:
        function: what is called; its result goes to `wait`.
        wait: function that returns when the result is there.
        sizes: `Sizes`.
        warm_up: int, calls before the clock starts.

    Returns:
        `(seconds, spread)` of a call: the median over the rounds, and their largest less their
        smallest.
    """
    for _ in range(warm_up):
        wait(function())
    means = []
    for _ in range(sizes.rounds):
        start = time.perf_counter()
        for _ in range(sizes.steps):
            result = function()
        wait(result)
        means.append((time.perf_counter() - start) / sizes.steps)
    return statistics.median(means), max(means) - min(means)


def relative_error(found, reference):
    """Computes `|found - reference| / |reference|` in the L2 norm, in float64; propagates NaN."""
    found, reference = np.asarray(found, "float64"), np.asarray(reference, "float64")
    norm = np.linalg.norm(reference)
    return float(np.linalg.norm(found - reference) / (norm if norm else 1.0))


def street_labels(sizes, seed=0):
    """Creates labels in patches, with every class present at each stride, some of them rare.

    Returns:
        uint8 array `(batch, height, width)`; 255 in a strip at the top.
    """
    rng = np.random.default_rng(seed)
    patch = min(64, sizes.height // 4)
    grid = sizes.batch, sizes.height // patch, sizes.width // patch
    shares = 1.0 / (2.0 + np.arange(sizes.classes))
    patches = rng.choice(sizes.classes, size=grid, p=shares / shares.sum()).reshape(-1)
    places = rng.permutation(patches.size)[: 2 * sizes.classes]
    patches[places] = np.arange(len(places)) % sizes.classes
    labels = patches.reshape(grid).repeat(patch, axis=1).repeat(patch, axis=2).astype("uint8")
    labels[:, : sizes.height // 32] = 255
    return labels


def nearest(labels, height, width):
    """Resizes labels to the nearest neighbors: source `floor((i + 0.5) * in / out)` for index i."""
    rows, columns = (
        np.floor((np.arange(size) + 0.5) * source / size).astype(int)
        for size, source in ((height, labels.shape[1]), (width, labels.shape[2]))
    )
    return labels[:, rows][:, :, columns]


def rounded_to_bfloat16(x):
    """Rounds float32 to the nearest bfloat16, ties to even, and keeps it float32."""
    bits = np.ascontiguousarray(x, "float32").view("uint32")
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view("float32")


def unit_rows(x):
    """Creates rows of unit L2 norm."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(labels, classes, height, width, dim, *, seed=0):
    """Creates a map of embeddings that separate the classes slightly, with bfloat16 values.

    Returns:
        float32 array `(batch, height, width, dim)`, of unit norm up to the rounding.
    """
    rng = np.random.default_rng(seed)
    prototypes = unit_rows(rng.standard_normal((classes + 1, dim), dtype="float32"))
    labels = np.minimum(nearest(labels, height, width), classes)
    x = rng.standard_normal((*labels.shape, dim), dtype="float32")
    x *= 1.5 * dim**-0.5
    x += prototypes[labels]
    return rounded_to_bfloat16(unit_rows(x))


def logits(labels, classes, height, width, *, seed=0):
    """Creates logits that are correct at most pixels and wrong in some patches.

    Returns:
        float32 array `(batch, height, width, classes)`.
    """
    rng = np.random.default_rng(seed)
    labels = nearest(labels, height, width)
    patch = max(height // 16, 1)
    other = rng.integers(0, classes, (labels.shape[0], height // patch, width // patch))
    other = other.repeat(patch, axis=1).repeat(patch, axis=2)
    wrong = rng.random((labels.shape[0], height // patch, width // patch)) < 0.2
    predicted = np.where(wrong.repeat(patch, axis=1).repeat(patch, axis=2), other, labels)
    x = rng.standard_normal((*labels.shape, classes), dtype="float32")
    x += 3.0 * (predicted[..., None] == np.arange(classes))
    return x


def method_inputs(method, sizes, seed=0):
    """Creates the inputs of an objective.

    Args:
        method: a key of `METHODS`, not `"ce"`.
        sizes: `Sizes`.
        seed: int.

    Returns:
        dict of float32 arrays by the names of a segmenter's outputs, those with gradients first;
        `logits` last, of the size of the map that is contrasted; and `labels` uint8.
    """
    labels = street_labels(sizes, seed)
    finest = STRIDES["c2"]
    names = {
        "multi_scale": [f"embedding_{s}" for s in STRIDES],
        "contextrast": [f"embedding_{s}" for s in STRIDES],
        "region_contrast": ["features"],
        "pixel_contrast": ["embedding_features"],
        "pixel_contrast_memory": ["embedding_features"],
    }[method]
    found = {}
    for number, name in enumerate(names):
        # The features of RegionContrast are those of a dilated network.
        stride = STRIDES.get(name[-2:], 8 if name == "features" else finest)
        size = sizes.height // stride, sizes.width // stride
        found[name] = embeddings(labels, sizes.classes, *size, sizes.dim, seed=seed + number)
    size = found[names[0]].shape[1:3]
    found["logits"] = logits(labels, sizes.classes, *size, seed=seed)
    return {**found, "labels": labels}


def bank_entries(slots, dim, seed=0):
    """Creates rows of unit norm for a memory bank, float32 `(slots, dim)`."""
    rng = np.random.default_rng(seed)
    return unit_rows(rng.standard_normal((slots, dim), dtype="float32"))
