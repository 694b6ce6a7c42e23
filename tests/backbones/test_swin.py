import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.backbones import Backbone
from kseg.backbones import swin as module
from kseg.backbones.swin import (
    LayerNorm,
    PatchEmbedding,
    PatchMerging,
    ShiftMask,
    SwinBlock,
    attend,
    build_swin,
    merge_windows,
    partition_windows,
    relative_position_index,
    scaled_gelu,
    shift_mask,
    standardize,
)
from kseg.weights import load_torch_state
from kseg.weights.swin import CLASSIFIER, CONSTANTS, name_map, prepare
from tests.golden_file import Golden

STAGES = {"c2": "stage1", "c3": "stage2", "c4": "stage3", "c5": "stage4"}


def swin_of(settings, **arguments):
    """Builds the backbone that a golden file's configuration describes."""
    names = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")
    return build_swin(**{name: settings[name] for name in names}, **arguments)


def tiny_swin(**arguments):
    settings = {"embed_dim": 8, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 3}
    return build_swin(**{**settings, **arguments})


def random_images(*shape):
    return np.random.default_rng(0).normal(size=(*shape, 3)).astype("float32")


def randomise(model, scale=0.3):
    """Sets every weight, including biases and norms, to a value that affects the outputs."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        around = 1.0 if weight.path.endswith("gamma") else 0.0
        weight.assign(around + scale * rng.normal(size=weight.shape))
    return model


@pytest.mark.parametrize("name, settings", [("official", "kw"), ("hf", "cfg")])
def test_official_and_hugging_face(name, settings):
    golden = Golden(f"swin_{name}")
    backbone = swin_of(golden.meta[settings])
    report = load_torch_state(backbone, prepare(golden.state), name_map, ignore=CONSTANTS)
    assert not report.missing
    assert all(name.endswith("relative_position_index") for name in report.unused)
    assert golden.cases == ["", "case1/"]
    for case in golden.cases:
        golden.compare(case, backbone, STAGES)


def test_timm():
    golden = Golden("swin_timm")
    backbone = swin_of(golden.meta["kw"], output_norms=False)
    report = load_torch_state(backbone, golden.state, name_map, ignore=CLASSIFIER)
    assert not report.missing
    assert set(report.unused) == {"norm.weight", "norm.bias"}
    for case in golden.cases:
        golden.compare(case, backbone, STAGES)


@pytest.mark.parametrize(
    "name, embed_dim, classifier",
    [  # torchvision's and (Swin-L) timm's networks, of 1000 classes, windows of 7.
        ("swin_t", 96, 28_288_354),
        ("swin_s", 96, 49_606_258),
        ("swin_b", 128, 87_768_224),
        ("swin_l", 192, 196_532_476),
    ],
)
def test_parameters(name, embed_dim, classifier, monkeypatch):
    monkeypatch.setattr(module, "_initializer", keras.initializers.Zeros)  # Drawing them is slow.
    backbone = getattr(module, name)()
    widths = [embed_dim * 2**stage for stage in range(4)]
    # They have a norm and a classifier after the last stage; kseg has a norm after each stage.
    expected = classifier - 2 * widths[3] - (widths[3] + 1) * 1000 + 2 * sum(widths)
    assert sum(np.prod(weight.shape) for weight in backbone.trainable_weights) == expected
    assert [x.shape[-1] for x in backbone.output.values()] == widths
    assert backbone.name == name


@pytest.mark.parametrize("name", ["swin_b_384", "swin_l_384"])
def test_windows_of_384_pixel_images(name):
    backbone = getattr(module, name)(embed_dim=8, num_heads=(1, 2, 2, 4))
    blocks = [layer for layer in backbone.layers if isinstance(layer, SwinBlock)]
    assert [block.window_size for block in blocks] == [12] * (2 + 2 + 18 + 2)
    assert [block.shift for block in blocks] == [0, 6] * 12
    assert blocks[0].position_bias.shape == (23 * 23, 1)


@pytest.mark.parametrize("size", [(96, 64), (75, 61), (33, 130), (5, 9)])
def test_any_size(size):
    backbone = tiny_swin()
    outputs = backbone(random_images(2, *size))
    channels = {"c2": 8, "c3": 16, "c4": 32, "c5": 64}
    assert list(outputs) == list(backbone.strides) == list(channels)
    for name, stride in backbone.strides.items():
        expected = (2, *(-(-extent // stride) for extent in size), channels[name])
        assert tuple(outputs[name].shape) == expected
        assert np.isfinite(outputs[name]).all()
        assert backbone.output[name].shape == (None, None, None, channels[name])


def gradients(backbone, image, training=False):
    """Gradients with respect to every weight, of a sum that layer norms do not make constant."""
    with tf.GradientTape() as tape:
        loss = 0.0
        for x in backbone(image, training=training).values():
            x = tf.sin(tf.cast(x, "float32"))
            loss += tf.reduce_mean(x * tf.linspace(-1.0, 1.0, x.shape[-1]))
    return tape.gradient(loss, [weight.value for weight in backbone.trainable_weights])


def test_sizes_known_at_run_time_only():
    backbone = randomise(tiny_swin(depths=(2, 1, 1, 1)))

    def run(image):
        return [*backbone(image).values(), *gradients(backbone, image)]

    spec = tf.TensorSpec((None, None, None, 3))
    traced = tf.function(run, input_signature=[spec], autograph=False)
    for batch, size in ((1, (24, 48)), (3, (41, 30))):
        image = random_images(batch, *size)
        for x, y in zip(traced(image), run(image), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def test_xla():
    mask = ShiftMask(3, 1)
    block, merging = SwinBlock(2, 3, shift=1), PatchMerging()
    x = tf.constant(random_images(2, 5, 4)[..., [0, 1, 2, 0]])

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = merging(block(x, mask(x)))
            loss = tf.reduce_sum(tf.sin(outputs))
        return outputs, *tape.gradient(loss, [x, block.position_bias.value, block.fc1.kernel.value])

    run(x)
    for layer in (block, merging):
        randomise(layer)
    for y, z in zip(tf.function(run, jit_compile=True)(x), run(x), strict=True):
        np.testing.assert_allclose(y, z, rtol=1e-3, atol=1e-5)


def test_gradient_reaches_every_weight():
    backbone = randomise(tiny_swin(drop_path_rate=0.0))
    result = gradients(backbone, random_images(2, 41, 30), training=True)
    for weight, gradient in zip(backbone.trainable_weights, result, strict=True):
        assert isinstance(gradient, tf.Tensor), weight.path  # Not tf.IndexedSlices.
        if weight.path.endswith("attn_qkv/bias"):
            query, key, value = np.split(np.asarray(gradient), 3)
            assert query.any() and value.any()
            assert not key.any()  # It adds the same number to all scores of a query.
        else:
            assert np.asarray(gradient).any(), weight.path


def test_mixed_precision():
    image = random_images(1, 41, 30)
    backbone = randomise(tiny_swin(), scale=0.1)
    expected = backbone(image)
    keras.config.set_dtype_policy("mixed_bfloat16")
    mixed = tiny_swin(drop_path_rate=0.5)
    mixed.set_weights(backbone.get_weights())
    for name, x in mixed(image).items():
        assert x.dtype == "bfloat16"
        assert np.abs(np.asarray(x, "float32") - expected[name]).max() < 0.1
    result = gradients(mixed, image, training=True)
    for weight, gradient in zip(mixed.trainable_weights, result, strict=True):
        assert weight.dtype == gradient.dtype == "float32"
        assert np.isfinite(gradient).all()


def test_layer_norm_statistics_are_float32():
    # Mean 1, deviation 1. Summed in bfloat16, 2048 channels would stop at 256.
    x = keras.ops.cast(np.tile([0.0, 2.0], 1024)[None], "bfloat16")
    np.testing.assert_array_equal(np.asarray(standardize(x), "float32"), [np.tile([-1, 1], 1024)])


def test_softmax_is_float32():
    # 512 keys of the same score: their weights are 1 / 512, not 1 / 256.
    query = keras.ops.ones((1, 1, 512, 1), dtype="bfloat16")
    outputs = attend(query, query, query, np.zeros((1, 1, 512, 512), "float32"))
    np.testing.assert_allclose(np.asarray(outputs, "float32"), np.ones((1, 1, 512, 1)), rtol=1e-2)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_saving(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    backbone = randomise(tiny_swin(qkv_bias=False, drop_path_rate=0.2))
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")
    assert isinstance(loaded, Backbone)
    assert loaded.strides == backbone.strides
    assert json.dumps(loaded.get_config()) == json.dumps(backbone.get_config())
    backbone.save_weights(tmp_path / "backbone.weights.h5")
    other = tiny_swin(qkv_bias=False)
    other.load_weights(tmp_path / "backbone.weights.h5")
    image = random_images(1, 41, 30)
    expected = backbone(image)
    for model in (loaded, other):
        for name, x in model(image).items():
            np.testing.assert_array_equal(
                np.asarray(x, "float32"), np.asarray(expected[name], "float32")
            )


def test_no_biases_equal_biases_of_zero():
    with_bias, without = tiny_swin(), tiny_swin(qkv_bias=False)
    values = {weight.path: weight.numpy() for weight in with_bias.weights}
    assert not any(weight.path.endswith("qkv/bias") for weight in without.weights)
    for weight in without.weights:
        weight.assign(values[weight.path])
    image = random_images(1, 41, 30)
    expected = with_bias(image)
    for name, x in without(image).items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-5)


def test_every_weight_has_its_own_path():
    paths = [weight.path for weight in tiny_swin().weights]
    assert len(set(paths)) == len(paths)
    assert "layers_0_blocks_1/attn_relative_position_bias_table" in paths


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_heads": (1, 3, 4, 8)}, "16 channels, num_heads=3"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ({"depths": (2, 2, 2)}, r"depths=\(2, 2, 2\)"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_swin(**arguments)


# Stochastic depth.


def test_drop_path_rates_rise_linearly():
    backbone = tiny_swin(drop_path_rate=0.5)
    rates = [layer.drop_path_rate for layer in backbone.layers if isinstance(layer, SwinBlock)]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def one_branch(rate, branch, seed=7):
    """A block of which one branch is zero, and the other not."""
    block = SwinBlock(1, 2, mlp_ratio=1.0, drop_path_rate=rate, seed=seed)
    block.build((None, 2, 2, 4))
    randomise(block)
    for layer in {"attention": (block.fc2,), "mlp": (block.proj, block.qkv)}[branch]:
        layer.kernel.assign(keras.ops.zeros_like(layer.kernel))
        layer.bias.assign(keras.ops.zeros_like(layer.bias))
    return block


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_drop_path_keeps_the_expected_value(branch):
    samples, rate = 4000, 0.25
    block = one_branch(rate, branch)
    x = np.tile(random_images(1, 2, 2)[..., [0, 1, 2, 0]], (samples, 1, 1, 1))
    whole = np.asarray(block(x[:1]) - x[:1])
    np.testing.assert_allclose(block(x[:2], training=False) - x[:2], np.tile(whole, (2, 1, 1, 1)))
    assert np.abs(whole).min() > 1e-3
    factors = np.asarray(block(x, training=True) - x) / whole
    # Each sample is dropped or kept as a whole ...
    kept = np.isclose(factors, 1 / (1 - rate), rtol=1e-3)
    assert np.all(kept | np.isclose(factors, 0.0, atol=1e-3))
    kept = kept.reshape((samples, -1))
    np.testing.assert_array_equal(kept.all(axis=1), kept.any(axis=1))
    # ... and kept at the given rate: within four standard deviations of a binomial variable.
    deviation = np.sqrt(rate * (1 - rate) / samples)
    assert abs(kept[:, 0].mean() - (1 - rate)) < 4 * deviation


def test_drop_path_draws_anew_and_reproducibly():
    x = np.tile(random_images(1, 2, 2)[..., [0, 1, 2, 0]], (64, 1, 1, 1))
    first, second = (one_branch(0.5, "attention") for _ in range(2))
    once, again = np.asarray(first(x, training=True)), np.asarray(first(x, training=True))
    assert not np.array_equal(once, again)
    np.testing.assert_array_equal(second(x, training=True), once)
    np.testing.assert_array_equal(second(x, training=True), again)


def test_replicas_drop_as_one_with_the_global_batch(mirrored):
    x = tf.tile(random_images(1, 2, 2)[..., [0, 1, 2, 0]], (16, 1, 1, 1))
    expected = one_branch(0.5, "attention")(x, training=True)
    assert not np.array_equal(expected[:8], expected[8:])
    with mirrored.scope():
        block = one_branch(0.5, "attention")
    run = tf.function(lambda: mirrored.run(lambda: block(x[:8], training=True)), autograph=False)
    result = np.concatenate(mirrored.experimental_local_results(run()))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


# The parts of a block.


def test_relative_position_index_by_hand():
    # In a 2 x 2 window, offsets (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0) ... are 0, 1, 2 ...
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(relative_position_index(2), expected)


def test_relative_position_index_of_the_original():
    golden = Golden("swin_official")
    expected = golden.state["layers.0.blocks.0.attn.relative_position_index"]
    np.testing.assert_array_equal(relative_position_index(7), expected)


@pytest.mark.parametrize("size", [(6, 9), (7, 4), (2, 1)])
@pytest.mark.parametrize("window, shift", [(3, 1), (4, 2)])
def test_shift_mask_by_loop(size, window, shift):
    mask = np.asarray(shift_mask(*size, window, shift))
    rows, columns = (-(-side // window) for side in size)
    positions = list(itertools.product(range(window), repeat=2))
    for n, (a, b) in enumerate(itertools.product(range(rows), range(columns))):
        for (i, (r, c)), (j, (s, d)) in itertools.product(enumerate(positions), repeat=2):
            # The offset between the two positions before the shift.
            vertical, horizontal = (
                (first + shift) % extent - (second + shift) % extent
                for first, second, extent in (
                    (a * window + r, a * window + s, rows * window),
                    (b * window + c, b * window + d, columns * window),
                )
            )
            together = (vertical, horizontal) == (r - s, c - d)
            assert mask[n, i, j] == (0.0 if together else -100.0)
    assert mask.shape == (rows * columns, window**2, window**2)


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2)])
@pytest.mark.parametrize("shift", [0, 1])
def test_windows_by_loop(size, shift):
    window, groups = 2, 3
    height, width = size
    x = np.random.default_rng(0).normal(size=(2, *size, groups * 4)).astype("float32")
    windows = np.asarray(partition_windows(x, window, shift, groups))
    rows, columns = -(-height // window), -(-width // window)
    assert windows.shape == (groups, 2 * rows * columns, window**2, 4)
    for g, n, a, b, r, c in itertools.product(
        range(groups), range(2), range(rows), range(columns), range(window), range(window)
    ):
        row = (a * window + r + shift) % (rows * window)
        column = (b * window + c + shift) % (columns * window)
        inside = row < height and column < width
        expected = x[n, row, column, 4 * g : 4 * g + 4] if inside else np.zeros(4)
        result = windows[g, (n * rows + a) * columns + b, r * window + c]
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(merge_windows(windows, window, shift, (2, *size)), x)


def test_patch_embedding_pads_at_the_end():
    layer = PatchEmbedding(6)
    image = random_images(1, 5, 7)
    padded = np.pad(image, ((0, 0), (0, 3), (0, 1), (0, 0)))
    np.testing.assert_array_equal(layer(image), layer(padded))
    assert layer(image).shape == (1, 2, 2, 6)


def test_patch_merging_by_hand():
    # The reduction picks joined channels 0, 2, 4, 6 and so shows their order; an odd column of
    # zeros follows.
    layer = PatchMerging()
    x = np.array([[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]])[None, :, :, None] * [1.0, -1.0]
    layer.build(x.shape)
    layer.reduction.kernel.assign(np.eye(8)[:, ::2])
    joined = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, 0.0]])
    # The mean of both signs is 0.
    deviation = np.sqrt((joined**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer(x.astype("float32"))[0, 0], joined / deviation, rtol=1e-5)


def test_layer_norm_by_hand():
    layer = LayerNorm()
    layer.build((None, 2))
    layer.gamma.assign([2.0, 3.0])
    layer.beta.assign([0.5, -0.5])
    # Standard deviation sqrt(4e-5 + 1e-5), of which the epsilon is a part.
    z = np.sqrt(4e-5 / 5e-5)
    x = np.array([[1.0 - np.sqrt(4e-5), 1.0 + np.sqrt(4e-5)]], "float32")
    np.testing.assert_allclose(layer(x), [[0.5 - 2 * z, -0.5 + 3 * z]], rtol=1e-4)


def check_gradients(function, plain, *arguments):
    """Compares outputs and gradients with those that TensorFlow derives."""
    arguments = [tf.constant(x, "float32") for x in arguments]
    result = []
    for f in (function, plain):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            outputs = f(*arguments)
            loss = tf.reduce_sum(tf.sin(outputs + tf.range(float(outputs.shape[-1]))))
        result.append([outputs, *tape.gradient(loss, arguments)])
    for x, y in zip(*result, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_standardize_as_tensorflow_derives_it():
    def plain(x):
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-5)

    x = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 5, 6))
    x[0, 0] = 1.0  # No variance at all.
    check_gradients(standardize, plain, x)


def test_scaled_gelu_as_tensorflow_derives_it():
    def plain(u):
        return tf.nn.gelu(u * np.sqrt(2.0), approximate=False) * np.sqrt(2.0)

    # exp(u^2) is infinite at 10.
    check_gradients(scaled_gelu, plain, np.append(np.linspace(-4.0, 4.0, 41), [-10.0, 0.0, 10.0]))


@pytest.mark.parametrize("windows", [1, 3])
def test_attend_as_tensorflow_derives_it(windows):
    def plain(query, key, value, bias):
        scores = tf.einsum("hnqd,hnkd->hnqk", query, key)
        weights = tf.nn.softmax(scores + tf.tile(bias, (1, scores.shape[1] // windows, 1, 1)))
        return tf.einsum("hnqk,hnkd->hnqd", weights, value)

    rng = np.random.default_rng(0)
    parts = rng.normal(size=(3, 2, 6, 4, 5))  # Two heads, two images of three windows.
    check_gradients(attend, plain, *parts, rng.normal(size=(2, windows, 4, 4)))
