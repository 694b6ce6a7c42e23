"""Every objective and loss with its gradient, compiled, on the backend that Keras has here.

    KERAS_BACKEND=jax python -m tests.on_backend FILE.npz

Chance is taken out: what would be drawn comes from NumPy, in the order of the draws.
"""

import contextlib
import itertools
import os
import sys
import unittest.mock

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
from keras import ops

from kseg.contrast import tiles
from kseg.contrast.contextrast import Contextrast
from kseg.contrast.info_nce import info_nce
from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.pixel_contrast import PixelContrast
from kseg.contrast.region_contrast import RegionContrast
from kseg.contrast.regions import region_centers
from kseg.losses.affinity import affinity_loss
from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.dice import dice_loss
from kseg.losses.focal import focal_loss
from kseg.losses.lovasz import lovasz_softmax
from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.reduction import global_mean, global_ratio
from kseg.losses.rmi import rmi_loss

CLASSES = 3
SCALES = {"c2": 1.0, "c3": 0.5}


def example(seed):
    """Float inputs by name, and labels."""
    rng = np.random.default_rng(seed)
    outputs = {
        "logits": rng.normal(size=(2, 8, 12, CLASSES)),
        "features": rng.normal(size=(2, 8, 12, 5)),
    }
    for stage, size in (("c2", (8, 12)), ("c3", (4, 6)), ("features", (8, 12))):
        z = rng.normal(size=(2, *size, 6))
        outputs[f"embedding_{stage}"] = z / np.linalg.norm(z, axis=-1, keepdims=True)
    labels = np.kron(rng.integers(0, CLASSES, (2, 4, 6)), np.ones((4, 4), int)).astype("int32")
    labels[:, :3, :5] = 255
    return {name: x.astype("float32") for name, x in outputs.items()}, labels


def objectives():
    """Objectives by name."""
    multi_scale = {"scale_weights": SCALES, "cross_scale_pairs": [("c2", "c3")], "min_count": 1}
    pixel = {"min_count": 1, "pixel_capacity": 7, "region_capacity": 3, "pixels_per_image": 4}
    contextrast = {"layer_weights": SCALES, "reference": "c3", "min_negatives": 9}
    return {
        "multi_scale": MultiScaleContrast(CLASSES, **multi_scale),
        "region_contrast": RegionContrast(CLASSES, capacity=5),
        "region_contrast, mean": RegionContrast(
            CLASSES, capacity=5, reduction="mean", storage="bfloat16", centers="average"
        ),
        "region_contrast, batch": RegionContrast(CLASSES, scope="batch", centers="hard"),
        "pixel_contrast": PixelContrast(CLASSES, max_views=6, **pixel),
        "pixel_contrast, both": PixelContrast(CLASSES, memory="both", **pixel),
        "pixel_contrast, drawn": PixelContrast(
            CLASSES, memory="both", max_keys=12, stage="c3", **pixel
        ),
        "contextrast": Contextrast(CLASSES, **contextrast),
        "contextrast, random": Contextrast(
            CLASSES, negatives="random", max_samples=30, shared_layers=(), **contextrast
        ),
    }


def losses():
    """Functions of (labels, outputs) to a scalar, by name."""
    weights = (0.5, 1.0, 2.0)

    def ring(outputs, labels, **arguments):
        z, y = (
            ops.reshape(outputs["embedding_c2"], (-1, 6)),
            ops.reshape(labels[:, ::2, ::2], (-1,)),
        )
        keys, key_labels = ops.reshape(outputs["embedding_c3"], (-1, 6)), np.arange(48) % CLASSES
        y = ops.where(y == 255, -1, y)
        loss, valid = info_nce(z, y, keys, key_labels.astype("int32"), block_size=32, **arguments)
        return ops.sum(loss) / ops.sum(valid)

    def centers(outputs, labels, mode):
        rows, classes = region_centers(outputs["features"], outputs["logits"], labels, mode=mode)
        slope = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
        return ops.sum(ops.where(classes[:, None] >= 0, rows * slope, 0.0))

    return {
        "cross_entropy": lambda y, x: global_ratio(*cross_entropy(y, x["logits"])),
        "cross_entropy, weights": lambda y, x: global_ratio(
            *cross_entropy(y, x["logits"], class_weights=weights, label_smoothing=0.1)
        ),
        "ohem": lambda y, x: global_mean(
            *ohem_cross_entropy(y, x["logits"], threshold=0.1, min_kept=50)
        ),
        "lovasz": lambda y, x: lovasz_softmax(y, x["logits"]),
        "dice": lambda y, x: dice_loss(y, x["logits"], smooth=1.0, class_weights=weights),
        "focal": lambda y, x: global_ratio(*focal_loss(y, x["logits"], class_weights=weights)),
        "rmi": lambda y, x: rmi_loss(y, x["logits"], downsampling=2),
        "affinity": lambda y, x: affinity_loss(y, x["logits"], distances=(2,)),
        "info_nce": lambda y, x: ring(x, y),
        "info_nce, sum": lambda y, x: ring(x, y, reduction="sum"),
        "info_nce, cold": lambda y, x: ring(x, y, temperature=0.01),
        "info_nce, bank": lambda y, x: ring(x, y, detach_keys=True),
        "info_nce, bank, sum": lambda y, x: ring(x, y, detach_keys=True, reduction="sum"),
        **{
            f"region_centers, {mode}": lambda y, x, mode=mode: centers(x, y, mode)
            for mode in ("weighted", "hard", "average")
        },
    }


def without_chance():
    """Draws of `keras.random` come from NumPy, the n-th draw from seed n."""
    number = itertools.count()

    def rng():
        return np.random.default_rng(next(number))

    def randint(shape, minval, maxval, dtype="int32", seed=None):
        return ops.convert_to_tensor(rng().integers(minval, maxval, shape).astype(dtype))

    def uniform(shape, minval=0.0, maxval=1.0, dtype="float32", seed=None):
        return ops.convert_to_tensor(rng().uniform(minval, maxval, shape).astype("float32"))

    return unittest.mock.patch.multiple(keras.random, randint=randint, uniform=uniform)


@contextlib.contextmanager
def tiles_of_an_accelerator(largest=1000):
    """Has the objectives cut their tiles as on a GPU, of which few similarities fit one."""
    with unittest.mock.patch.multiple(
        tiles, on_accelerator=lambda: True, _LARGEST_TILE=largest, _HELD_ON_ACCELERATOR=largest
    ):
        yield


def value_and_gradient(function, outputs, labels):
    """`(value, gradients)` of a function of (outputs, labels), compiled; zeros for no gradient."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(jax.value_and_grad(lambda x: function(x, labels)))(outputs)
    import tensorflow as tf

    @tf.function(autograph=False)
    def compiled(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x, labels)
        return value, tape.gradient(value, x, unconnected_gradients="zero")

    return compiled({name: tf.constant(x) for name, x in outputs.items()})


def results():
    """Arrays by name: values, gradients, and what memories hold."""
    found = {}

    def add(name, value, gradients):
        found[name] = np.asarray(value, "float32")
        for key, gradient in gradients.items():
            found[f"{name}: d/d {key}"] = np.asarray(gradient)

    (first, first_labels), (outputs, labels) = example(1), example(0)
    for name, loss in losses().items():
        add(name, *value_and_gradient(lambda x, y, loss=loss: loss(y, x), outputs, labels))
    for name, objective in objectives().items():
        objective.prepare(first)
        with without_chance():
            objective.remember(objective.contrast(first, first_labels)[1])

            def total(x, y, objective=objective):
                return sum(objective.contrast(x, y)[0].values())

            add(name, *value_and_gradient(total, outputs, labels))
        if objective.bank is not None:
            for weight in objective.bank.weights:
                value = ops.convert_to_numpy(ops.cast(weight, "float32"))
                found[f"{name}: {weight.name}"] = value
    return found


if __name__ == "__main__":
    with tiles_of_an_accelerator():  # Other tiles than in the process that it is compared with.
        found = results()
    np.savez(sys.argv[1], backend=np.array(keras.backend.backend()), **found)
