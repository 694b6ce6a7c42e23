"""Augmentations that mix the images of a batch: CutMix, and copy-paste of rare classes.

Labels move with the pixels; ignored pixels are moved like all others, and stay ignored. Each is a
pure function of a batch and a seed.
"""

import tensorflow as tf


def cut_mix(batch, seed, *, probability=0.5, alpha=1.0):
    """Replaces a rectangle of some images by the same rectangle of another image of the batch.

    The share of the image that stays is drawn from a Beta(alpha, alpha) distribution; the rectangle
    has the image's proportions and lies anywhere within it.

    Source: Yun et al., "CutMix", ICCV 2019, Sec. 3.1; with labels of pixels as in French et al.,
    BMVC 2020.

    Args:
        batch: dict with `image`, uint8 `(batch, height, width, 3)`, and `label`, uint8 `(batch,
            height, width)`, both of static shape; other entries are left alone.
        seed: int32 `(2,)`.
        probability: float in [0, 1], the share of images that get a rectangle.
        alpha: float > 0: 1 for a uniform share; smaller for shares near 0 and 1.

    Returns:
        dict as `batch`.
    """
    count, height, width = batch["label"].shape
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    kept, taken = tf.unstack(tf.random.stateless_gamma((2, count), seeds[0], alpha))
    side = tf.sqrt(taken / tf.maximum(kept + taken, 1e-20))[:, None]
    size = tf.constant([height, width], "float32")
    extent = tf.round(side * size)
    place = tf.random.stateless_uniform((count, 2), seeds[1])
    first = tf.minimum(tf.floor(place * (size - extent + 1.0)), size - extent)
    inside = [
        (tf.range(length, dtype="float32") >= first[:, axis, None])
        & (tf.range(length, dtype="float32") < (first + extent)[:, axis, None])
        for axis, length in enumerate((height, width))
    ]
    chosen = tf.random.stateless_uniform((count,), seeds[2]) < probability
    mask = inside[0][:, :, None] & inside[1][:, None, :] & chosen[:, None, None]
    return _paste(batch, _partners(count, seeds[3]), mask)


def copy_paste(batch, seed, *, classes, probability=0.5):
    """Pastes all pixels of some classes from another image of the batch, at the same positions.

    Source: Ghiasi et al., "Simple copy-paste is a strong data augmentation method for instance
    segmentation", CVPR 2021, here with the pixels of classes in place of instances, unscaled.

    Args:
        batch, seed: as for `cut_mix`.
        classes: list of int, mostly rare ones.
        probability: float in [0, 1], the share of images that are pasted on.

    Returns:
        dict as `batch`.
    """
    count = batch["label"].shape[0]
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    partners = _partners(count, seeds[0])
    chosen = tf.random.stateless_uniform((count,), seeds[1]) < probability
    pasted = tf.reduce_any([tf.range(256) == number for number in classes], axis=0)
    mask = tf.gather(pasted, tf.cast(tf.gather(batch["label"], partners), "int32"))
    return _paste(batch, partners, mask & chosen[:, None, None])


def _partners(count, seed):
    """Returns another image for each image of a batch, each once; int32 `(count,)`."""
    order = tf.argsort(tf.random.stateless_uniform((count,), seed))
    return tf.scatter_nd(order[:, None], tf.roll(order, 1, axis=0), (count,))


def _paste(batch, partners, mask):
    """Takes pixels and labels of the partners where the mask is True."""
    image, label = batch["image"], batch["label"]
    return {
        **batch,
        "image": tf.where(mask[..., None], tf.gather(image, partners), image),
        "label": tf.where(mask, tf.gather(label, partners), label),
    }
