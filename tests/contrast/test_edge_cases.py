"""Edge cases of a batch, for every objective: terms and gradients stay finite and plausible."""

import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.contextrast import Contextrast
from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.pixel_contrast import PixelContrast
from kseg.contrast.region_contrast import RegionContrast

SCALES = {"c2": 1.0, "c3": 0.5}
OBJECTIVES = {
    "multi_scale": lambda n: MultiScaleContrast(
        n, scale_weights=SCALES, cross_scale_pairs=[("c2", "c3")], min_count=1
    ),
    "region_contrast": lambda n: RegionContrast(n, capacity=3),
    "region_contrast, batch": lambda n: RegionContrast(n, scope="batch"),
    "pixel_contrast": lambda n: PixelContrast(n, min_count=1),
    "pixel_contrast, memory": lambda n: PixelContrast(
        n, min_count=1, memory="both", pixel_capacity=5, region_capacity=3, pixels_per_image=2
    ),
    "contextrast": lambda n: Contextrast(
        n, layer_weights=SCALES, reference="c3", max_samples=60, min_negatives=4
    ),
}
# Name -> (batch, classes, whether there is something to contrast).
CASES = {
    "usual": (2, 3, True),
    "all ignored": (2, 3, False),
    "one class": (2, 3, False),
    "a class in one image only": (2, 3, True),
    "batch of 1": (1, 3, True),
    "150 classes": (2, 150, True),
    "all right": (2, 3, True),
    "all wrong": (2, 3, True),
    "bfloat16": (2, 3, True),
    "float16": (2, 3, True),
}


def example(case, seed):
    batch, num_classes, _ = CASES[case]
    rng = np.random.default_rng(seed)
    small = rng.integers(0, num_classes, (batch, 8, 12))
    if case == "all ignored":
        small[:] = 255
    if case == "one class":
        small[:] = 1
    if case == "a class in one image only":
        small[1][small[1] == 2] = 0
    logits = rng.normal(size=(batch, 8, 12, num_classes))
    if case in ("all right", "all wrong"):
        guess = small if case == "all right" else (small + 1) % num_classes
        logits = 9.0 * np.eye(num_classes)[guess]
    outputs = {"logits": logits, "features": rng.normal(size=(batch, 8, 12, 6))}
    for stage, size in (("c2", (8, 12)), ("c3", (4, 6)), ("features", (8, 12))):
        z = rng.normal(size=(batch, *size, 6))
        outputs[f"embedding_{stage}"] = z / np.linalg.norm(z, axis=-1, keepdims=True)
    dtype = case if case in ("bfloat16", "float16") else "float32"
    return {name: tf.constant(x, dtype) for name, x in outputs.items()}, small.repeat(
        2, axis=1
    ).repeat(2, axis=2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_and_gradients(name, case):
    objective = OBJECTIVES[name](CASES[case][1])
    objective.prepare(example(case, 0)[0])
    total = 0.0
    for step in range(3):  # With an empty bank, a filled one, and one that just wrapped around.
        outputs, labels = example(case, step)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            terms, to_store = objective.contrast(outputs, labels)
            loss = tf.add_n(list(terms.values()))
        for gradient in tape.gradient(loss, list(outputs.values())):
            assert gradient is None or np.isfinite(np.asarray(gradient, "float32")).all()
        assert loss.dtype == "float32"
        assert np.isfinite(float(loss))
        total += float(loss)
        objective.remember(to_store)
    # In a single image a class has one center, so that no class has two.
    alone = (name, case) == ("region_contrast, batch", "batch of 1")
    assert (total > 0) == (CASES[case][2] and not alone)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_call_leaves_no_trace(name):
    objective = OBJECTIVES[name](3)
    outputs, labels = example("usual", 0)
    objective.prepare(outputs)
    before = [np.array(w) for w in objective.weights]
    objective(outputs, labels)
    for weight, value in zip(objective.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
