"""Data of other kinds than arrays and data sets, and batches of several sizes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.region_contrast import RegionContrast
from kseg.losses import CrossEntropy
from kseg.training.trainer import SegmentationTrainer
from tests.training.test_keras_model import (
    NUM_CLASSES,
    SIZE,
    assert_equal,
    data,
    dicts,
    make,
    network,
    values,
)


class Batches(keras.utils.PyDataset):
    """Batches of four; the last may be smaller."""

    def __init__(self, images, labels):
        super().__init__()
        self.parts = images, labels

    @property
    def num_batches(self):
        return -(-len(self.parts[0]) // 4)

    def __getitem__(self, index):
        return tuple(part[4 * index : 4 * index + 4] for part in self.parts)


def region_trainer(**compiled):
    keras.utils.set_random_seed(1)
    objectives = [(RegionContrast(NUM_CLASSES, capacity=4), np.float32(0.25))]
    trainer = SegmentationTrainer(network(), objectives=objectives)
    trainer.compile(keras.optimizers.SGD(0.1), **compiled)
    return trainer


def generated(images, labels):
    batches = Batches(images, labels)
    for index in range(batches.num_batches):
        yield batches[index]


@pytest.mark.parametrize("kind", [Batches, generated])
def test_objectives_take_batches_of_python(kind):
    """A smaller last batch is left out of training, and padded in an evaluation."""
    images, labels = data(11)
    trainer, expected = region_trainer(), region_trainer()
    history = trainer.fit(kind(images, labels), shuffle=False, verbose=0).history
    again = expected.fit(dicts(images, labels), verbose=0).history
    assert history == again
    assert_equal(values(trainer.weights), values(expected.weights))
    found = trainer.evaluate(kind(images, labels), return_dict=True, verbose=0)
    assert found == pytest.approx(
        expected.evaluate(images, labels, batch_size=4, return_dict=True, verbose=0)
    )


def test_batches_of_python_in_every_epoch_without_a_graph():
    trainer = region_trainer(run_eagerly=True)
    validation = Batches(*data(6))
    history = trainer.fit(
        Batches(*data(7)), epochs=2, validation_data=validation, verbose=0
    ).history
    assert len(history["val_mean_iou"]) == 2
    np.testing.assert_array_equal(trainer.objectives[0].bank.count, [4, 4, 4])


def test_a_static_size_is_that_of_the_data_at_hand():
    images, labels = data(8)
    trainer = make(contrast=False)
    trainer.evaluate(dicts(images, labels), verbose=0)
    trainer.fit(images, labels, batch_size=3, validation_split=0.5, verbose=0)
    for size in (2, 3):
        logs = trainer.train_on_batch(images[:size], labels[:size], return_dict=True)
        assert np.isfinite(logs["loss"])


def test_single_batches_of_several_sizes_with_objectives():
    images, labels = data(4)
    trainer = region_trainer()
    trainer.train_on_batch(images[:1], labels[:1])
    trainer.train_on_batch({"image": images[:2], "label": labels[:2]})
    np.testing.assert_array_equal(trainer.objectives[0].bank.count, [3, 3, 3])
    trainer.test_on_batch(images[:2], labels[:2])
    found = trainer.test_on_batch(images[:1], labels[:1], return_dict=True)
    np.testing.assert_allclose(
        found["cross_entropy"], CrossEntropy()(labels[:1], trainer(images[:1])["logits"]), rtol=1e-5
    )


def test_arrays_that_are_shuffled_cause_no_warning(recwarn):
    region_trainer(run_eagerly=True).fit(*data(2), verbose=0)
    assert not [found for found in recwarn if "shuffle" in str(found.message)]


def test_images_of_weight_0_count_nowhere_in_an_evaluation():
    images, labels = data(8)
    trainer = make(contrast=False)
    weights = np.array([0, 0, 0, 0, 1, 1, 2, 0.5])  # The first batch has no weight at all.
    found = trainer.evaluate(
        images, labels, sample_weight=weights, batch_size=2, return_dict=True, verbose=0
    )
    expected = trainer.evaluate(
        images[4:], labels[4:], sample_weight=weights[4:], return_dict=True, verbose=0
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_unlabeled_pixels_of_any_number_are_ignored_by_the_loss_of_keras():
    images, labels = data(4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    trainer = make(contrast=False, compiled={"loss": loss})
    unlabeled = np.where(labels == 255, -1, labels.astype("int32"))
    found = trainer.evaluate(images, unlabeled, verbose=0)
    assert found == pytest.approx(trainer.evaluate(images, labels, verbose=0), rel=1e-6)


def test_an_exported_trainer_gives_what_predict_does(tmp_path):
    images, labels = data(2)
    trainer = make(contrast=False, averaged=True, ema_decay=0.5)
    trainer.train_on_batch(images, labels)
    trainer.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    found = exported.serve(tf.constant(images, "float32"))
    assert_equal([found], [trainer.predict(images, verbose=0)])


def frozen():
    model = network()
    model.trainable = False
    return model


def unfrozen_after_compile():
    model = network()
    model.get_layer("stem").trainable = False
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)
    trainer = make(optimizer, contrast=False, segmenter=model)
    model.get_layer("stem").trainable = True
    return trainer


class WithLossOfItsOwn(SegmentationTrainer):
    def compute_loss(self, **arguments):
        return super().compute_loss(**arguments)


def single(classes):
    image = keras.Input((*SIZE, 3))
    return keras.Model(image, {"logits": keras.layers.Conv2D(classes, 1)(image)})


MISTAKES = {
    "class weights of Keras": (
        lambda: make().fit(*data(2), class_weight={0: 1.0}, verbose=0),
        r"one class each. Received: class_weight=\{0: 1.0\}.*class_weights=\[\.\.\.\]",
    ),
    "class weights for a batch": (
        lambda: make(contrast=False).train_on_batch(*data(2), class_weight={0: 1.0}),
        "one class each",
    ),
    "a split of more than all": (
        lambda: make().fit(*data(4), validation_split=1.5, verbose=0),
        "`validation_split` must be between 0 and 1",
    ),
    "a split that leaves nothing": (
        lambda: make().fit(*data(2), validation_split=0.9, verbose=0),
        "leave images for both parts. Received: validation_split=0.9 and 2 images",
    ),
    "no compile": (
        lambda: SegmentationTrainer(network()).take_step(data(2)),
        r"must call `compile\(\)`",
    ),
    "all frozen": (
        lambda: make(contrast=False, segmenter=frozen()).take_step(data(2)),
        "nothing to train",
    ),
    "unknown to the optimizer": (
        lambda: unfrozen_after_compile().take_step(data(2)),
        "Unknown variable",
    ),
    "a loss that no step would call": (
        lambda: WithLossOfItsOwn(network()),
        "Received: WithLossOfItsOwn with a `compute_loss`.*Override `loss_terms`",
    ),
    "another loss of Keras": (
        lambda: make(compiled={"loss": keras.losses.Dice()}),
        "only SparseCategoricalCrossentropy.*Received: Dice",
    ),
    "a function of Keras": (
        lambda: make(compiled={"loss": keras.losses.mean_squared_error}),
        "only SparseCategoricalCrossentropy.*Received: mean_squared_error",
    ),
    "a loss of Keras in the constructor": (
        lambda: make(
            losses={"ce": (keras.losses.SparseCategoricalCrossentropy(from_logits=True), 1.0)}
        ),
        "ignore_class=255 here. Received: from_logits=True, ignore_class=None",
    ),
    "one class": (lambda: SegmentationTrainer(single(1)), "2 to 255 classes.*Received: .* of 1$"),
    "many classes": (lambda: SegmentationTrainer(single(256)), "2 to 255 classes"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name):
    attempt, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        attempt()
