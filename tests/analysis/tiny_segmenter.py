"""A segmenter that is easy to compute by hand."""

import keras
import numpy as np


def build(bias=(0.0, 0.1, -0.2)):
    """Means of 4 x 4 blocks, their squares as features, one linear layer on them.

    Returns:
        `(segmenter, kernel)`: outputs `mean`, `features` and `logits` at stride 4; float32
        `(3, 3)`, channels to classes.
    """
    image = keras.Input((None, None, 3))
    mean = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 255)(image))
    features = keras.ops.square(mean)
    classifier = keras.layers.Conv2D(3, 1, name="logits")
    outputs = {"mean": mean, "features": features, "logits": classifier(features)}
    segmenter = keras.Model(image, outputs)
    kernel = np.array([[2, -1, 0.5], [-1, 2, 0.1], [0.3, -0.4, 1.5]], "float32")
    classifier.set_weights([kernel[None, None], np.array(bias, "float32")])
    return segmenter, kernel


def images(count, height=24, width=32, seed=0):
    """Random colors in blocks of 4 x 4, and labels of the same form, some of them ignored."""
    rng = np.random.default_rng(seed)
    blocks = np.ones((1, 4, 4), int)
    size = (count, height // 4, width // 4)
    colors = [np.kron(rng.integers(0, 256, size), blocks) for _ in range(3)]
    labels = rng.integers(0, 3, size)
    labels[:, 0, 0] = 255
    return np.stack(colors, axis=-1).astype("uint8"), np.kron(labels, blocks).astype("uint8")
