"""XLA compiles every objective and loss on TensorFlow, with the results of the plain graph."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.contextrast import Contextrast
from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.pixel_contrast import PixelContrast
from kseg.contrast.region_contrast import RegionContrast
from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.lovasz import lovasz_softmax
from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.reduction import global_mean, global_ratio

NUM_CLASSES, BATCH, HEIGHT, WIDTH, DIM = 5, 2, 32, 64, 8
OBJECTIVES = {
    # One term of each kind: XLA takes seconds to compile each.
    "multi_scale": lambda: MultiScaleContrast(
        NUM_CLASSES,
        max_anchors=60,
        scale_weights={"c2": 1.0, "c3": 0.0},
        cross_scale_pairs=(("c2", "c3"),),
    ),
    "region_contrast": lambda: RegionContrast(NUM_CLASSES, capacity=7),
    "region_contrast_batch": lambda: RegionContrast(NUM_CLASSES, scope="batch"),
    "contextrast": lambda: Contextrast(
        NUM_CLASSES,
        layer_weights={"c2": 0.5, "c4": 1.0},
        reference="c4",
        max_samples=64,
        min_negatives=4,
    ),
    "pixel_contrast": lambda: PixelContrast(NUM_CLASSES, max_anchors=40),
    "pixel_contrast_memory": lambda: PixelContrast(
        NUM_CLASSES, memory="both", pixel_capacity=9, region_capacity=6, max_keys=40
    ),
}
LOSSES = {
    "cross_entropy": lambda x, y: global_ratio(*cross_entropy(y, x)),
    "ohem": lambda x, y: global_mean(*ohem_cross_entropy(y, x, min_kept=100)),
    "lovasz": lambda x, y: lovasz_softmax(y, x),
}


def unit(shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape).astype("float32")
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def labels_and_logits():
    rng = np.random.default_rng(0)
    patches = rng.integers(0, NUM_CLASSES, (BATCH, HEIGHT // 8, WIDTH // 8))
    labels = patches.repeat(8, axis=1).repeat(8, axis=2).astype("uint8")
    labels[:, :2] = 255
    logits = rng.standard_normal((BATCH, HEIGHT // 4, WIDTH // 4, NUM_CLASSES)).astype("float32")
    own = labels[:, 2::4, 2::4, None] == np.arange(NUM_CLASSES)
    return labels, logits + 2.0 * own.astype("float32")


def fixed_uniform(shape, **_):
    return tf.constant(np.random.default_rng(len(shape)).random(shape), "float32")


def two_steps(name, jit_compile):
    """Terms and gradients of two steps, between which the bank is written."""
    keras.utils.set_random_seed(0)
    labels, logits = labels_and_logits()
    strides = {"features": 4, "c2": 4, "c3": 8, "c4": 16, "c5": 32}
    objective = OBJECTIVES[name]()
    keys = [f"embedding_{stage}" for stage in objective.stages] or ["features"]
    maps = {
        key: unit((BATCH, HEIGHT // strides[s], WIDTH // strides[s], DIM), i)
        for i, (key, s) in enumerate((key, key.split("_")[-1]) for key in keys)
    }
    objective.prepare(maps)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def step(maps, logits, labels):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            terms, to_store = objective.contrast({**maps, "logits": logits}, labels)
            total = sum(terms.values())
        gradients = tape.gradient(total, maps)
        objective.remember(to_store)
        return terms, gradients

    maps = {key: tf.constant(x) for key, x in maps.items()}
    steps = [step(maps, tf.constant(logits), tf.constant(labels)) for _ in range(2)]
    bank = getattr(objective, "bank", None)
    return steps, [] if bank is None else [bank.entries.numpy(), bank.count.numpy()]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name, monkeypatch):
    # With the same seed XLA draws other floats than TensorFlow's kernels, hence other samples.
    monkeypatch.setattr(keras.random, "uniform", fixed_uniform)
    plain, bank = two_steps(name, False)
    compiled, compiled_bank = two_steps(name, True)
    for one, two in zip(tf.nest.flatten(plain), tf.nest.flatten(compiled), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
    assert any(np.abs(x).max() > 0 for x in tf.nest.flatten(plain[1][1]))
    for one, two in zip(bank, compiled_bank, strict=True):
        assert np.any(one)
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, dtype):
    labels, logits = labels_and_logits()

    def value_and_gradient(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = LOSSES[name](logits, tf.constant(labels))
        return loss, tape.gradient(loss, logits)

    results = [
        tf.function(value_and_gradient, jit_compile=jit_compile, autograph=False)(
            tf.cast(logits, dtype)
        )
        for jit_compile in (False, True)
    ]
    # Two roundings of gradients to bfloat16 differ by a unit in the last of its 8 bits.
    tolerance = 2**-7 if dtype == "bfloat16" else 1e-5
    for plain, compiled in zip(*results, strict=True):
        plain, compiled = (tf.cast(x, "float64").numpy() for x in (plain, compiled))
        assert np.abs(plain).max() > 0
        np.testing.assert_allclose(compiled, plain, rtol=tolerance, atol=1e-7)
