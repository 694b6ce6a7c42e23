"""Projecting only the pixels that are drawn gives what projecting whole maps gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kseg.contrast.contextrast import Contextrast
from kseg.contrast.embeddings import embeddings_of
from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.pixel_contrast import PixelContrast
from kseg.layers import BatchNormalization, UnitNormalization
from kseg.segmenters import build_segmenter
from kseg.training.projecting import ObjectiveOutputs
from kseg.training.trainer import SegmentationTrainer
from tests.tiny_networks import tiny_backbone

NUM_CLASSES, BATCH, HEIGHT, WIDTH = 3, 4, 32, 64
SCALES = {"c2": 1.0, "c3": 0.5}
OBJECTIVES = {
    "multi_scale": lambda **arguments: MultiScaleContrast(
        NUM_CLASSES,
        scale_weights=SCALES,
        cross_scale_pairs=[("c2", "c3"), ("c3", "c2")],
        **{"max_anchors": 60, "min_count": 1, "seed": 3, **arguments},
    ),
    **{
        f"pixel_contrast, {memory}": lambda memory=memory, **arguments: PixelContrast(
            NUM_CLASSES,
            memory=memory,
            pixels_per_image=2,
            pixel_capacity=20,
            region_capacity=5,
            **{"max_anchors": 40, "min_count": 1, "seed": 4, **arguments},
        )
        for memory in ("none", "pixel", "both")
    },
    "contextrast": lambda projection, **arguments: Contextrast(
        NUM_CLASSES,
        layer_weights={"c2": 0.5, "c3": 1.0},
        reference="c3",
        **{"max_samples": 30, "min_negatives": 5, "seed": 5, **arguments},
    ),
}


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, (BATCH, 4, 8)).repeat(8, axis=1).repeat(8, axis=2)
    images = labels[..., None] * 60 + rng.integers(0, 60, (*labels.shape, 3))
    labels[0, :16] = 255
    return {"image": images.astype("uint8"), "label": labels.astype("uint8")}


def make(objectives, *, averaged=False, **arguments):
    """A trainer; its weights and moving statistics are random."""
    stages = sorted({stage for objective in objectives for stage in objective.stages})
    models = [
        build_segmenter(
            tiny_backbone(),
            "hrnet",
            NUM_CLASSES,
            projections=stages,
            embedding_dim=8,
        )
        for _ in range(1 + averaged)
    ]
    rng = np.random.default_rng(1)
    for model in models:
        for weight in model.weights:
            if weight.path.split("/")[-1] in ("gamma", "beta", "moving_mean", "moving_variance"):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    if averaged:
        arguments["averaged"] = models[1]
    pairs = [(objective, 0.1) for objective in objectives]
    trainer = SegmentationTrainer(models[0], objectives=pairs, **arguments)
    trainer.compile(keras.optimizers.SGD(0.01, momentum=0.9, name="sgd"))
    return trainer


def whole_maps(trainer):
    """Makes a trainer project every pixel."""
    trainer._outputs.trunk, trainer._outputs._projectors = trainer.segmenter, {}


def one_step(trainer, batch, training=False):
    """Terms and gradients of all weights; writes to banks."""
    variables = [variable.value for variable in trainer.segmenter.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = trainer._outputs(batch["image"].astype("float32"), training=training)
        terms, found = trainer.loss_terms(outputs, tf.constant(batch["label"]))
        loss = sum(value * weight for value, weight in terms.values())
    gradients = tape.gradient(loss, variables)
    trainer._remember(found)
    return {name: float(value) for name, (value, _) in terms.items()}, gradients


def two_steps(name, projection, training, *, whole):
    """Terms and gradients of two steps; then statistics and banks."""
    keras.utils.set_random_seed(1)
    trainer = make([OBJECTIVES[name](projection=projection)])
    if whole:
        whole_maps(trainer)
    steps = [one_step(trainer, batch_of(seed), training) for seed in range(2)]
    bank = trainer.objectives[0].bank
    state = [*trainer.segmenter.non_trainable_weights, *(bank.weights if bank else ())]
    return trainer, steps, [w.numpy() for w in state]


# By the statistics of a batch only the last layers can be computed for some pixels alone; and the
# class means of Contextrast are always those of the map.
MODES = [("map", False), ("map", True), ("drawn", False)]
CASES = [
    (n, *mode) for n in OBJECTIVES for mode in MODES if (n, mode[0]) != ("contextrast", "drawn")
]


@pytest.mark.parametrize("name, projection, training", CASES)
def test_drawn_pixels_are_those_of_whole_maps(name, projection, training):
    _, expected_steps, expected_state = two_steps(name, projection, training, whole=True)
    trainer, steps, state = two_steps(name, projection, training, whole=False)
    layers = trainer._outputs._projectors.popitem()[1]._layers
    assert [layer.name.rsplit("_", 1)[-1] for layer in layers][-2] == "linear"
    assert len(layers) == (2 if projection == "map" else 6)
    for (expected, theirs), (terms, ours) in zip(expected_steps, steps, strict=True):
        assert terms.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(terms[key], value, rtol=1e-5, err_msg=key)
        for weight, x, y in zip(trainer.segmenter.trainable_variables, ours, theirs, strict=True):
            assert (x is None) == (y is None), weight.path
            if y is not None:
                difference = np.linalg.norm(np.asarray(x) - np.asarray(y))
                assert difference < 2e-5 * (np.linalg.norm(y) + 1e-4), weight.path
    for ours, theirs in zip(state, expected_state, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert all(value > 0 for value in steps[1][0].values())  # With memory from step 1 on.
    assert trainer.objectives[0].bank is None or np.any(state[-1])


@pytest.mark.parametrize("name, projection, training", CASES)
def test_in_bfloat16_both_are_equally_close_to_float32(name, projection, training):
    def gradients(precision, whole):
        keras.config.set_dtype_policy(precision)
        _, steps, _ = two_steps(name, projection, training, whole=whole)
        found = [np.ravel(x) for _, gradients in steps for x in gradients if x is not None]
        return np.concatenate(found), [value for terms, _ in steps for value in terms.values()]

    exact, terms = gradients("float32", True)
    errors = []
    for whole in (True, False):
        found, found_terms = gradients("mixed_bfloat16", whole)
        np.testing.assert_allclose(found_terms, terms, rtol=3e-2)
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert errors[1] < 1.2 * errors[0]


def assert_equal(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerances = {"rtol": 1e-3, "atol": 2e-5, **tolerance}
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerances)


def statistics(trainer):
    return {
        weight.path: weight.numpy()
        for weight in trainer.segmenter.non_trainable_variables
        if "embedding" in weight.path
    }


def test_without_labels_statistics_stay():
    trainer = make([OBJECTIVES["multi_scale"](projection="drawn")])
    before, batch = statistics(trainer), batch_of()
    trainer.take_step({**batch, "label": np.full_like(batch["label"], 255)})
    for path, value in statistics(trainer).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    trainer.take_step(batch)
    for path, value in statistics(trainer).items():
        assert np.abs(value - before[path]).max() > 1e-3, path


def test_statistics_are_those_of_the_anchors():
    """The moving mean after a step, from the features of the drawn pixels."""
    scales = {"scale_weights": {"c2": 1.0}, "cross_scale_pairs": ()}
    objective = MultiScaleContrast(
        NUM_CLASSES, max_anchors=30, min_count=1, projection="drawn", **scales
    )
    trainer = make([objective])
    positions, share = [], objective._anchor_set

    def recorded(embeddings, labels):
        take = embeddings.take
        embeddings.take = lambda p, **k: (positions.append(p), take(p, **k))[1]
        return share(embeddings, labels)

    objective._anchor_set = recorded
    outputs = trainer._outputs.trunk(batch_of()["image"].astype("float32"), training=True)
    layers = {layer.name: layer for layer in trainer.segmenter.layers}
    norm = layers["embedding_c2_norm1"]
    before = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    maps = trainer._outputs.of(outputs, training=True)
    objective.contrast(maps, tf.constant(batch_of()["label"]))
    drawn = positions[0].numpy()
    drawn = drawn[drawn >= 0]
    assert 3 <= len(drawn) <= 30
    hidden = layers["embedding_c2_conv1"](outputs["embedding_c2"]).numpy()
    hidden = hidden.reshape(-1, hidden.shape[-1])[drawn]
    for moving, old, new in zip(
        (norm.moving_mean, norm.moving_variance), before, (hidden.mean(0), hidden.var(0)),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(moving.numpy(), 0.9 * old + 0.1 * new, rtol=1e-5)


def test_batch_in_parts_equals_one_pass():
    """Without batch norms of the network, whose statistics are those of a part."""
    results = []
    for accumulate in (1, 2):
        keras.utils.set_random_seed(1)
        trainer = make([OBJECTIVES["multi_scale"](projection="drawn")], accumulate=accumulate)
        for layer in trainer.segmenter._flatten_layers():
            if "norm" in layer.name and not layer.name.startswith("embedding"):
                layer.trainable = False
        logs = {key: float(value) for key, value in trainer.take_step(batch_of()).items()}
        weights = {w.path: w.numpy() for w in trainer.segmenter.weights}
        results.append(logs | weights)
    assert_equal(results[1], results[0])


def test_averaged_weights_are_evaluated_with_their_own_projectors():
    results = []
    for projection in ("map", "drawn"):
        keras.utils.set_random_seed(1)
        trainer = make([OBJECTIVES["pixel_contrast, none"](projection=projection)], averaged=True)
        for weight in trainer.averaged.weights:
            weight.assign(ops.convert_to_tensor(weight) * 1.1)
        batch = batch_of()
        dataset = tf.data.Dataset.from_tensors((batch["image"], batch["label"]))
        results.append(trainer.evaluate(dataset, return_dict=True, verbose=0))
    assert results[0]["pixel_contrast/pixels"] > 0
    assert_equal(results[1], results[0], rtol=1e-5)


def test_map_that_another_objective_needs_is_projected_once():
    objectives = [
        OBJECTIVES["multi_scale"](projection="drawn"),
        Contextrast(NUM_CLASSES, layer_weights={"c2": 1.0}, reference="c2", max_samples=20),
    ]
    segmenter = make(objectives).segmenter
    outputs = ObjectiveOutputs(segmenter, objectives)(batch_of()["image"], training=False)
    assert embeddings_of(outputs, "c2", objectives[0])._projector.depends_on_training is False
    assert embeddings_of(outputs, "c3", objectives[0])._projector.depends_on_training is True
    assert embeddings_of(outputs, "c3", objectives[0]).shape == (BATCH, 4, 8, 8)


def test_whoever_reads_outputs_as_a_dict_gets_tensors():
    """The tensors equal the outputs of the segmenter, however they are read."""
    objectives = [OBJECTIVES["multi_scale"]()]
    segmenter = make(objectives).segmenter
    images = batch_of()["image"]
    outputs = ObjectiveOutputs(segmenter, objectives)(images, training=False)
    assert not tf.is_tensor(outputs.unread("embedding_c2"))
    expected = segmenter(images, training=False)
    assert sorted(outputs) == sorted(expected)
    ways = [
        {**outputs},
        dict(outputs),
        dict(outputs.items()),
        dict(zip(outputs, outputs.values(), strict=True)),
        {name: outputs.get(name) for name in outputs},
        outputs | {},
        {} | outputs,
    ]
    for found in ways:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_own_keras_model_trains_and_has_the_same_checkpoint(tmp_path):
    """The projector is what only the embedding reads, whatever its layers are called."""

    def network():
        image = keras.Input((HEIGHT, WIDTH, 3))
        x = keras.layers.Conv2D(6, 4, strides=4, activation="relu", name="stem")(image)
        y = keras.layers.Dense(8, name="dense")(x)
        y = BatchNormalization(name="norm")(y)
        y = keras.layers.Conv2D(8, 1, name="linear")(keras.layers.ReLU(name="relu")(y))
        logits = keras.layers.Conv2D(NUM_CLASSES, 1, name="logits")(x)
        outputs = {"logits": logits, "embedding_c2": UnitNormalization(name="unit")(y)}
        return keras.Model(image, outputs)

    scales = {"scale_weights": {"c2": 1.0}, "cross_scale_pairs": ()}
    histories, weights = [], []
    for _ in range(2):
        keras.utils.set_random_seed(2)
        objective = MultiScaleContrast(NUM_CLASSES, projection="drawn", max_anchors=20, **scales)
        trainer = SegmentationTrainer(network(), objectives=[(objective, 0.1)])
        names = [layer.name for layer in trainer._outputs._projectors["embedding_c2"]._layers]
        assert names == ["dense", "norm", "relu", "linear", "unit"]
        trainer.compile(keras.optimizers.SGD(0.01))
        batch = batch_of()
        data = batch["image"], batch["label"].astype("int32")
        if not histories:
            histories.append(trainer.fit(*data, batch_size=BATCH, epochs=2, verbose=0).history)
            trainer.save_weights(tmp_path / "half.weights.h5")
            trainer.save(tmp_path / "whole.keras")
            trainer = keras.models.load_model(tmp_path / "whole.keras")
            assert trainer.objectives[0].projection == "drawn"
        else:
            trainer.load_weights(tmp_path / "half.weights.h5")
        weights.append([w.numpy() for w in trainer.segmenter.weights])
    assert histories[0]["multi_scale/same_scale"][0] > 0
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_small_map_is_projected_once_for_all_objectives():
    """With as many rows as pixels: as the map, so that its statistics move once."""
    moved = []
    for projection in ("map", "drawn"):
        keras.utils.set_random_seed(2)
        arguments = {"projection": projection, "max_anchors": 10_000}
        objectives = [OBJECTIVES["multi_scale"](name=name, **arguments) for name in ("a", "b")]
        trainer = make(objectives)
        trainer.take_step(batch_of())
        moved.append(statistics(trainer))
    for name in moved[0]:
        np.testing.assert_allclose(moved[1][name], moved[0][name], rtol=1e-5, err_msg=name)


def test_losses_read_whole_maps():
    def of_map(labels, outputs):
        return ops.mean(ops.square(outputs["embedding_c2"]))

    objective = OBJECTIVES["multi_scale"](projection="drawn")
    trainer = make([objective], losses={"mine": (of_map, 1.0)})
    # Embeddings have unit norm in 8 dimensions.
    assert float(trainer.take_step(batch_of())["mine"]) == pytest.approx(1 / 8, rel=1e-4)
    terms, _ = trainer.training_terms(batch_of())
    assert set(terms) == {"mine", "multi_scale/same_scale", "multi_scale/cross_scale"}


class Positioned(keras.layers.Conv2D):
    """A 1x1 convolution that knows where a pixel is."""

    def call(self, inputs):
        rows = ops.cast(ops.arange(inputs.shape[1]), "float32")
        return super().call(inputs + rows[:, None, None])


def test_projectors_that_cannot_be_split_off():
    def network(*layers):
        image = keras.Input((HEIGHT, WIDTH, 3), batch_size=BATCH)
        x = keras.layers.Conv2D(6, 4, strides=4, name="stem")(image)
        y = x
        for layer in layers:
            y = layer(y)
        logits = keras.layers.Conv2D(NUM_CLASSES, 1, name="logits")(x)
        return keras.Model(image, {"logits": logits, "embedding_c2": y})

    objective = MultiScaleContrast(
        NUM_CLASSES, projection="drawn", scale_weights={"c2": 1.0}, cross_scale_pairs=()
    )
    nested = keras.Sequential([keras.layers.Dense(8), UnitNormalization()])
    with pytest.raises(ValueError, match="outside of a nested model"):
        SegmentationTrainer(network(nested), objectives=[(objective, 0.1)])
    objective.projection = "map"
    trainer = SegmentationTrainer(network(nested), objectives=[(objective, 0.1)])
    assert trainer._outputs.trunk is trainer.segmenter
    objective.projection = "drawn"
    # These are not independent of other pixels, or of there being any, or belong to the model.
    for other in (
        keras.layers.BatchNormalization(),
        keras.layers.SpatialDropout2D(0.5),
        keras.layers.Dense(6, activity_regularizer="l2"),
        Positioned(6, 1),
    ):
        model = network(other, keras.layers.Dense(8, name="dense"))
        trainer = SegmentationTrainer(model, objectives=[(objective, 0.1)])
        found = [layer.name for layer in trainer._outputs._projectors["embedding_c2"]._layers]
        assert found == ["dense"]


def test_model_with_a_call_of_its_own_is_refused():
    class Doubled(keras.Model):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

        def call(self, inputs, training=None, mask=None):
            return super().call(2 * inputs, training=training)

    plain = make([OBJECTIVES["multi_scale"]()]).segmenter
    doubled = Doubled(plain.input, plain.output)
    with pytest.raises(ValueError, match=r"`call` of its own .* Received: Doubled. Use projection"):
        SegmentationTrainer(
            doubled, objectives=[(OBJECTIVES["multi_scale"](projection="drawn"), 1)]
        )
    trainer = SegmentationTrainer(doubled, objectives=[(OBJECTIVES["multi_scale"](), 1)])
    assert trainer._outputs.trunk is doubled
