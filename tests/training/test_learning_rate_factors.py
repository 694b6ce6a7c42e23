import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.backbones import build_swin
from kseg.config import schema
from kseg.errors import UserError
from kseg.segmenters import build_segmenter
from kseg.training.build import build_optimizer
from kseg.training.learning_rate_factors import (
    LearningRateFactors,
    learning_rate_factors,
    parts_of,
)
from kseg.training.optimizers import SGD, AdamW
from tests import jax_process
from tests.tiny_networks import tiny_backbone

PATHS = {
    "layers_0_a/kernel": "backbone",
    "layers_0_b/kernel": "backbone",
    "layers_1_a/kernel": "backbone",
    "logits/kernel": "head",
    "embedding_c2_0/kernel": "projectors",
}
VALUES = [[[1.0, -2.0]], [[3.0, 4.0]], [[0.5, 0.25]]]
GRADIENTS = [[[0.5, 1.0]], [[1.0, -1.0]], [[2.0, 3.0]]]
FACTORS = {"one": 0.2, "two": 3.0}  # The third: 1.


@pytest.mark.parametrize(
    "factors, expected",
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"backbone": 0.1}, [0.1, 0.1, 0.1, 1, 1]),
        ({"head": 10, "projectors": 5}, [1, 1, 1, 10, 5]),
        ({"backbone": 0.1, "layers_0": 0.5}, [0.5, 0.5, 0.1, 1, 1]),
        ({"layers_0_b": 0.25, "layers_0": 0.5, "layers_": 2}, [0.5, 0.25, 2, 1, 1]),
        ({"backbone": 0}, [0, 0, 0, 1, 1]),
    ],
)
def test_a_longer_name_wins(factors, expected):
    found = learning_rate_factors(PATHS, factors)
    assert list(found) == list(PATHS)
    np.testing.assert_allclose(list(found.values()), expected)


@pytest.mark.parametrize("key", ["heads", "decoder", "layers_2", ""])
def test_unknown_parts_are_refused(key):
    message = rf"Received: '{key}'\. Parts: backbone, head, projectors\. Layers: layers_0_a, "
    with pytest.raises(UserError, match=message):
        learning_rate_factors(PATHS, {key: 0.1})


def test_parts_that_are_not_there_may_be_named():
    assert learning_rate_factors({"logits/kernel": "head"}, {"projectors": 2}) == {
        "logits/kernel": 1.0
    }


def test_parts_of_a_segmenter():
    segmenter = build_segmenter(
        tiny_backbone(),
        "ocr",
        3,
        head_arguments={"channels": 8, "key_channels": 4},
        projections=("c2", "features"),
        embedding_dim=8,
    )
    parts = parts_of(segmenter)
    assert list(parts) == [variable.path for variable in segmenter.trainable_variables]
    counts = {part: list(parts.values()).count(part) for part in set(parts.values())}
    assert counts["backbone"] == 5 * 3  # A kernel and a norm's two for each convolution.
    assert counts["backbone"] + counts["head"] + counts["projectors"] == len(parts)
    for path, part in parts.items():
        stage = path.startswith(("stem", "stage_"))
        assert part == (
            "backbone" if stage else "projectors" if path.startswith("embedding_") else "head"
        )
    assert set(parts_of(tiny_backbone()).values()) == {"backbone"}


def test_layer_decay_of_a_swin():
    swin = build_swin(embed_dim=4, depths=(1, 2, 1, 1), num_heads=(1, 1, 1, 1), window_size=3)
    found = learning_rate_factors(parts_of(swin), {"backbone": 0.5}, layer_decay=0.9)
    # Five blocks; the last is one step from the head, the patches are six.
    steps = {
        "patch_embed": 6,
        "layers_0_blocks_0": 5,
        "layers_0_downsample": 5,
        "layers_1_blocks_0": 4,
        "layers_1_blocks_1": 3,
        "layers_1_downsample": 3,
        "layers_2_blocks_0": 2,
        "layers_2_downsample": 2,
        "layers_3_blocks_0": 1,
        **{f"norm{stage}": 0 for stage in range(4)},
    }
    assert {path.split("/")[0] for path in found} == set(steps)
    for path, factor in found.items():
        assert factor == pytest.approx(0.5 * 0.9 ** steps[path.split("/")[0]])


def test_layer_decay_is_for_swin():
    with pytest.raises(UserError, match="for Swin backbones"):
        learning_rate_factors(PATHS, {}, layer_decay=0.9)


def variables():
    return [
        keras.Variable(np.array(value, "float32"), name=name)
        for name, value in zip(["one", "two", "three"], VALUES, strict=True)
    ]


def apply(optimizer, number=3):
    """Three steps with all variables, or those of one alone."""
    weights = variables()[:number]
    optimizer.build(weights)
    step = tf.function(lambda *g: optimizer.apply(list(g), weights), autograph=False)
    for scale in (1.0, -0.5, 2.0):
        step(*(tf.constant(g) * scale for g in GRADIENTS[:number]))
    return [weight.numpy() for weight in weights]


def factored(cls):
    return type(f"Factored{cls.__name__}", (LearningRateFactors, cls), {})


OPTIMIZERS = {
    "our sgd": (SGD, {"momentum": 0.9, "decay_rate": 0.1}),
    "our plain sgd": (SGD, {"momentum": 0.0, "nesterov": False}),
    "our adamw": (AdamW, {"decay_rate": 0.1}),
    "keras sgd": (factored(keras.optimizers.SGD), {"momentum": 0.9, "weight_decay": 0.1}),
    "keras adamw": (factored(keras.optimizers.AdamW), {"weight_decay": 0.1}),
    "keras lion": (factored(keras.optimizers.Lion), {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_variable_moves_as_with_its_own_optimizer(name):
    cls, arguments = OPTIMIZERS[name]
    factors = {"one": 0.2, "two": 3.0, "three": 1.0}
    together = apply(cls(0.01, learning_rate_factors=factors, **arguments))
    for index, factor in enumerate(factors.values()):
        alone = apply(cls(0.01 * factor, **arguments))
        np.testing.assert_allclose(together[index], alone[index], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_factor_of_zero_keeps_a_variable(name):
    cls, arguments = OPTIMIZERS[name]
    moved = apply(cls(0.01, learning_rate_factors={"two": 0.0}, **arguments))
    np.testing.assert_array_equal(moved[1], VALUES[1])
    assert not np.allclose(moved[0], VALUES[0])


@pytest.mark.parametrize("name", ["our adamw", "keras adamw"])
def test_two_devices_equal_one(mirrored, name):
    cls, arguments = OPTIMIZERS[name]
    expected = apply(cls(0.01, learning_rate_factors=FACTORS, **arguments))
    with mirrored.scope():
        weights = variables()
        optimizer = cls(0.01, learning_rate_factors=FACTORS, **arguments)
        optimizer.build(weights)
    # Ours take gradients that are summed; Keras' sums them over the devices.
    share = 1.0 if "our" in name else 0.5

    @tf.function(autograph=False)
    def step(scale):
        def replica():
            gradients = [tf.constant(g) * scale * share for g in GRADIENTS]
            optimizer.apply(gradients, weights)

        mirrored.run(replica)

    for scale in (1.0, -0.5, 2.0):
        step(tf.constant(scale))
    for weight, goal in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight.numpy(), goal, rtol=1e-5, atol=1e-6)


def test_a_config_builds_its_factors():
    segmenter = build_segmenter(
        tiny_backbone(), "ocr", 3, head_arguments={"channels": 8, "key_channels": 4}
    )
    settings = schema.AdamW(name="adamw", learning_rate_factors={"backbone": 0.2, "ocr_": 4})
    arguments = {"schedule": schema.Poly(name="poly"), "steps": 10, "segmenter": segmenter}
    factors = build_optimizer(settings, **arguments).learning_rate_factors
    assert factors["stem/convolution/kernel"] == 0.2
    ocr = {path for path in factors if path.startswith("ocr_")}
    assert ocr and {factors[path] for path in ocr} == {4.0}
    assert len(factors) == len(segmenter.trainable_variables)
    again = AdamW.from_config(build_optimizer(settings, **arguments).get_config())
    assert dict(again.learning_rate_factors) == dict(factors)
    settings = schema.SGD(name="sgd", learning_rate_factors={"neck": 2})
    with pytest.raises(UserError, match="'neck'"):
        build_optimizer(settings, **arguments)


ON_JAX = """
import numpy as np
import keras
from kseg.training.learning_rate_factors import LearningRateFactors

class Factored(LearningRateFactors, keras.optimizers.AdamW):
    pass

def run(rate, factors):
    weights = [keras.Variable(np.array([[1.0, -2.0]], "float32"), name=n) for n in ("one", "two")]
    optimizer = Factored(rate, weight_decay=0.1, learning_rate_factors=factors)
    optimizer.build(weights)
    gradients = [np.array([[0.5, 1.0]], "float32")] * 2
    values, _ = optimizer.stateless_apply(
        [v.value for v in optimizer.variables], gradients, [w.value for w in weights]
    )
    return values

together = run(0.01, {"one": 0.2})
np.testing.assert_allclose(together[0], run(0.002, {})[0], rtol=1e-6)
np.testing.assert_allclose(together[1], run(0.01, {})[1], rtol=1e-6)
import sys
assert "tensorflow" not in sys.modules
"""


def test_on_jax_without_tensorflow():
    environment = jax_process.environment()
    result = subprocess.run(
        [sys.executable, "-c", ON_JAX],
        cwd=pathlib.Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
