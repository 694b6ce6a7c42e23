import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import config
from kseg.contrast.region_contrast import RegionContrast
from kseg.layers import ConvNorm
from kseg.losses.lovasz import lovasz_softmax
from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.reduction import global_mean
from kseg.training.build import default_losses
from kseg.training.freezing import freeze
from kseg.training.optimizers import SGD
from kseg.training.trainer import SegmentationTrainer, build_step

NUM_CLASSES = 3


def batches(count, size=4):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, (count, size, 2, 2)).repeat(8, axis=2).repeat(8, axis=3)
    labels[:, 0, 3:] = 255  # Parts have unequal numbers of valid pixels.
    images = labels[..., None] % 7 * 30 + rng.integers(0, 60, (*labels.shape, 3))
    return tf.data.Dataset.from_tensor_slices(
        {"image": images.astype("uint8"), "label": labels.astype("uint8")}
    )


def tiny_trainer(accumulate, *, norms=(), dropout=0.0, precision="float32", **arguments):
    """Two convolutions under every kind of loss: pixel means, mining, a ranking, a bank."""
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(precision)
    image = keras.Input((None, None, 3))
    x = ConvNorm(4, 3, strides=2, name="conv", **arguments)(image / 255.0)
    x = keras.layers.Dropout(dropout, seed=5)(x)
    logits = keras.layers.Conv2D(NUM_CLASSES, 1, name="logits", dtype="float32")(x)
    unused = keras.layers.Conv2D(2, 1, name="unused")(x)
    segmenter = keras.Model(image, {"logits": logits, "features": x, "unused": unused})
    freeze(segmenter, norms)
    losses = default_losses(segmenter)
    losses["lovasz"] = (lambda y, outputs: lovasz_softmax(y, outputs["logits"]), 0.5)
    losses["ohem"] = (
        lambda y, outputs: global_mean(*ohem_cross_entropy(y, outputs["logits"], min_kept=50)),
        0.5,
    )
    trainer = SegmentationTrainer(
        segmenter,
        losses=losses,
        objectives=[(RegionContrast(NUM_CLASSES, capacity=4), 0.1)],
        accumulate=accumulate,
    )
    trainer.compile(optimizer=SGD(0.1, decay_rate=1e-3))
    return trainer


def run(strategy, accumulate, *, count=2, order=(0, 1, 2, 3), jit_compile=False, **settings):
    """Logs of each step, and all weights, banks and statistics after the last."""
    keras.utils.clear_session(free_memory=False)  # The same layer names in every trainer.
    with strategy.scope():
        trainer = tiny_trainer(accumulate, **settings)
    step = build_step(trainer, strategy, jit_compile=jit_compile)
    logs = [
        {name: float(value) for name, value in step(batch).items()}
        for batch in strategy.experimental_distribute_dataset(
            batches(count).map(lambda batch: {k: tf.gather(v, order) for k, v in batch.items()})
        )
    ]
    variables = [*trainer.segmenter.weights, *trainer.objectives[0].weights]
    return logs, {variable.path: variable.numpy() for variable in variables}


def assert_close(found, expected, **tolerances):
    for one, other in zip(found[0], expected[0], strict=True):
        assert one.keys() == other.keys()
        for name in other:
            np.testing.assert_allclose(one[name], other[name], err_msg=name, **tolerances)
    for path, value in expected[1].items():
        np.testing.assert_allclose(found[1][path], value, err_msg=path, **tolerances)


TOLERANCES = {"rtol": 2e-4, "atol": 2e-6}


def test_parts_make_the_update_of_the_whole_batch():
    """All losses, contrast and bank, with batch norms that do not depend on the batch."""
    plain = tf.distribute.get_strategy()
    expected = run(plain, 1, norms=["batch_norms"])
    found = run(plain, 4, norms=["batch_norms"])
    assert_close(found, expected, **TOLERANCES)
    unused = [path for path in expected[1] if path.startswith("unused")]
    assert unused  # Weights without a gradient are not decayed either.
    for path in unused:
        np.testing.assert_array_equal(found[1][path], expected[1][path])


def test_the_gradient_is_that_of_the_parts_with_their_own_norms_and_draws():
    """Against one pass over the same parts, differentiated as a whole; statistics move once."""
    trainer = tiny_trainer(2, dropout=0.5)
    (batch,) = batches(1)
    segmenter = trainer.segmenter
    start = [tf.identity(v.value) for v in segmenter.variables]
    with tf.GradientTape() as tape:
        parts = [segmenter(batch["image"][i : i + 2], training=True) for i in (0, 2)]
        outputs = {key: tf.concat([part[key] for part in parts], 0) for key in parts[0]}
        terms, _ = trainer.loss_terms(outputs, tf.cast(batch["label"], "int32"))
        loss = sum(value * weight for value, weight in terms.values())
    variables = [v for v in segmenter.trainable_variables if not v.path.startswith("unused")]
    expected = tape.gradient(loss, [v.value for v in variables])
    after = [v.numpy() for v in segmenter.non_trainable_variables]
    for variable, value in zip(segmenter.variables, start, strict=True):
        variable.assign(value)
    before = [v.numpy() for v in variables]
    trainer.compile(optimizer=keras.optimizers.SGD(1.0))
    build_step(trainer, tf.distribute.get_strategy())(batch)
    for variable, old, gradient in zip(variables, before, expected, strict=True):
        np.testing.assert_allclose(old - variable.numpy(), gradient, rtol=1e-3, atol=1e-5)
    for variable, value in zip(segmenter.non_trainable_variables, after, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5)


@pytest.mark.parametrize("norms", [(), ("batch_norms",)])
def test_two_replicas_equal_one(mirrored, norms):
    """Replicas hold images 0, 1 and 2, 3: synchronized norms see 0, 2 and then 1, 3."""
    found = run(mirrored, 2, norms=norms, synchronized=True)
    order = [0, 1, 2, 3] if norms else [0, 2, 1, 3]
    expected = run(tf.distribute.get_strategy(), 1 if norms else 2, norms=norms, order=order)
    if not norms:  # The bank holds the same centers in another order.
        for result in (found, expected):
            for path in [path for path in result[1] if "bank" in path]:
                del result[1][path]
    assert_close(found, expected, **TOLERANCES)


def test_xla_computes_the_same():
    plain = tf.distribute.get_strategy()
    expected = run(plain, 2, count=2)
    assert_close(run(plain, 2, count=2, jit_compile=True), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(precision):
    plain = tf.distribute.get_strategy()
    settings = {"norms": ["batch_norms"], "precision": precision, "count": 1}
    expected, found = (run(plain, accumulate, **settings) for accumulate in (1, 2))
    assert_close(found, expected, rtol=0.02, atol=2e-3)


def test_batches_that_do_not_divide_are_one_line():
    trainer = tiny_trainer(3)
    (batch,) = batches(1)
    with pytest.raises(ValueError, match=r"divisible into 3 parts.*\(4, 16, 16, 3\)"):
        build_step(trainer, tf.distribute.get_strategy())(batch)
    with pytest.raises(config.ConfigError, match=r"by `train.accumulate`. Received: 8 and 3"):
        config.load("camvid_small_ce", ["train.accumulate=3"])
    with pytest.raises(config.ConfigError, match=r"`train.accumulate`.*greater than 0.*: 0"):
        config.load("camvid_small_ce", ["train.accumulate=0"])


def test_the_parts_are_among_the_arguments_that_are_saved():
    segmenter = tiny_trainer(2).segmenter
    trainer = SegmentationTrainer(segmenter, accumulate=2)
    assert SegmentationTrainer.from_config(trainer.get_config()).accumulate == 2
