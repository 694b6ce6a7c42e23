"""A trainer used as any Keras model: data in every form, callbacks, metrics, files, options."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.region_contrast import RegionContrast
from kseg.evaluation.metrics import Scores
from kseg.layers import UnitNormalization
from kseg.layers.resizing import resize
from kseg.losses import CrossEntropy, Dice, Focal
from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.reduction import global_ratio
from kseg.metrics import MeanIoU
from kseg.training.optimizers import SGD, AdamW
from kseg.training.schedules import Ramp
from kseg.training.trainer import SegmentationTrainer
from tests.evaluation.test_metrics import count_by_loop

NUM_CLASSES, SIZE = 3, (16, 24)


def network(dtype=None, regularizer=None):
    """Two convolutions to logits at stride 4, with what two objectives read."""
    image = keras.Input((*SIZE, 3))
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(image)
    x = keras.layers.Conv2D(
        6, 4, strides=4, activation="relu", name="stem", dtype=dtype, kernel_regularizer=regularizer
    )(x)
    outputs = {
        "logits": keras.layers.Conv2D(NUM_CLASSES, 1, name="logits", dtype=dtype)(x),
        "features": x,
        "embedding_c2": UnitNormalization(name="unit")(x),
    }
    return keras.Model(image, outputs, name="network")


def contrasts():
    scales = {"scale_weights": {"c2": 1.0}, "cross_scale_pairs": (), "max_anchors": 30}
    return [
        (RegionContrast(NUM_CLASSES, capacity=4), Ramp(0.1)),
        (MultiScaleContrast(NUM_CLASSES, min_count=1, seed=3, **scales), 0.1),
    ]


def make(optimizer=None, *, contrast=True, compiled=None, dtype=None, averaged=False, **arguments):
    keras.utils.set_random_seed(1)
    segmenter = arguments.pop("segmenter", None) or network(dtype)
    if averaged:
        arguments["averaged"] = network(dtype)
    objectives = contrasts() if contrast else ()
    trainer = SegmentationTrainer(segmenter, objectives=objectives, **arguments)
    trainer.compile(optimizer or keras.optimizers.SGD(0.1, momentum=0.9), **(compiled or {}))
    return trainer


def data(count=8, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, (count, 4, 6)).repeat(4, axis=1).repeat(4, axis=2)
    images = (labels[..., None] * 80 + rng.integers(0, 60, (*labels.shape, 3))).astype("uint8")
    labels[:, :3, :5] = 255
    return images, labels.astype("uint8")


def dicts(images, labels, size=4):
    parts = {"image": images, "label": labels}
    return tf.data.Dataset.from_tensor_slices(parts).batch(size, drop_remainder=True)


def values(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def assert_equal(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


FORMS = {
    "tuples": lambda x, y: (tf.data.Dataset.from_tensor_slices((x, y)).batch(4, True),),
    "masks with a channel": lambda x, y: (
        tf.data.Dataset.from_tensor_slices((x, y[..., None])).batch(4, True),
    ),
    "a dict and a label": lambda x, y: (
        tf.data.Dataset.from_tensor_slices(({"image": x}, y)).batch(4, True),
    ),
    "arrays": lambda x, y: (x, y),
    "a dict of arrays": lambda x, y: ({"image": x, "label": y},),
}


def trained_and_evaluated(*x):
    trainer = make()
    size = {} if isinstance(x[0], tf.data.Dataset) else {"batch_size": 4}
    more = {"shuffle": False} if size else {}
    history = trainer.fit(*x, verbose=0, **size, **more).history
    scores = trainer.evaluate(*x, verbose=0, return_dict=True, **size)
    return history, scores, values(trainer.weights)


@pytest.fixture(scope="module")
def with_dicts():
    # Made before the reset of each test: its seeds and names would be those of another test.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    return trained_and_evaluated(dicts(*data()))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_trains_and_evaluates_alike(form, with_dicts):
    history, scores, weights = trained_and_evaluated(*FORMS[form](*data()))
    assert history == with_dicts[0] and scores == with_dicts[1]
    assert_equal(weights, with_dicts[2])
    terms = ("loss", "cross_entropy", "region_contrast/centers", "multi_scale/same_scale")
    assert set(history) == set(terms) and set(scores) == {*terms, "mean_iou"}


def test_history_has_the_mean_of_the_steps():
    images, labels = data()
    labels[:4, 8:] = 255  # Steps weigh by their labeled pixels.
    trainer, again = make(), make()
    found = trainer.fit(dicts(images, labels), verbose=0).history
    steps = [again.take_step(batch) for batch in dicts(images, labels)]
    counts = [np.sum(labels[:4] < 3), np.sum(labels[4:] < 3)]
    for name in found:
        expected = np.average([float(step[name]) for step in steps], weights=counts)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["data set", "arrays"])
def test_evaluate_is_exact_over_unequal_batches_and_changes_nothing(kind):
    images, labels = data(6)
    trainer = make()
    trainer.fit(dicts(images, labels), verbose=0)
    before = values(trainer.variables)
    if kind == "arrays":
        found = trainer.evaluate(images, labels, batch_size=4, return_dict=True, verbose=0)
    else:
        parts = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
        found = trainer.evaluate(parts, return_dict=True, verbose=0)
    logits = trainer.segmenter(images)["logits"]
    np.testing.assert_allclose(
        found["cross_entropy"], global_ratio(*cross_entropy(labels, logits)), rtol=1e-5
    )
    predictions = np.argmax(resize(logits, SIZE), axis=-1)
    expected = Scores(count_by_loop(labels, predictions, NUM_CLASSES)).mean_iou
    np.testing.assert_allclose(found["mean_iou"], expected, rtol=1e-6)
    terms = found["region_contrast/centers"] + found["multi_scale/same_scale"]
    np.testing.assert_allclose(found["loss"], found["cross_entropy"] + 0.1 * terms, rtol=1e-5)
    metrics = {id(v) for metric in trainer.metrics for v in metric.variables}
    for variable, old in zip(trainer.variables, before, strict=True):
        if id(variable) not in metrics:
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), old)
    as_list = trainer.evaluate(dicts(images, labels), verbose=0)
    assert len(as_list) == len(found) and as_list[0] == pytest.approx(
        trainer.evaluate(dicts(images, labels), return_dict=True, verbose=0)["loss"]
    )


def test_callbacks(tmp_path):
    images, labels = data()
    trainer = make(keras.optimizers.SGD(0.1))
    kept = {}

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            kept[epoch] = (logs["val_mean_iou"], values(self.model.segmenter.weights))

    monitor = {"monitor": "val_mean_iou", "mode": "max"}
    history = trainer.fit(
        dicts(images, labels),
        epochs=3,
        validation_data=tf.data.Dataset.from_tensor_slices(data(3, seed=1)).batch(2),
        callbacks=[
            Keep(),
            keras.callbacks.ModelCheckpoint(tmp_path / "whole.keras", **monitor),
            keras.callbacks.ModelCheckpoint(
                tmp_path / "best.weights.h5", save_weights_only=True, save_best_only=True, **monitor
            ),
            keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, min_delta=1e9, factor=0.5),
            keras.callbacks.TensorBoard(tmp_path / "board", histogram_freq=1),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True, **monitor),
        ],
        verbose=0,
    ).history
    assert {"loss", "val_loss", "val_mean_iou", "val_region_contrast/centers"} <= set(history)
    assert history["learning_rate"][-1] < 0.1
    with open(tmp_path / "log.csv") as file:
        assert [float(row["val_mean_iou"]) for row in csv.DictReader(file)] == pytest.approx(
            history["val_mean_iou"]
        )
    assert [*(tmp_path / "board/train").iterdir()] and [*(tmp_path / "board/validation").iterdir()]
    best = max(kept, key=lambda epoch: kept[epoch][0])
    assert_equal(values(trainer.segmenter.weights), kept[best][1])
    other = make(keras.optimizers.SGD(0.1))
    other.load_weights(tmp_path / "best.weights.h5")
    assert_equal(values(other.segmenter.weights), kept[best][1])
    whole = keras.models.load_model(tmp_path / "whole.keras")
    assert_equal(values(whole.segmenter.weights), kept[2][1])


def test_a_saved_trainer_trains_on_as_if_it_had_not_been_saved(tmp_path):
    """Everything comes back: network, losses, objectives, banks, seeds, averages, optimizer."""
    images, labels = data()
    trainer = make(
        AdamW(0.01, decay_rate=1e-3),
        losses={"focal": (Focal(gamma=1.0), 0.5)},
        averaged=True,
        ema_decay=0.9,
        clip_norm=1.0,
        compiled={"loss": Dice(), "loss_weights": 0.3, "metrics": [MeanIoU(3, name="iou")]},
    )
    trainer.fit(dicts(images, labels), verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.models.load_model(tmp_path / "trainer.keras")
    for key in ("losses", "objectives", "clip_norm", "ema_decay"):
        assert loaded.get_config()[key] == trainer.get_config()[key]
    for model in (trainer, loaded):
        model.more = model.fit(dicts(images, labels), verbose=0).history
    assert set(loaded.more) >= {"focal", "dice", "iou"}
    for name, (value,) in loaded.more.items():
        assert value == pytest.approx(trainer.more[name][0], rel=1e-5)
    assert_equal(values(loaded.weights), values(trainer.weights))
    assert_equal(values(loaded.optimizer.variables), values(trainer.optimizer.variables))
    assert_equal([loaded.predict(images, verbose=0)], [trainer.predict(images, verbose=0)])


def test_backup_and_restore_resumes_as_if_nothing_had_happened(tmp_path):
    images, labels = data()
    expected = make()
    expected.fit(dicts(images, labels), epochs=3, verbose=0)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    for callbacks in ([Stop()], []):
        trainer = make()
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        try:
            trainer.fit(dicts(images, labels), epochs=3, callbacks=[backup, *callbacks], verbose=0)
        except KeyboardInterrupt:
            assert callbacks
    assert_equal(values(trainer.weights), values(expected.weights))


def test_averages_of_the_optimizer_are_evaluated_and_kept():
    images, labels = data()
    trainer = make(SGD(0.1, use_ema=True, ema_momentum=0.5))
    history = trainer.fit(
        dicts(images, labels),
        epochs=2,
        validation_data=(images, labels),
        callbacks=[keras.callbacks.SwapEMAWeights()],
        verbose=0,
    ).history
    # At the end Keras writes the averages over the weights: those of the last evaluation.
    found = trainer.evaluate(images, labels, return_dict=True, verbose=0)
    assert found["cross_entropy"] == pytest.approx(history["val_cross_entropy"][-1], rel=1e-4)
    assert found["mean_iou"] == pytest.approx(history["val_mean_iou"][-1])


def test_metrics_of_compile_get_logits_at_the_size_of_the_labels():
    images, labels = data()
    of_keras, of_weighted = (
        keras.metrics.MeanIoU(NUM_CLASSES, ignore_class=255, sparse_y_pred=False, name=name)
        for name in ("of_keras", "of_weighted")
    )
    labels[labels == 255] = 0
    weighted = keras.metrics.SparseCategoricalAccuracy(name="weighted")
    trainer = make(
        contrast=False,
        compiled={"metrics": [of_keras, "accuracy"], "weighted_metrics": [weighted, of_weighted]},
    )
    history = trainer.fit(dicts(images, labels), verbose=0).history
    assert {"of_keras", "accuracy", "weighted"} <= set(history) and "mean_iou" not in history
    weights = np.zeros(labels.shape, "float32")
    weights[:, 8:] = 1.0
    found = trainer.evaluate(images, labels, sample_weight=weights, return_dict=True, verbose=0)
    assert found["of_weighted"] == pytest.approx(found["mean_iou"], rel=1e-5)
    whole = trainer.evaluate(images, labels, return_dict=True, verbose=0)
    assert found["of_keras"] == pytest.approx(whole["mean_iou"], rel=1e-5)
    right = trainer.predict(images, verbose=0).argmax(axis=-1) == labels
    assert found["accuracy"] == pytest.approx(right.mean(), rel=1e-5)
    assert found["weighted"] == pytest.approx(right[:, 8:].mean(), rel=1e-5)


def test_a_mean_iou_of_the_user_takes_the_place_of_the_own():
    images, labels = data(4)
    trainer = make(contrast=False, compiled={"metrics": [MeanIoU(3)]})
    history = trainer.fit(images, labels, validation_data=(images, labels), verbose=0).history
    assert {"mean_iou", "val_mean_iou"} <= set(history)


def test_a_loss_of_compile_is_a_term_of_its_name():
    images, labels = data(4)
    batch = {"image": images, "label": labels}
    for given, weight, name in (
        (Dice(), 0.5, "dice"),
        (CrossEntropy(), None, "cross_entropy"),
        ({"logits": Dice()}, {"logits": 0.5}, "dice"),
        (lambda y, x: global_ratio(*cross_entropy(y, x)), None, "<lambda>"),
    ):
        trainer = make(contrast=False, compiled={"loss": given, "loss_weights": weight})
        logs = {key: float(value) for key, value in trainer.take_step(batch).items()}
        assert set(logs) == {"loss", name}  # In place of the default.
        assert logs["loss"] == pytest.approx((0.5 if weight else 1.0) * logs[name])
    trainer = make(
        contrast=False, losses={"focal": (Focal(), 2.0)}, compiled={"loss": CrossEntropy()}
    )
    logs = trainer.take_step(batch)
    assert float(logs["loss"]) == pytest.approx(2 * logs["focal"] + logs["cross_entropy"])
    with pytest.raises(ValueError, match="has a loss of that name already"):
        trainer.compile("sgd", loss=Focal())


def test_predictions_have_the_size_of_the_images_and_the_averaged_weights():
    images, labels = data(6)
    trainer = make(averaged=True, ema_decay=0.5)
    trainer.fit(dicts(images, labels), verbose=0)
    expected = resize(trainer.averaged(images)["logits"], SIZE)
    for x in (images, dicts(images, labels, 3), {"image": images}):
        found = trainer.predict(x, batch_size=None, verbose=0)
        assert_equal([found], [expected])
    assert found.dtype == "float32" and found.shape == (6, *SIZE, NUM_CLASSES)


def test_steps_per_execution_change_nothing():
    images, labels = data(12)
    one, two = make(), make(compiled={"steps_per_execution": 2})
    for trainer in (one, two):
        trainer.fit(dicts(images, labels), verbose=0)  # Three steps: 2 and 1.
    assert_equal(values(one.weights), values(two.weights))


@pytest.mark.parametrize("kind", [SGD, keras.optimizers.Adam])
def test_accumulated_steps_are_one_step_with_the_mean_gradient(kind):
    images, labels = data(8)
    labels[labels == 255] = 0  # As many pixels in each batch: the mean of the means.
    one, two = (
        make(kind(0.1, **more), contrast=False, clip_norm=0.1)
        for more in ({}, {"gradient_accumulation_steps": 2})
    )
    one.fit(dicts(images, labels, 8), verbose=0)
    first = values(two.segmenter.weights)
    two.take_step({"image": images[:4], "label": labels[:4]})
    assert_equal(values(two.segmenter.weights), first)
    two.take_step({"image": images[4:], "label": labels[4:]})
    assert_equal(values(two.segmenter.weights), values(one.segmenter.weights))
    assert int(two.optimizer.iterations) == 1


def float16_trainer(scale=2.0**8, **arguments):
    """Only the layers compute in float16, not the trainer."""
    trainer = make(SGD(0.1), dtype="mixed_float16", **arguments)
    trainer.optimizer.dynamic_scale.assign(scale)
    return trainer


def test_layers_in_float16_scale_the_loss_and_a_skipped_step_writes_no_bank():
    images, labels = data(4)
    trainer = float16_trainer(2.0**60)
    assert trainer.optimizer.name == "loss_scale_optimizer"
    weights = values(trainer.segmenter.weights)
    history = trainer.fit(dicts(images, labels), verbose=0).history
    assert np.isfinite(history["loss"]).all()
    bank = trainer.objectives[0].bank
    np.testing.assert_array_equal(bank.count, [0, 0, 0])
    assert_equal(values(trainer.segmenter.weights), weights)
    assert float(trainer.optimizer.dynamic_scale) == 2.0**59
    trainer.optimizer.dynamic_scale.assign(2.0**8)
    trainer.fit(dicts(images, labels), verbose=0)
    np.testing.assert_array_equal(bank.count, [4, 4, 4])
    assert not np.array_equal(values(trainer.segmenter.weights)[0], weights[0])
    assert bank.entries.dtype == "float32" and bank.compute_dtype == "float32"
    terms, (entries, _) = trainer.loss_terms(trainer.segmenter(images), labels)
    assert {value.dtype.name for value, _ in terms.values()} == {"float32"}
    assert entries[0].dtype == "float32"
    plain = make(SGD(0.1), dtype="mixed_float16", compiled={"auto_scale_loss": 0})
    assert isinstance(plain.optimizer, SGD)


def test_the_loss_scale_grows_as_in_keras():
    images, labels = data(4)
    trainer = make(
        keras.optimizers.LossScaleOptimizer(SGD(0.1), dynamic_growth_steps=2), contrast=False
    )
    scales = []
    for _ in range(4):
        trainer.take_step((images, labels))
        scales.append(float(trainer.optimizer.dynamic_scale))
    assert scales == [2.0**15, 2.0**16, 2.0**16, 2.0**17]


ACCUMULATE = {"gradient_accumulation_steps": 2}
OPTIONS = {
    "metrics": (SGD, {}, {}, {"metrics": [MeanIoU(3, name="iou")]}),
    "accumulation": (SGD, ACCUMULATE, {"clip_norm": 0.1}, {}),
    "float16": (SGD, ACCUMULATE, {"dtype": "mixed_float16", "averaged": True}, {}),
    "averages": (
        keras.optimizers.Adam,
        {"use_ema": True, "ema_overwrite_frequency": 3, "weight_decay": 0.1},
        {},
        {},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_fit_on_two_replicas_is_that_on_one(mirrored, name):
    kind, options, settings, compiled = OPTIONS[name]
    images, labels = data(16)
    labels[:2, 4:] = 255  # Replicas have unequal numbers of valid pixels.
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            metrics = [type(m).from_config(m.get_config()) for m in compiled.get("metrics", [])]
            trainer = make(
                kind(0.01, **options), compiled={**compiled, "metrics": metrics}, **settings
            )
            if "dtype" in settings:
                trainer.optimizer.dynamic_scale.assign(2.0**8)
        history = trainer.fit(
            dicts(images, labels),
            validation_data=tf.data.Dataset.from_tensor_slices(data(5, seed=1)).batch(4),
            verbose=0,
        ).history
        results.append((history, values(trainer.weights), trainer.predict(images[:5], verbose=0)))
    (one, *ours), (two, *theirs) = results
    tolerance = {"rtol": 5e-3, "atol": 2e-3} if "dtype" in settings else {"rtol": 2e-4}
    assert set(one) == set(two)
    for key in one:
        np.testing.assert_allclose(two[key], one[key], err_msg=key, **tolerance)
    assert_equal(ours[0], theirs[0], **{"atol": 1e-5, **tolerance})
    assert_equal([ours[1]], [theirs[1]], **{"atol": 1e-4, **tolerance})


def test_several_steps_per_execution_on_two_replicas_are_refused(mirrored):
    """Keras' loop fails there, deep in TensorFlow."""
    with mirrored.scope():
        trainer = make(compiled={"steps_per_execution": 2})
    with pytest.raises(ValueError, match=r"needs a single replica.*Received: 2 and 2"):
        trainer.fit(dicts(*data()), verbose=0)


def test_arrays_on_two_replicas(mirrored):
    images, labels = data(8)
    with mirrored.scope():
        trainer = make()
    history = trainer.fit(
        images, labels, batch_size=4, validation_split=0.25, epochs=2, verbose=0
    ).history
    assert np.isfinite(history["val_loss"]).all() and len(history["loss"]) == 2


def test_sample_weights_weigh_pixels_and_0_ignores_them():
    images, labels = data(4)
    weights = np.ones(labels.shape, "float32")
    weights[:2], weights[2, 8:] = 0.0, 3.0
    trainer = make()
    found = trainer.take_step((images, labels, weights))
    again = make()
    ignored = np.where(weights > 0, labels, 255)
    expected = again.take_step((images, ignored))
    for name in ("region_contrast/centers", "multi_scale/same_scale"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    logits = make().segmenter(images)["logits"]
    value = CrossEntropy()(labels, logits, weights)
    np.testing.assert_allclose(found["cross_entropy"], value, rtol=1e-5)
    of_images = trainer.evaluate(
        images, labels, sample_weight=np.array([0, 0, 1, 2.0]), verbose=0, return_dict=True
    )
    assert np.isfinite(of_images["loss"])
    with pytest.raises(ValueError, match="Sample weights are for means over pixels"):
        make(losses={"dice": (Dice(), 1.0)}).take_step((images, labels, weights))


def test_regularizers_of_the_network_count():
    images, labels = data(4)
    trainer = make(segmenter=network(regularizer=keras.regularizers.L2(0.1)), contrast=False)
    kernel = trainer.segmenter.get_layer("stem").kernel.numpy()
    logs = trainer.take_step((images, labels))
    np.testing.assert_allclose(logs["regularization"], 0.1 * np.sum(kernel**2), rtol=1e-5)
    np.testing.assert_allclose(
        logs["loss"], logs["cross_entropy"] + logs["regularization"], rtol=1e-5
    )
    assert trainer.term_weights(0)["regularization"] == 1.0
    # In parts they count once, and have their gradient.
    results = []
    for parts in (1, 2):
        model = network(regularizer=keras.regularizers.L2(0.1))
        trainer = make(segmenter=model, contrast=False, accumulate=parts)
        trainer.fit(images, labels, batch_size=4, verbose=0)
        results.append(values(trainer.segmenter.trainable_weights))
    assert_equal(*results)
    model = network(regularizer=keras.regularizers.L2(0.1))
    model.get_layer("stem").activity_regularizer = keras.regularizers.L2(0.1)
    with pytest.raises(ValueError, match="takes no activity regularizers"):
        make(segmenter=model, contrast=False, accumulate=2).take_step((images, labels))


@pytest.mark.parametrize("limit", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping_of_keras_is_that_of_the_sum_over_replicas(mirrored, limit):
    images, labels = data(4)
    moved = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            optimizer = keras.optimizers.SGD(1.0, **{limit: 1e-3})
            trainer = make(optimizer, contrast=False)
        before = values(trainer.segmenter.trainable_weights)
        trainer.fit(dicts(images, labels), verbose=0)
        after = values(trainer.segmenter.trainable_weights)
        moved.append([a - b for a, b in zip(after, before, strict=True)])
    assert_equal(*moved)
    sizes = {
        "clipnorm": max(np.linalg.norm(change) for change in moved[0]),
        "global_clipnorm": np.sqrt(sum(np.sum(change**2) for change in moved[0])),
        "clipvalue": max(np.abs(change).max() for change in moved[0]),
    }
    np.testing.assert_allclose(sizes[limit], 1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(SGD, keras.optimizers.SGD), (AdamW, keras.optimizers.AdamW)]
)
def test_weight_decay_is_that_of_keras(ours, theirs):
    images, labels = data(4)
    results = []
    for kind in (ours, theirs):
        options = {"momentum": 0.9} if "SGD" in kind.__name__ else {"epsilon": 1e-8}
        trainer = make(kind(0.01, weight_decay=0.5, **options), contrast=False)
        trainer.fit(dicts(images, labels), epochs=3, verbose=0)
        results.append(values(trainer.segmenter.weights))
    assert_equal(*results, atol=1e-5)


def test_the_summary_shows_banks_and_objectives():
    lines = []
    make(averaged=True).summary(print_fn=lambda line, **_: lines.append(line))
    text = "\n".join(lines)
    for name in ("network", "region_contrast", "region_contrast_bank", "multi_scale"):
        assert name in text
    assert "cross_entropy" in text and "3 x 4 slots" in text


def test_train_and_test_on_batch():
    images, labels = data(4)
    trainer, other = make(contrast=False), make(contrast=False)
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    expected = other.fit(dicts(images, labels), verbose=0).history
    assert logs == pytest.approx({key: value[0] for key, value in expected.items()})
    logs = trainer.test_on_batch(images, labels, return_dict=True)
    assert logs["mean_iou"] == pytest.approx(
        other.evaluate(dicts(images, labels), return_dict=True, verbose=0)["mean_iou"]
    )


def plain_network(classes=NUM_CLASSES):
    image = keras.Input((*SIZE, 3))
    return keras.Model(image, keras.layers.Conv2D(classes, 1)(image))


MISTAKES = {
    "no dict": (lambda: SegmentationTrainer(plain_network()), "dict with `logits`"),
    "no model": (lambda: SegmentationTrainer(lambda x: x), "dict with `logits`"),
    "no weight": (
        lambda: SegmentationTrainer(network(), objectives=[RegionContrast(3)]),
        r"`objectives` needs a weight.*Received: region_contrast$",
    ),
    "no weight of a loss": (
        lambda: SegmentationTrainer(network(), losses={"dice": Dice()}),
        "`losses` needs a weight.*Received: dice$",
    ),
    "a loss with a ramp": (
        lambda: SegmentationTrainer(network(), losses={"dice": (Dice(), Ramp(1.0, steps=3))}),
        "`losses` needs a weight",
    ),
    "a loss as an objective": (
        lambda: SegmentationTrainer(network(), objectives=[(Dice(), 1.0)]),
        "Objectives must be of",
    ),
    "other classes": (
        lambda: SegmentationTrainer(network(), objectives=[(RegionContrast(4), 0.1)]),
        "as many classes as the segmenter, 3. Received: num_classes=4",
    ),
    "class weights": (
        lambda: make(contrast=False, compiled={"loss": CrossEntropy([1, 2])}).take_step(data(2)),
        "each of the 3 classes of the logits. Received: 2",
    ),
    "a metric of other classes": (
        lambda: make(contrast=False, compiled={"metrics": [MeanIoU(4)]}).fit(*data(2), verbose=0),
        "MeanIoU of 4 classes needs logits",
    ),
    "dynamic batches": (
        lambda: make().fit(tf.data.Dataset.from_tensor_slices(data(3)).batch(2), verbose=0),
        r"batches of a static size.*drop_remainder=True",
    ),
    "a loss by name": (
        lambda: make(compiled={"loss": "sparse_categorical_crossentropy"}),
        "by name take probabilities.*kseg.losses.CrossEntropy",
    ),
    "a loss of probabilities": (
        lambda: make(compiled={"loss": keras.losses.SparseCategoricalCrossentropy()}),
        "from_logits=True and ignore_class=255",
    ),
    "another output": (
        lambda: make(compiled={"loss": {"aux": Dice()}}),
        r"Received: \['aux'\]. Choose from",
    ),
    "weights without a loss": (
        lambda: make(compiled={"loss_weights": [1.0]}),
        "`loss_weights` are those of `loss`",
    ),
    "no labels": (
        lambda: make(contrast=False).fit(data(2)[0], verbose=0),
        "Batches must be dicts.*Received: images without labels",
    ),
    "one-hot labels": (
        lambda: make(contrast=False).fit(data(2)[0], np.zeros((2, *SIZE, 3)), verbose=0),
        "must be class numbers",
    ),
    "sample weights of another shape": (
        lambda: make(contrast=False).take_step((*data(2), np.ones((2, 5)))),
        "`sample_weight` must be one number for each image",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name):
    attempt, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    assert "\n" not in str(error.value)
