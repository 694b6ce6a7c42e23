import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from kseg import layers
from kseg.backbones import build_backbone, build_efficientnet_lite
from tests import jax_process

TINY = {
    "channels": (4, 6, 8, 10, 12, 14, 16),
    "repeats": (1, 2, 2, 1, 1, 2, 1),
    "stem_channels": 4,
    "top_channels": 24,
}
STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}


def image(*size, batch=1):
    return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype("float32")


def randomise(backbone):
    rng = np.random.default_rng(1)
    for weight in backbone.weights:
        low, high = (0.5, 1.5) if "variance" in weight.path else (-0.5, 0.5)
        weight.assign(rng.uniform(low, high, weight.shape))
    return backbone


# "Params" in the table of the original's README, in millions, with the classifier of 1,000
# classes: 4.7, 5.4 and 6.1.
@pytest.mark.parametrize(
    "number, channels, published",
    [(0, (24, 40, 112), 4.7), (1, (24, 40, 112), 5.4), (2, (24, 48, 120), 6.1)],
)
def test_published_sizes(number, channels, published):
    backbone = build_backbone(f"efficientnet_lite{number}")
    assert backbone.strides == STRIDES
    assert tuple(x.shape[-1] for x in backbone.output.values()) == (*channels, 1280)
    count = sum(np.prod(weight.shape) for weight in backbone.trainable_weights) + 1281 * 1000
    assert abs(count / 1e6 - published) < 0.06
    assert (backbone.mean, backbone.std) == ((127.0,) * 3, (128.0,) * 3)


@pytest.mark.parametrize("synchronized", [False, True])
def test_batch_norms(synchronized):
    backbone = build_efficientnet_lite(**TINY, synchronized_batch_norm=synchronized)
    norms = [
        x.normalization for x in backbone.layers if isinstance(x, layers.NormalizedConvolution)
    ]
    assert len(norms) == 2 + 2 + 9 * 3  # Stem and top, a block without expansion, nine with it.
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-3)}
    assert {norm.synchronized for norm in norms} == {synchronized}


@pytest.mark.parametrize("size", [(128, 96), (75, 41)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_output_contains_the_strided_one(output_stride, size):
    strided = randomise(build_efficientnet_lite(**TINY))
    dilated = build_efficientnet_lite(**TINY, output_stride=output_stride)
    dilated.set_weights(strided.get_weights())
    assert [w.path for w in dilated.weights] == [w.path for w in strided.weights]
    assert dilated.strides == {s: min(stride, output_stride) for s, stride in STRIDES.items()}
    x = image(*size)
    expected, outputs = strided(x), dilated(x)
    for stage, stride in STRIDES.items():
        step = stride // dilated.strides[stage]
        np.testing.assert_allclose(
            outputs[stage][:, ::step, ::step], expected[stage], rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("output_stride", [8, 32])
def test_features_do_not_depend_on_the_implementation(output_stride):
    x = image(64, 75)
    results = []
    for implementation in ("grouped", "shifted"):
        backbone = build_efficientnet_lite(
            **TINY, output_stride=output_stride, depthwise=implementation
        )
        results.append(randomise(backbone)(x))
    for stage, expected in results[0].items():
        np.testing.assert_allclose(results[1][stage], expected, rtol=1e-4, atol=1e-5)


ON_JAX = """
import sys
import jax
import numpy as np
from kseg.backbones import build_efficientnet_lite
from tests.backbones.test_efficientnet_lite import TINY, image

for depthwise in ("grouped", "shifted"):
    backbone = build_efficientnet_lite(**TINY, output_stride=16, depthwise=depthwise)
    backbone.load_weights(sys.argv[1])
    outputs, gradient = jax.value_and_grad(
        lambda x: sum(value.sum() for value in backbone(x).values())
    )(image(40, 33))
    np.savez(
        sys.argv[2] + depthwise, gradient=gradient, total=outputs, **backbone(image(40, 33))
    )
"""


def test_jax_gives_the_same_features(tmp_path):
    backbone = randomise(build_efficientnet_lite(**TINY, output_stride=16))
    backbone.save_weights(tmp_path / "b.weights.h5")
    result = subprocess.run(
        [sys.executable, "-c", ON_JAX, tmp_path / "b.weights.h5", f"{tmp_path}/"],
        cwd=pathlib.Path(__file__).parents[2],
        env=jax_process.environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    expected = backbone(image(40, 33))
    files = [np.load(tmp_path / f"{depthwise}.npz") for depthwise in ("grouped", "shifted")]
    for stage, value in expected.items():
        for file in files:
            np.testing.assert_allclose(file[stage], value, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(files[0]["gradient"], files[1]["gradient"], rtol=1e-3, atol=1e-4)


def test_whole_samples_drop_their_paths_in_training():
    backbone = randomise(build_efficientnet_lite(**TINY, drop_path_rate=0.5))
    rates = {x.name: x.rate for x in backbone.layers if isinstance(x, layers.DropPath)}
    # The blocks that keep their channels are 2, 4 and 8 of ten.
    assert rates == {
        "blocks_1_1_drop_path": pytest.approx(0.1),
        "blocks_2_1_drop_path": pytest.approx(0.2),
        "blocks_5_1_drop_path": pytest.approx(0.4),
    }
    inputs = np.ones((400, 2, 3, 1), "float32")
    drop = layers.DropPath(0.4, seed=3)
    np.testing.assert_array_equal(drop(inputs), inputs)
    outputs = np.asarray(drop(inputs, training=True))
    assert {0.0, np.float32(1 / 0.6)} == set(np.unique(outputs))
    assert (outputs == outputs[:, :1, :1]).all()
    assert abs((outputs[:, 0, 0, 0] > 0).mean() - 0.6) < 0.08  # Three standard errors.
    assert not [
        x for x in build_efficientnet_lite(**TINY, drop_path_rate=0).layers if "drop" in x.name
    ]


def test_saves_and_loads(tmp_path):
    backbone = randomise(build_efficientnet_lite(**TINY, output_stride=16, depthwise="shifted"))
    backbone.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    assert (again.strides, again.mean) == (backbone.strides, backbone.mean)
    assert again.get_layer("blocks_2_0_conv_dw").convolution.implementation == "shifted"
    expected = backbone(image(40, 33))
    for stage, value in again(image(40, 33)).items():
        np.testing.assert_allclose(value, expected[stage], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"output_stride": 4}, "8, 16 or 32. Received: output_stride=4"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ({"channels": (8, 8)}, "seven numbers"),
        ({"depthwise": "fast"}, "implementation='fast'"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_efficientnet_lite(**{**TINY, **arguments})
