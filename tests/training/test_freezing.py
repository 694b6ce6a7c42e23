import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import config
from kseg.backbones.resnet import build_resnet
from kseg.layers import ConvNorm
from kseg.segmenters import build_segmenter
from kseg.training import loop
from kseg.training.freezing import freeze
from kseg.training.optimizers import SGD
from kseg.training.trainer import SegmentationTrainer, build_step
from tests.tiny_networks import STAGES, tiny_backbone
from tests.training.tiny import (
    create_quick_run,
    evaluation_batches,
    tiny_network,  # noqa: F401 - a fixture.
    training_batches,
)

pytestmark = pytest.mark.usefixtures("tiny_network")


def tiny_segmenter(backbone=None):
    return build_segmenter(
        backbone or tiny_backbone(),
        "ocr",
        3,
        head_arguments={"channels": 8, "key_channels": 4},
        projections=("c2",),
        embedding_dim=8,
    )


def frozen_layers(segmenter):
    trained = {variable.path for variable in segmenter.trainable_variables}
    of_all = [v.path for v in segmenter.weights if "moving_" not in v.path]
    return {path.split("/")[0] for path in of_all if path not in trained}


def test_a_stage_is_frozen_with_all_that_it_is_computed_from():
    for stage, expected in {
        "c2": {"stem", "stage_c2"},
        "c4": {"stem", "stage_c2", "stage_c3", "stage_c4"},
        "backbone": {"stem", *(f"stage_{name}" for name in STAGES)},
    }.items():
        keras.utils.clear_session(free_memory=False)
        segmenter = tiny_segmenter()
        freeze(segmenter, [stage])
        assert frozen_layers(segmenter) == expected


def test_the_stages_of_a_resnet():
    segmenter = tiny_segmenter(build_resnet(blocks=(1, 1, 1, 1), block="basic", stem_channels=4))
    freeze(segmenter, ["c3"])
    frozen = frozen_layers(segmenter)
    assert any(name.startswith("layer2") for name in frozen)
    assert not any(name.startswith(("layer3", "layer4")) for name in frozen)
    assert any(name.startswith(("conv1", "stem")) for name in frozen), frozen


@pytest.mark.parametrize("part", ["batch_norms", "backbone_batch_norms"])
def test_frozen_batch_norms_normalize_by_their_moving_statistics(part):
    segmenter = tiny_segmenter()
    freeze(segmenter, [part])
    trained = {variable.path for variable in segmenter.trainable_variables}
    norms = {v.path for v in segmenter.weights if "/normalization/" in v.path}
    in_backbone = {path for path in norms if path.startswith(("stem", "stage_"))}
    assert in_backbone and in_backbone < norms
    assert norms & trained == (
        set() if part == "batch_norms" else {p for p in norms - in_backbone if "moving_" not in p}
    )
    assert "stem/convolution/kernel" in trained
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3)).astype("uint8")
    backbone = next(layer for layer in segmenter.layers if layer.name == "tiny")
    pixels = tf.cast(image, "float32")
    for stage, found in backbone(pixels, training=True).items():
        np.testing.assert_array_equal(found, backbone(pixels, training=False)[stage])


def test_faults():
    segmenter = tiny_segmenter()
    with pytest.raises(ValueError, match=r"takes the backbone's stages, \['c2', 'c3'.*'c9'"):
        freeze(segmenter, ["c9"])
    image = keras.Input((None, None, 3))
    plain = keras.Model(image, {"logits": keras.layers.Conv2D(3, 1)(image)})
    with pytest.raises(ValueError, match="has no backbone that could be frozen"):
        freeze(plain, ["backbone"])
    plain.trainable = False
    with pytest.raises(ValueError, match="nothing left to train"):
        freeze(plain, [])


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "meta.json"}


def test_a_run_leaves_frozen_parts_as_they_are_and_resumes(tmp_path):
    run = create_quick_run(
        tmp_path / "run",
        train={"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9, "ema": {"decay": 0.5}},
        model={"freeze": ["backbone_batch_norms"]},
    )
    loop.train(run, training_batches, evaluation_batches)
    first, last = (arrays(run.checkpoint(step)) for step in (1, 3))
    assert first.keys() == last.keys()
    for name in first:
        frozen = name.startswith(("model/stem", "model/stage_")) and "/normalization/" in name
        if frozen or (name.endswith("kernel") and name.startswith("model/")):
            assert np.array_equal(first[name], last[name]) == frozen, name
    momenta = [name for name in first if "momentum" in name]
    assert momenta and not any("stem" in name and "gamma" in name for name in momenta)
    run.checkpoint(3).unlink()
    loop.train(run, training_batches, evaluation_batches)
    again = arrays(run.checkpoint(3))
    assert all(np.array_equal(last[name], again[name]) for name in last)


@pytest.mark.parametrize("synchronized", [True, False])
def test_frozen_batch_norms_on_two_replicas_equal_one(mirrored, synchronized):
    rng = np.random.default_rng(0)
    batches = tf.data.Dataset.from_tensor_slices(
        {
            "image": rng.integers(0, 256, (2, 4, 16, 16, 3)).astype("uint8"),
            "label": rng.integers(0, 3, (2, 4, 16, 16)).astype("uint8"),
        }
    )
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        with strategy.scope():
            image = keras.Input((None, None, 3))
            x = ConvNorm(4, 3, strides=2, synchronized=synchronized, name="conv")(image / 255.0)
            logits = keras.layers.Conv2D(3, 1, name="logits")(x)
            segmenter = keras.Model(image, {"logits": logits})
            freeze(segmenter, ["batch_norms"])
            trainer = SegmentationTrainer(segmenter)
            trainer.compile(optimizer=SGD(0.1))
        assert len(segmenter.trainable_variables) == 3  # Two kernels and a bias.
        step = build_step(trainer, strategy)
        for batch in strategy.experimental_distribute_dataset(batches):
            step(batch)
        results.append({w.path: w.numpy() for w in segmenter.weights})
    for path, value in results[0].items():
        np.testing.assert_allclose(results[1][path], value, rtol=1e-4, atol=1e-6, err_msg=path)
        if "moving_" in path:
            np.testing.assert_array_equal(value, float("variance" in path))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (['model.freeze=["neck"]'], r"`model.freeze.0`: .*'backbone', 'c2'.*Received: 'neck'"),
        (['model.freeze="backbone"'], r"`model.freeze`: .*list.*Received: 'backbone'"),
        (['model.freeze=["c2"]'], r"are its four branches.*Received: \['c2'\]"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(overrides, message):
    with pytest.raises(config.ConfigError, match=message) as error:
        config.load("camvid_small_ce", overrides)
    assert "\n" not in str(error.value)


def test_layer_decay_of_a_frozen_backbone_is_refused():
    overrides = ["optimizer.layer_decay=0.9", 'model.freeze=["backbone"]']
    with pytest.raises(config.ConfigError, match="needs blocks of the backbone that are trained"):
        config.load("camvid_upernet_swin_t_ce", overrides)
    loaded = config.load("camvid_upernet_swin_t_ce", ['model.freeze=["c3", "batch_norms"]'])
    assert json.loads(loaded.to_json())["model"]["freeze"] == ["c3", "batch_norms"]
