import re

import keras
import numpy as np
import pytest

from kseg.backbones.swin import PatchMerging, build_swin
from kseg.weights import load_torch_state
from kseg.weights.swin import CLASSIFIER, CONSTANTS, OUTPUT_NORMS, name_map, prepare
from tests.golden_file import Golden


@pytest.mark.parametrize(
    "name, path",
    [
        # Microsoft's code and timm.
        ("patch_embed.proj.weight", "patch_embed/proj/kernel"),
        ("patch_embed.norm.bias", "patch_embed/norm/beta"),
        ("layers.0.blocks.1.norm1.weight", "layers_0_blocks_1/norm1/gamma"),
        (
            "layers.2.blocks.17.attn.relative_position_bias_table",
            "layers_2_blocks_17/attn_relative_position_bias_table",
        ),
        ("layers.2.blocks.17.attn.qkv.weight", "layers_2_blocks_17/attn_qkv/kernel"),
        ("layers.2.blocks.17.attn.proj.bias", "layers_2_blocks_17/attn_proj/bias"),
        ("layers.3.blocks.0.norm2.bias", "layers_3_blocks_0/norm2/beta"),
        ("layers.3.blocks.0.mlp.fc2.weight", "layers_3_blocks_0/mlp_fc2/kernel"),
        (
            "layers.1.downsample.reduction.weight",
            ("layers_1_downsample/reduction/kernel", "layers_0_downsample/reduction/kernel"),
        ),
        (
            "layers.2.downsample.norm.weight",
            ("layers_2_downsample/norm/gamma", "layers_1_downsample/norm/gamma"),
        ),
        ("norm0.weight", "norm0/gamma"),
        ("norm3.bias", "norm3/beta"),
        # Hugging Face.
        ("embeddings.patch_embeddings.projection.weight", "patch_embed/proj/kernel"),
        ("embeddings.norm.weight", "patch_embed/norm/gamma"),
        ("encoder.layers.1.blocks.0.layernorm_before.bias", "layers_1_blocks_0/norm1/beta"),
        (
            "encoder.layers.1.blocks.0.attention.self.relative_position_bias_table",
            "layers_1_blocks_0/attn_relative_position_bias_table",
        ),
        ("encoder.layers.1.blocks.0.attention.self.qkv.bias", "layers_1_blocks_0/attn_qkv/bias"),
        (
            "encoder.layers.1.blocks.0.attention.output.dense.weight",
            "layers_1_blocks_0/attn_proj/kernel",
        ),
        ("encoder.layers.1.blocks.0.layernorm_after.weight", "layers_1_blocks_0/norm2/gamma"),
        ("encoder.layers.1.blocks.0.intermediate.dense.bias", "layers_1_blocks_0/mlp_fc1/bias"),
        ("encoder.layers.1.blocks.0.output.dense.weight", "layers_1_blocks_0/mlp_fc2/kernel"),
        (
            "encoder.layers.0.downsample.norm.bias",
            ("layers_0_downsample/norm/beta",),
        ),
        ("hidden_states_norms.stage4.weight", "norm3/gamma"),
        # mmsegmentation.
        ("patch_embed.projection.bias", "patch_embed/proj/bias"),
        (
            "stages.0.blocks.1.attn.w_msa.relative_position_bias_table",
            "layers_0_blocks_1/attn_relative_position_bias_table",
        ),
        ("stages.0.blocks.1.attn.w_msa.qkv.weight", "layers_0_blocks_1/attn_qkv/kernel"),
        ("stages.0.blocks.1.attn.w_msa.proj.bias", "layers_0_blocks_1/attn_proj/bias"),
        ("stages.0.blocks.1.ffn.layers.0.0.weight", "layers_0_blocks_1/mlp_fc1/kernel"),
        ("stages.0.blocks.1.ffn.layers.1.bias", "layers_0_blocks_1/mlp_fc2/bias"),
        (
            "stages.1.downsample.reduction.weight",
            ("layers_1_downsample/reduction/kernel", "layers_0_downsample/reduction/kernel"),
        ),
        # Arrays without a weight.
        ("norm.weight", None),
        ("layernorm.bias", None),
        ("head.fc.weight", None),
        ("layers.0.blocks.1.attn_mask", None),
        ("layers.0.blocks.1.attn.relative_position_index", None),
        ("encoder.layers.1.blocks.0.attention.self.query.weight", None),
        ("layers.0.blocks.0.norm1.running_mean", None),
        ("layers.1.downsample.norm.running_mean", None),
        ("layer1.0.conv1.weight", None),
    ],
)
def test_name_map(name, path):
    assert name_map(name) == path


@pytest.mark.parametrize(
    "name, patterns",
    [
        ("head.fc.weight", CLASSIFIER),
        ("head.bias", CLASSIFIER),
        ("classifier.weight", CLASSIFIER),
        ("norm.weight", CLASSIFIER),
        ("layernorm.weight", CLASSIFIER),
        ("layers.0.blocks.1.attn_mask", CONSTANTS),
        ("stages.0.blocks.1.attn.w_msa.relative_position_index", CONSTANTS),
    ],
)
def test_leftovers_are_known(name, patterns):
    assert any(re.match(pattern, name) for pattern in patterns)
    assert not any(re.match(pattern, "norm0.weight") for pattern in patterns)


def tiny_swin(**arguments):
    return build_swin(
        embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=2, **arguments
    )


def test_both_positions_of_a_downsampling_layer():
    rng = np.random.default_rng(0)
    shapes = {"reduction.weight": (8, 16), "norm.weight": (16,), "norm.bias": (16,)}
    arrays = {  # Stage i: four times as large in each direction as the stage before.
        f"{i}.downsample.{name}": rng.normal(size=[2**i * side for side in shape])
        for i in range(3)
        for name, shape in shapes.items()
    }
    allow_missing = [r"(?!layers_\d_downsample)"]
    models = tiny_swin(), tiny_swin()
    for model, first in zip(models, (0, 1), strict=True):
        named = {f"layers.{int(name[0]) + first}{name[1:]}": x for name, x in arrays.items()}
        load_torch_state(model, named, name_map, allow_missing=allow_missing)
    for stage in range(3):
        old, new = (model.get_layer(f"layers_{stage}_downsample") for model in models)
        for ours, theirs in zip(old.weights, new.weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(
            old.reduction.kernel, arrays[f"{stage}.downsample.reduction.weight"].T, rtol=1e-6
        )


def test_queries_keys_and_values_are_stacked():
    module = "backbone.encoder.layers.0.blocks.1.attention.self"
    rng = np.random.default_rng(0)
    arrays = {
        f"{module}.{part}.{parameter}": rng.normal(size=shape)
        for part in ("value", "key", "query")
        for parameter, shape in (("weight", (2, 2)), ("bias", (2,)))
    }
    arrays["backbone.embeddings.norm.bias"] = np.zeros(2)
    before = dict(arrays)
    stacked = prepare(arrays)
    assert arrays == before  # The caller's dict is unchanged.
    assert set(stacked) == {
        f"{module}.qkv.weight",
        f"{module}.qkv.bias",
        "backbone.embeddings.norm.bias",
    }
    for parameter in ("weight", "bias"):
        parts = [arrays[f"{module}.{part}.{parameter}"] for part in ("query", "key", "value")]
        np.testing.assert_array_equal(stacked[f"{module}.qkv.{parameter}"], np.concatenate(parts))


def test_an_incomplete_attention_is_left_alone():
    arrays = {"encoder.layers.0.blocks.1.attention.self.query.bias": np.zeros(2)}
    assert prepare(arrays) == arrays


def test_names_of_the_others_need_no_preparation():
    for name in ("swin_official", "swin_timm"):
        state = Golden(name).state
        assert prepare(state) == state


def test_merging_of_mmsegmentation():
    # mmsegmentation joins pixels by `torch.nn.Unfold`: channels first, then rows, then columns.
    channels = 3
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, 6, channels)).astype("float32")
    state = {
        "stages.0.downsample.norm.weight": rng.normal(size=4 * channels),
        "stages.0.downsample.norm.bias": rng.normal(size=4 * channels),
        "stages.0.downsample.reduction.weight": rng.normal(size=(2 * channels, 4 * channels)),
    }
    gamma, beta, reduction = state.values()
    expected = np.zeros((1, 2, 3, 2 * channels))
    for row in range(2):
        for column in range(3):
            patch = x[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            joined = np.array(
                [patch[i, j, c] for c in range(channels) for i in range(2) for j in range(2)]
            )
            z = (joined - joined.mean()) / np.sqrt(joined.var() + 1e-5)
            expected[0, row, column] = reduction @ (z * gamma + beta)
    image = keras.Input((None, None, channels))
    model = keras.Model(image, PatchMerging(name="layers_0_downsample")(image))
    load_torch_state(model, prepare(state), name_map)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-4)


def test_a_classification_checkpoint_leaves_the_output_norms():
    golden = Golden("swin_timm")
    classifier = {"head.fc.weight": np.zeros((10, 64)), "head.fc.bias": np.zeros(10)}
    state = {**golden.state, **classifier}
    settings = golden.meta["kw"]
    backbone = build_swin(
        **{key: settings[key] for key in ("embed_dim", "depths", "num_heads", "window_size")},
        mlp_ratio=settings["mlp_ratio"],
    )
    report = load_torch_state(
        backbone, state, name_map, ignore=CLASSIFIER, allow_missing=OUTPUT_NORMS
    )
    assert sorted(report.missing) == sorted(
        f"norm{i}/{parameter}" for i in range(4) for parameter in ("beta", "gamma")
    )
