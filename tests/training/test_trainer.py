import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.layers import ConvNorm, UnitNormalization
from kseg.layers.photometric import PhotometricDistortion
from kseg.runs import checkpoints
from kseg.segmenters import build_segmenter
from kseg.training.build import default_losses
from kseg.training.optimizers import SGD
from kseg.training.trainer import SegmentationTrainer, build_step
from tests.tiny_networks import tiny_backbone

NUM_CLASSES = 3


def tiny_trainer(
    *, synchronized=False, precision="float32", learning_rate=0.01, weights=None, **arguments
):
    """A tiny backbone with OCR, without dropout, and all losses."""
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(precision)
    backbone = tiny_backbone(synchronized_batch_norm=synchronized)
    segmenter = build_segmenter(
        backbone,
        "ocr",
        NUM_CLASSES,
        head_arguments={"channels": 8, "key_channels": 4, "dropout": 0.0},
        projections=("c2", "c3", "c4", "c5"),
        embedding_dim=8,
        synchronized_batch_norm=synchronized,
    )
    if weights is not None:
        losses = default_losses(segmenter)
        arguments["losses"] = {name: (losses[name][0], w) for name, w in weights.items()}
    trainer = SegmentationTrainer(
        segmenter,
        objectives=[(MultiScaleContrast(NUM_CLASSES, min_count=1, seed=3), 0.1)],
        **arguments,
    )
    trainer.compile(optimizer=SGD(learning_rate, decay_rate=1e-3))
    return trainer


def batches(count, size=4, height=64, width=96):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, (count, size, height // 16, width // 16))
    labels = labels.repeat(16, axis=2).repeat(16, axis=3).astype("uint8")
    labels[:, 0, : height // 2] = 255  # Replicas have unequal numbers of valid pixels.
    noise = rng.integers(0, 80, (count, size, height, width, 3))
    images = (labels[..., None].clip(0, 3) * 50 + noise).astype("uint8")
    return tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})


def run_steps(strategy, count, repeats=1, **arguments):
    keras.utils.clear_session(free_memory=False)  # The same layer names in every trainer.
    with strategy.scope():
        trainer = tiny_trainer(**arguments)
    step = build_step(trainer, strategy)
    logs = [
        {k: float(v) for k, v in step(batch).items()}
        for batch in strategy.experimental_distribute_dataset(batches(count).repeat(repeats))
    ]
    return trainer, logs, step


def test_two_replicas_equal_one(mirrored):
    """Loss terms, gradients, batch norm statistics and weights after 3 steps."""
    # Small steps: batch norm over the 24 places of c5 multiplies rounding errors.
    settings = {"clip_norm": 1.0, "learning_rate": 1e-3}
    one, one_logs, step = run_steps(tf.distribute.get_strategy(), 3, **settings)
    # No retracing after the first step.
    assert step.experimental_get_tracing_count() == 1
    two, two_logs, step = run_steps(mirrored, 3, synchronized=True, **settings)
    assert step.experimental_get_tracing_count() == 1
    assert set(one_logs[0]) == {
        "loss",
        "cross_entropy",
        "auxiliary",
        "multi_scale/same_scale",
        "multi_scale/cross_scale",
    }
    for a, b in zip(one_logs, two_logs, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-4, err_msg=name)
    one, two = (checkpoints.training_variables(trainer) for trainer in (one, two))
    assert list(one) == list(two)
    for name, variable in one.items():
        # Momentum after three steps is a sum of gradients, so this compares gradients too.
        np.testing.assert_allclose(
            two[name].numpy(), variable.numpy(), atol=2e-5, rtol=1e-3, err_msg=name
        )


def test_the_loss_is_the_weighted_sum_of_its_terms():
    _, (logs,), _ = run_steps(
        tf.distribute.get_strategy(), 1, weights={"cross_entropy": 0.5, "auxiliary": 0.3}
    )
    expected = (
        0.5 * logs["cross_entropy"]
        + 0.3 * logs["auxiliary"]
        + 0.1 * (logs["multi_scale/same_scale"] + logs["multi_scale/cross_scale"])
    )
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_learns_in_bfloat16_and_keeps_float32_weights():
    trainer, logs, _ = run_steps(
        tf.distribute.get_strategy(),
        1,
        repeats=20,
        precision="mixed_bfloat16",
        weights={"cross_entropy": 1.0},
        learning_rate=0.1,
    )
    assert "auxiliary" not in logs[0]
    assert all(np.isfinite(list(step.values())).all() for step in logs)
    assert logs[-1]["cross_entropy"] < logs[0]["cross_entropy"]
    assert {v.dtype for v in trainer.segmenter.weights} == {"float32"}


def test_xla_compiles_the_step():
    trainer = tiny_trainer()
    step = build_step(trainer, tf.distribute.get_strategy(), jit_compile=True)
    batch = next(iter(batches(1, size=2, height=32, width=32)))
    trainer_without = tiny_trainer()
    expected = build_step(trainer_without, tf.distribute.get_strategy())(batch)
    for name, value in step(batch).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-3, err_msg=name)


def test_trains_in_fit_too():
    trainer = tiny_trainer()
    history = trainer.fit(batches(2), epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_a_head_without_auxiliary_logits_has_no_such_term():
    image = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(NUM_CLASSES, 1)(image)
    trainer = SegmentationTrainer(keras.Model(image, {"logits": logits}))
    batch = next(iter(batches(1)))
    terms, found = trainer.loss_terms(trainer(batch["image"]), batch["label"])
    assert list(terms) == ["cross_entropy"]
    assert found == []


def test_optimizers_of_keras_take_the_same_steps(mirrored):
    """Keras sums gradients over replicas itself."""

    def train(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            image = keras.Input((None, None, 3))
            x = keras.layers.Rescaling(1 / 255)(image)
            outputs = {
                "logits": keras.layers.Conv2D(NUM_CLASSES, 3)(x),
                "other": keras.layers.Conv2D(2, 3)(x),  # No loss reaches it.
            }
            trainer = SegmentationTrainer(keras.Model(image, outputs))
            trainer.compile(optimizer=keras.optimizers.SGD(0.5, momentum=0.9))
        step = build_step(trainer, strategy)
        for batch in strategy.experimental_distribute_dataset(batches(3)):
            step(batch)
        return [np.array(w) for w in trainer.segmenter.weights]

    for one, two in zip(train(tf.distribute.get_strategy()), train(mirrored), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)


def test_images_are_distorted_before_the_network_sees_them():
    """The result is that of a batch of the distorted images."""
    (batch,) = batches(1)
    draws = np.random.default_rng(2).random((4, PhotometricDistortion.NUM_DRAWS))
    distortion = PhotometricDistortion(brightness=0.4, hue=0.2)
    distorted = distortion(batch["image"], draws)
    with_distortion = tiny_trainer(distortion=distortion)
    logs = with_distortion.train_step({**batch, "draws": tf.constant(draws, "float32")})
    keras.utils.clear_session(free_memory=False)
    plain = tiny_trainer()
    expected = plain.train_step({**batch, "image": distorted})
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-5)
    with pytest.raises(ValueError, match="needs batches with `draws`"):
        with_distortion.train_step(batch)


def updates(trainer, batch):
    """Returns the change of each trainable variable in one step."""
    before = [v.numpy() for v in trainer.segmenter.trainable_variables]
    trainer.train_step(batch)
    after = [v.numpy() for v in trainer.segmenter.trainable_variables]
    return np.concatenate([(b - a).ravel() for a, b in zip(before, after, strict=True)])


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_float16_takes_the_steps_of_float32(clip_norm):
    """Losses are scaled against underflow; neither steps nor the gradients' limit feel it."""
    (batch,) = batches(1)
    expected = updates(tiny_trainer(clip_norm=clip_norm), batch)
    keras.utils.clear_session(free_memory=False)
    trainer = tiny_trainer(precision="mixed_float16", clip_norm=clip_norm)
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    trainer.optimizer.dynamic_scale.assign(2.0**8)  # Where it would come to after a few steps.
    found = updates(trainer, batch)
    if clip_norm:
        # Of SGD's first step: rate x (limited gradient + L2 of the kernels), here almost the limit.
        assert np.linalg.norm(found) < 2 * 0.01 * clip_norm
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(expected), rtol=0.02)
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.995


@pytest.mark.parametrize("own", [True, False])
def test_float16_on_two_replicas_equals_one(mirrored, own):
    def train(strategy):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy("mixed_float16")
        with strategy.scope():
            image = keras.Input((None, None, 3))
            x = keras.layers.Rescaling(1 / 255)(image)
            x = keras.layers.Conv2D(4, 3, activation="relu")(x)
            logits = keras.layers.Conv2D(NUM_CLASSES, 1, dtype="float32")(x)
            trainer = SegmentationTrainer(keras.Model(image, {"logits": logits}))
            optimizer = SGD(0.5, momentum=0.9) if own else keras.optimizers.SGD(0.5, momentum=0.9)
            trainer.compile(optimizer=optimizer)
        step = build_step(trainer, strategy)
        for batch in strategy.experimental_distribute_dataset(batches(3)):
            step(batch)
        return [np.array(w) for w in trainer.segmenter.weights]

    one, two = train(tf.distribute.get_strategy()), train(mirrored)
    keras.utils.clear_session(free_memory=False)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(b, a, rtol=5e-3, atol=1e-3)


def test_a_float16_step_with_overflowing_gradients_is_skipped_and_the_scale_halved():
    trainer = tiny_trainer(precision="mixed_float16")
    trainer.optimizer.dynamic_scale.assign(2.0**40)
    (batch,) = batches(1)
    assert not updates(trainer, batch).any()
    assert float(trainer.optimizer.dynamic_scale) == 2.0**39


def network_with(num_classes=3):
    image = keras.Input((16, 24, 3))
    logits = keras.layers.Conv2D(num_classes, 4, strides=4)(image)
    return keras.Model(image, {"logits": logits, "embedding_c2": UnitNormalization()(logits)})


def one_scale(name="multi_scale", num_classes=3):
    return MultiScaleContrast(
        num_classes, scale_weights={"c2": 1.0}, cross_scale_pairs=(), min_count=1, name=name
    )


def test_two_objectives_of_one_name_are_refused():
    """The terms of the second would take the place of the first's in the sum."""
    with pytest.raises(ValueError, match=r"a unique name.*\['multi_scale', 'multi_scale'\]"):
        SegmentationTrainer(network_with(), objectives=[(one_scale(), 0.1), (one_scale(), 0.2)])
    objective = one_scale()
    with pytest.raises(ValueError, match="a unique name"):
        SegmentationTrainer(network_with(), objectives=[(objective, 0.1), (objective, 0.2)])


def test_two_objectives_of_a_class_both_count():
    objectives = [(one_scale("first"), 0.25), (one_scale("second"), 0.5)]
    trainer = SegmentationTrainer(network_with(), objectives=objectives)
    optimizer = SGD(0.0)
    optimizer.build(trainer.segmenter.trainable_variables)
    trainer.compile(optimizer=optimizer)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 9, (2, 16, 24, 3)).astype("float32")
    labels = rng.integers(0, 3, (2, 16, 24))
    logs = {k: float(v) for k, v in trainer.train_step({"image": images, "label": labels}).items()}
    expected = logs["cross_entropy"] + 0.25 * logs["first/same_scale"]
    np.testing.assert_allclose(logs["loss"], expected + 0.5 * logs["second/same_scale"], rtol=1e-6)
    assert logs["first/same_scale"] > 0


@pytest.mark.parametrize("name", ["loss", "multi_scale", "multi_scale/same_scale"])
def test_a_loss_must_not_take_the_name_of_another_term(name):
    losses = {name: (lambda labels, outputs: 0.0, 1.0)}
    with pytest.raises(ValueError, match=f"A loss must not be called.*{name!r}"):
        SegmentationTrainer(network_with(), losses=losses, objectives=[(one_scale(), 0.1)])


def test_nothing_to_minimise_is_refused():
    losses = {"cross_entropy": (lambda labels, outputs: 0.0, 0.0)}
    with pytest.raises(ValueError, match="nothing to minimize"):
        SegmentationTrainer(network_with(), losses=losses)


def test_an_objective_of_fewer_classes_is_refused():
    """It would take the pixels of the others for ignored ones."""
    with pytest.raises(ValueError, match=r"as many classes as the segmenter, 5.*num_classes=3"):
        SegmentationTrainer(network_with(5), objectives=[(one_scale(), 0.1)])


def test_batches_of_another_kind_are_refused():
    trainer = SegmentationTrainer(network_with())
    trainer.compile("sgd")
    images = np.zeros((2, 16, 24, 3), "float32")
    with pytest.raises(ValueError, match=r"Batches must be dicts.*Received: tuple of 4"):
        trainer.train_step((images,) * 4)
    with pytest.raises(ValueError, match=r"Batches must be dicts.*\['image', 'mask'\]"):
        trainer.train_step({"image": images, "mask": images})


def averaged_trainer(synchronized=False):
    """Two convolutions, and their averages, which start elsewhere."""
    models = []
    for offset in (0.0, 1.0):
        keras.utils.set_random_seed(1)
        image = keras.Input((None, None, 3))
        x = ConvNorm(4, 3, strides=2, synchronized=synchronized, name="conv")(image / 255.0)
        logits = keras.layers.Conv2D(NUM_CLASSES, 1, name="logits")(x)
        models.append(keras.Model(image, {"logits": logits}))
        for weight in models[-1].weights:
            weight.assign(weight + offset)
    trainer = SegmentationTrainer(models[0], averaged=models[1], ema_decay=0.3)
    trainer.compile(optimizer=SGD(0.1))
    return trainer


@pytest.mark.parametrize("synchronized", [True, False])
def test_averages_on_two_replicas(mirrored, synchronized):
    """Each step's average, statistics of replicas that keep their own included."""
    with mirrored.scope():
        trainer = averaged_trainer(synchronized=synchronized)
    step = build_step(trainer, mirrored)
    expected = None
    for number, batch in enumerate(
        mirrored.experimental_distribute_dataset(batches(6, height=32, width=32)), start=1
    ):
        step(batch)
        values = [weight.numpy().astype("float64") for weight in trainer.segmenter.weights]
        decay = min(0.3, (number - 1) / (number + 8))
        expected = values if expected is None else expected
        expected = [decay * e + (1 - decay) * v for e, v in zip(expected, values, strict=True)]
        for average, goal in zip(trainer.averaged.weights, expected, strict=True):
            np.testing.assert_allclose(average.numpy(), goal, rtol=1e-4, atol=1e-6)
    assert trainer.evaluated is trainer.averaged


def test_averages_under_xla_equal_those_without():
    results = []
    for jit_compile in (False, True):
        keras.utils.clear_session(free_memory=False)
        trainer = averaged_trainer()
        step = build_step(trainer, tf.distribute.get_strategy(), jit_compile=jit_compile)
        for batch in batches(3, height=32, width=32):
            step(batch)
        results.append([weight.numpy() for weight in trainer.averaged.weights])
    for plain, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-3, atol=1e-4)


def test_averages_of_another_network_are_refused():
    segmenter = averaged_trainer().segmenter
    with pytest.raises(ValueError, match="must have the weights of the segmenter"):
        SegmentationTrainer(segmenter, averaged=tiny_backbone())
