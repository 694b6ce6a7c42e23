"""A data set held in GPU memory: decoded once, cropped inside the training step."""

import concurrent.futures
import dataclasses
import hashlib
import importlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from pipelines.datasets.dataset import IGNORE_LABEL

PAD_COLOR = (124, 116, 104)  # As `pipelines.augment.PAD_COLOR`.
NUM_NUMBERS = 5  # Random numbers of a crop: scale, mirror, (angle,) row, column.
_STRIDE = 32


@dataclasses.dataclass(frozen=True)
class Split:
    """Decoded images of one split, padded at the bottom and the right to one size.

    Attributes:
        ids: list of str.
        images: uint8 array `(images, height, width, 3)`, `PAD_COLOR` beyond an image.
        labels: uint8 array `(images, height, width)`, 255 = ignored.
        sizes: int32 array `(images, 2)`, rows and columns of each image.
    """

    ids: list
    images: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray


def read_data_set(name, source, *, threads=16):
    """Decodes the splits of a data set.

    Args:
        name: str, a module of `pipelines.datasets` whose examples are files.
        source: str, its folder.
        threads: int.

    Returns:
        `(class_names, splits, fingerprint)`: list of str, dict from split to `Split`, and a hash
        of all pixels and labels, str.
    """
    found = importlib.import_module(f"pipelines.datasets.{name}").find(source)
    splits, digest = {}, hashlib.sha256()
    for split, examples in sorted(found.splits.items()):
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            pairs = list(pool.map(lambda example: _decode(example, found.taxonomy), examples))
        sizes = np.array([labels.shape for _, labels in pairs], "int32")
        height, width = sizes.max(axis=0)
        images = np.empty((len(pairs), height, width, 3), "uint8")
        images[...] = PAD_COLOR
        labels = np.full((len(pairs), height, width), IGNORE_LABEL, "uint8")
        for i, (image, label) in enumerate(pairs):
            images[i, : len(image), : image.shape[1]] = image
            labels[i, : len(label), : label.shape[1]] = label
        splits[split] = Split([example.id for example in examples], images, labels, sizes)
        for array in (images, labels, sizes):
            digest.update(array.data)
    return found.taxonomy.class_names, splits, digest.hexdigest()


def _decode(example, taxonomy):
    content, label = example.read()
    image = cv2.imdecode(np.frombuffer(content, "uint8"), cv2.IMREAD_COLOR)[..., ::-1]
    return image, taxonomy.map_labels(example.decode(label))


def buckets(split):
    """Divides a split into parts of similar image size, so that few programs evaluate it.

    Images whose sizes round up to the same multiples of 32 go together; they are padded to the
    largest of them.

    Args:
        split: `Split`.

    Returns:
        list of `(numbers, images, labels)`: int array of the images' numbers in the split, and
        arrays as in `Split`, cut to the part's size.
    """
    rounded = -(-split.sizes // _STRIDE)
    parts = []
    for key in np.unique(rounded, axis=0):
        numbers = np.flatnonzero((rounded == key).all(axis=1))
        height, width = split.sizes[numbers].max(axis=0)
        parts.append(
            (
                numbers,
                split.images[numbers, :height, :width],
                split.labels[numbers, :height, :width],
            )
        )
    return parts


def sample_order(seed, count, samples):
    """Chooses the image of each sample: a new permutation in every epoch.

    Args:
        seed: int.
        count: int, images.
        samples: int.

    Returns:
        int32 array `(samples,)`.
    """
    rng = np.random.default_rng([seed, 20221])
    epochs = [rng.permutation(count) for _ in range(-(-samples // count))]
    return np.concatenate(epochs)[:samples].astype("int32")


def crop(image, labels, size, numbers, *, crop_size, scale_range, flip):
    """Cuts a random crop out of an image, identical to that of `pipelines.loader`.

    (But for JPEG's decoding at a fraction of the size, which the loader uses below scale 0.5, and
    for the decoder.)

    Args:
        image: uint8 `(height, width, 3)`, padded.
        labels: uint8 `(height, width)`.
        size: int32 `(2,)`, rows and columns of the image itself.
        numbers: float32 `(NUM_NUMBERS,)`, uniform in [0, 1).
        crop_size: `(height, width)`.
        scale_range: `(least, most)`.
        flip: bool, mirror where `numbers[1]` is below 0.5.

    Returns:
        `(image, labels)`: uint8 `(*crop_size, 3)` and `crop_size`.
    """
    low, high = scale_range
    scale = low + (high - low) * numbers[0]
    target = jnp.array(crop_size, "int32")
    wanted = jnp.maximum(jnp.round(target / scale).astype("int32"), 1)
    extent = jnp.minimum(wanted, size)
    resized = jnp.round(extent * scale).astype("int32")
    shape = jnp.where(wanted <= size, target, jnp.clip(resized, 1, target))
    room = (size - extent + 1).astype("float32")
    first = jnp.minimum((numbers[3:5] * room).astype("int32"), size - extent)
    mirrored = jnp.logical_and(flip, numbers[1] < 0.5)
    axes = []
    for axis in (0, 1):
        place = jnp.arange(crop_size[axis], dtype="int32")
        inside = place < shape[axis]
        if axis == 1:
            place = jnp.where(mirrored, shape[axis] - 1 - place, place)
        place = jnp.clip(place, 0, shape[axis] - 1)
        nearest = first[axis] + (2 * place + 1) * extent[axis] // (2 * shape[axis])
        center = (place + 0.5) * (extent[axis] / shape[axis]) - 0.5
        below = jnp.floor(center)
        share = center - below
        ends = (
            first[axis] + jnp.clip(below.astype("int32") + more, 0, extent[axis] - 1)
            for more in (0, 1)
        )
        axes.append((inside, nearest, share, *ends))
    (rows, row, row_share, top, bottom), (columns, column, column_share, left, right) = axes
    inside = rows[:, None] & columns[None, :]
    pixels = image.astype("float32")
    sides = []
    for edge in (top, bottom):
        line = pixels[edge]
        before, after = line[:, left], line[:, right]
        sides.append(before + (after - before) * column_share[None, :, None])
    pixels = sides[0] + (sides[1] - sides[0]) * row_share[:, None, None]
    pixels = jnp.where(inside[..., None], jnp.floor(pixels + 0.5), jnp.array(PAD_COLOR, "float32"))
    return (
        pixels.astype("uint8"),
        jnp.where(inside, labels[row][:, column], IGNORE_LABEL).astype("uint8"),
    )


def training_batch(data, indices, key, *, crop_size, scale_range, flip, num_draws):
    """Builds a batch of random crops.

    Args:
        data: dict of device arrays `images`, `labels`, `sizes`, see `Split`.
        indices: int32 `(batch,)`.
        key: JAX random key of the step.
        crop_size, scale_range, flip: as `crop` takes them.
        num_draws: int, random numbers for the distortion.

    Returns:
        dict as `kseg.training.jax_trainer.JaxTrainer.step` takes it.
    """
    numbers = jax.random.uniform(key, (len(indices), NUM_NUMBERS + num_draws), "float32")

    def one(index, numbers):
        return crop(
            *(data[name][index] for name in ("images", "labels", "sizes")),
            numbers[:NUM_NUMBERS],
            crop_size=crop_size,
            scale_range=scale_range,
            flip=flip,
        )

    images, labels = jax.vmap(one)(indices, numbers)
    batch = {"image": images, "label": labels}
    return {**batch, "draws": numbers[:, NUM_NUMBERS:]} if num_draws else batch
