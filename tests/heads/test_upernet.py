import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.heads.upernet import AdaptiveAveragePooling2D, pooling_matrix, upernet_head
from kseg.layers import ConvNorm, ResizeLike, resize
from kseg.weights import load_torch_state, upernet
from kseg.weights.swin import CONSTANTS, name_map, prepare
from tests.backbones.test_swin import STAGES, swin_of
from tests.golden_file import Golden

CHANNELS = {"c2": 3, "c3": 4, "c4": 5, "c5": 6}
SIZES = {"c2": (9, 7), "c3": (5, 4), "c4": (3, 2), "c5": (2, 1)}


def tiny_head(stages=CHANNELS, **arguments):
    """Only the head, as a model from maps with these channels."""
    features = {key: keras.Input((None, None, c), name=key) for key, c in stages.items()}
    settings = {"channels": 4, "aux_channels": 3, **arguments}
    return keras.Model(features, upernet_head(features, 5, **settings))


def random_maps(batch=2, sizes=SIZES):
    rng = np.random.default_rng(0)
    return {
        key: rng.normal(size=(batch, *sizes[key], channels)).astype("float32")
        for key, channels in CHANNELS.items()
    }


def golden_widths(config):
    return {"channels": config["hidden_size"], "aux_channels": config["auxiliary_channels"]}


def test_hugging_face():
    golden = Golden("upernet_swin_hf")
    config = golden.meta["cfg"]
    backbone = swin_of(config["backbone"])
    outputs = upernet_head(
        backbone.output,
        config["num_labels"],
        pool_sizes=config["pool_scales"],
        **golden_widths(config),
    )
    model = keras.Model(backbone.input, {**backbone.output, **outputs})
    report = load_torch_state(
        model,
        prepare(golden.state),
        lambda name: upernet.name_map(name) or name_map(name.removeprefix("backbone.")),
        ignore=CONSTANTS,
    )
    assert not report.missing
    assert golden.cases == ["", "case1/"]
    lowres = {"logits": "logits_lowres", "aux_logits": "aux_logits_lowres"}
    for case in golden.cases:
        golden.compare(case, model, {**STAGES, **lowres})
        image = golden.array(f"{case}x")
        outputs = model(image)
        for key in lowres:
            golden.check(f"{case}out/{key}", resize(outputs[key], image.shape[1:3]))


def test_hugging_face_on_given_maps():
    golden = Golden("upernet_swin_hf")
    config = golden.meta["cfg"]
    maps = {key: golden.array(f"head/feat/{stage}") for key, stage in STAGES.items()}
    model = tiny_head({key: x.shape[-1] for key, x in maps.items()}, **golden_widths(config))
    heads = {name: x for name, x in golden.state.items() if "_head." in name}
    assert not load_torch_state(model, heads, upernet.name_map).missing
    outputs = model(maps)
    golden.check("head/out/psp", outputs["fpn_c5"])
    golden.check("head/out/logits_lowres", outputs["logits"])
    golden.check("head/out/aux_logits_lowres", outputs["aux_logits"])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_outputs(policy):
    keras.config.set_dtype_policy(policy)
    outputs = tiny_head()(random_maps())
    assert {key: tuple(x.shape) for key, x in outputs.items()} == {
        "logits": (2, 9, 7, 5),
        "aux_logits": (2, 3, 2, 5),
        "features": (2, 9, 7, 4),
        "fpn_c2": (2, 9, 7, 4),
        "fpn_c3": (2, 5, 4, 4),
        "fpn_c4": (2, 3, 2, 4),
        "fpn_c5": (2, 2, 1, 4),
    }
    for key, x in outputs.items():
        assert x.dtype == ("float32" if "logits" in key else policy.removeprefix("mixed_"))
        assert np.isfinite(np.asarray(x, "float32")).all()


def test_sizes_known_at_run_time_only():
    model = tiny_head()
    spec = {key: tf.TensorSpec((None, None, None, c)) for key, c in CHANNELS.items()}
    run = tf.function(lambda maps: model(maps), input_signature=[spec], autograph=False)
    for sizes in (SIZES, {"c2": (30, 41), "c3": (15, 21), "c4": (8, 11), "c5": (4, 6)}):
        maps = random_maps(sizes=sizes)
        expected = model(maps)
        for key, x in run(maps).items():
            np.testing.assert_allclose(x, expected[key], rtol=1e-4, atol=1e-5)


def test_saving(tmp_path):
    model = tiny_head(pool_sizes=(1, 2), align_corners=True)
    model.save(tmp_path / "head.keras")
    loaded = keras.models.load_model(tmp_path / "head.keras")
    maps = random_maps()
    expected = model(maps)
    for key, x in loaded(maps).items():
        np.testing.assert_array_equal(x, expected[key])


def test_gradient_reaches_every_weight():
    model = tiny_head(dropout=0.0)
    maps = random_maps(batch=3)  # The map pooled to one pixel has batch norm, too.
    with tf.GradientTape() as tape:
        outputs = model(maps, training=True)
        loss = sum(tf.reduce_sum(tf.sin(outputs[key])) for key in ("logits", "aux_logits"))
    for weight, gradient in zip(
        model.trainable_weights,
        tape.gradient(loss, [weight.value for weight in model.trainable_weights]),
        strict=True,
    ):
        assert gradient is not None and np.any(gradient), weight.path


def test_arguments_reach_the_layers():
    model = tiny_head(align_corners=True, synchronized_batch_norm=True, pool_sizes=(1, 4))
    resizes = [layer for layer in model.layers if isinstance(layer, ResizeLike)]
    assert len(resizes) == 2 + 3 + 3 and all(layer.align_corners for layer in resizes)
    norms = [layer for layer in model.layers if isinstance(layer, ConvNorm)]
    # Pooled maps, their fusion, laterals, levels, the fusion of these, auxiliary.
    assert len(norms) == 2 + 1 + 3 + 3 + 1 + 1
    assert all(layer.normalization.synchronized for layer in norms)
    assert model.get_layer("upernet_psp1_pool").bins == 4


def test_features_are_those_before_the_dropout():
    model, maps = tiny_head(dropout=0.5, channels=64, aux_channels=64), random_maps()
    once, again = (model(maps, training=True) for _ in range(2))
    for key in once:  # Nothing but the dropout is random.
        assert np.array_equal(once[key], again[key]) == ("logits" not in key), key


def test_pooling_matrix_by_hand():
    third = 1 / 3
    expected = [  # Rows 0 to 1, 1 to 3, 3 to 4 of five.
        [0.5, 0.5, 0.0, 0.0, 0.0],
        [0.0, third, third, third, 0.0],
        [0.0, 0.0, 0.0, 0.5, 0.5],
    ]
    np.testing.assert_allclose(pooling_matrix(5, 3), expected)
    # Fewer rows than bins: they repeat.
    np.testing.assert_allclose(pooling_matrix(2, 3), [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    np.testing.assert_allclose(pooling_matrix(1, 2), [[1.0], [1.0]])


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (12, 13)])
def test_pooling_by_loop(bins, size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    height, width = size
    expected = np.zeros((2, bins, bins, 3))
    for i in range(bins):
        rows = slice(int(np.floor(i * height / bins)), int(np.ceil((i + 1) * height / bins)))
        for j in range(bins):
            columns = slice(int(np.floor(j * width / bins)), int(np.ceil((j + 1) * width / bins)))
            expected[:, i, j] = x[:, rows, columns].mean(axis=(1, 2))
    np.testing.assert_allclose(AdaptiveAveragePooling2D(bins)(x), expected, rtol=1e-5, atol=1e-6)


def test_pooling_sums_in_float32():
    # 2^16 pixels: in bfloat16 the sum would stop at 2^8.
    x = keras.ops.ones((1, 256, 256, 2), dtype="bfloat16")
    pooled = AdaptiveAveragePooling2D(1, dtype="mixed_bfloat16")(x)
    assert pooled.dtype == "bfloat16"
    np.testing.assert_array_equal(np.asarray(pooled, "float32"), np.ones((1, 1, 1, 2)))
