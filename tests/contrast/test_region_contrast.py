import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.region_contrast import RegionContrast
from kseg.contrast.regions import region_centers
from kseg.training.optimizers import SGD
from kseg.training.trainer import SegmentationTrainer, build_step
from tests.contrast.test_info_nce import reference


def example(batch=4, seed=0, dim=6):
    rng = np.random.default_rng(seed)
    outputs = {
        "features": tf.constant(rng.normal(size=(batch, 4, 6, dim)), "float32"),
        "logits": tf.constant(rng.normal(size=(batch, 4, 6, 3)), "float32"),
    }
    labels = rng.integers(0, 3, (batch, 16, 24))
    labels[:, :4] = 255
    return outputs, labels


def prepared(**arguments):
    objective = RegionContrast(3, **{"reduction": "mean", **arguments})
    objective.prepare(example()[0])
    return objective


def centers_of(outputs, labels):
    result = region_centers(outputs["features"], outputs["logits"], labels)
    return [x.numpy() for x in result]


def mean_loss(anchors, keys, positions=None, temperature=0.2):
    loss, valid, *_ = reference(*anchors, *keys, temperature, positions)
    return loss.sum() / max(valid.sum(), 1)


@pytest.mark.parametrize("centers", ["weighted", "hard", "average"])
def test_keys_are_the_centers_of_earlier_batches(centers):
    objective = prepared(centers=centers, capacity=20)
    remembered = []
    for seed in range(3):
        outputs, labels = example(seed=seed)
        anchors, anchor_labels = (
            x.numpy()
            for x in region_centers(outputs["features"], outputs["logits"], labels, mode=centers)
        )
        keys = np.concatenate([x for x, _ in remembered]) if remembered else np.zeros((1, 6))
        key_labels = np.concatenate([y for _, y in remembered]) if remembered else np.array([-1])
        expected = mean_loss((anchors, anchor_labels), (keys, key_labels))
        terms, to_store = objective.contrast(outputs, labels)
        np.testing.assert_allclose(terms["centers"], expected, rtol=1e-4)
        assert (seed > 0) == (expected > 0)
        objective.remember(to_store)
        remembered.append((anchors, anchor_labels))


def test_a_full_ring_forgets_the_oldest():
    objective = prepared(capacity=2)
    for seed in range(3):
        objective.remember(objective.contrast(*example(seed=seed))[1])
    outputs, labels = example(seed=2)
    centers, _ = region_centers(outputs["features"], outputs["logits"], labels)
    np.testing.assert_array_equal(objective.bank.count, [2, 2, 2])
    # Images 2 and 3 of the last batch, at the slots that the cursor has reached.
    last = centers.numpy().reshape((4, 3, 6))[2:]
    for n in range(3):
        stored = objective.bank.entries.numpy()[2 * n : 2 * n + 2]
        order = [int(objective.bank.cursor[n]), (int(objective.bank.cursor[n]) + 1) % 2]
        np.testing.assert_allclose(stored[order], last[:, n], rtol=1e-6)


@pytest.mark.parametrize("scope", ["dataset", "batch"])
def test_sum_over_the_classes_of_an_image(scope):
    objective = prepared(scope=scope, reduction="sum", capacity=20)
    objective.remember(objective.contrast(*example(seed=1))[1])
    outputs, labels = example()
    labels[1] = 255  # An image without a class counts as an image.
    anchors = centers_of(outputs, labels)
    if scope == "dataset":
        keys, positions = centers_of(*example(seed=1)), None
    else:
        keys, positions = anchors, np.arange(12)
    loss, *_ = reference(*anchors, *keys, 0.2, positions)
    by_image = loss.reshape((4, 3)).sum(axis=1)
    assert by_image[1] == 0 and np.all(by_image[[0, 2, 3]] > 0)
    np.testing.assert_allclose(objective(outputs, labels)["centers"], by_image.mean(), rtol=1e-4)


def test_scope_batch():
    objective = prepared(scope="batch")
    outputs, labels = example()
    anchors = centers_of(outputs, labels)
    expected = mean_loss(anchors, anchors, np.arange(12))
    np.testing.assert_allclose(objective(outputs, labels)["centers"], expected, rtol=1e-5)
    assert objective.bank is None
    objective.remember(objective.contrast(outputs, labels)[1])  # There is no bank to store it in.


@pytest.mark.parametrize("labels", [np.full((4, 16, 24), 255), np.zeros((4, 16, 24), int)])
@pytest.mark.parametrize("scope", ["batch", "dataset"])
def test_no_class_or_one_class_is_no_loss(labels, scope):
    objective = prepared(scope=scope)
    outputs, _ = example()
    for _ in range(2):
        terms, to_store = objective.contrast(outputs, labels)
        assert float(terms["centers"]) == 0
        objective.remember(to_store)


def test_bfloat16_features():
    objective = prepared()
    outputs, labels = example()
    outputs = {name: tf.cast(x, "bfloat16") for name, x in outputs.items()}
    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            terms, to_store = objective.contrast(outputs, labels)
            loss = terms["centers"]
        gradient = tape.gradient(loss, outputs)["features"]
        assert gradient is None or np.isfinite(gradient.numpy().astype("float32")).all()
        objective.remember(to_store)
    assert float(loss) > 0


def network():
    keras.utils.set_random_seed(3)
    image = keras.Input((16, 24, 3))
    x = keras.layers.Conv2D(6, 4, strides=4, activation="relu", name="features")(image)
    return keras.Model(
        image, {"features": x, "logits": keras.layers.Conv2D(3, 1, name="logits")(x)}
    )


def train(strategy, steps, **arguments):
    """Trains a small network; returns the terms, the weights, and the content of the bank."""
    with strategy.scope():
        objective = RegionContrast(3, capacity=5, **arguments)
        trainer = SegmentationTrainer(network(), objectives=[(objective, 0.5)])
        optimizer = SGD(0.1)
        optimizer.build(trainer.segmenter.trainable_variables)
        trainer.compile(optimizer=optimizer)
    step = build_step(trainer, strategy)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 9, (steps * 4, 16, 24, 3)).astype("float32")
    labels = rng.integers(0, 3, (steps * 4, 16, 24)).astype("int32")
    labels[::3] = 1
    batches = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})
    batches = strategy.experimental_distribute_dataset(batches.batch(4, drop_remainder=True))
    logs = [{name: float(x) for name, x in step(batch).items()} for batch in batches]
    weights = [weight.numpy() for weight in trainer.segmenter.weights]
    bank = [] if objective.bank is None else [weight.numpy() for weight in objective.bank.weights]
    return logs, weights, bank


@pytest.mark.parametrize(
    "scope, reduction", [("dataset", "mean"), ("batch", "mean"), ("dataset", "sum")]
)
def test_two_replicas_are_one_with_the_whole_batch(mirrored, scope, reduction):
    arguments = {"scope": scope, "reduction": reduction}
    logs, weights, bank = train(tf.distribute.get_strategy(), 3, **arguments)
    assert logs[-1]["region_contrast/centers"] > 0
    for ours, goal in zip(train(mirrored, 3, **arguments), (logs, weights, bank), strict=True):
        for x, y in zip(ours, goal, strict=True):
            if isinstance(x, dict):
                x, y = list(x.values()), list(y.values())
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


def test_evaluation_leaves_the_bank_unchanged():
    objective = prepared()
    objective(*example())
    assert not np.any(objective.bank.count)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scope": "image"}, "scope='image'"),
        ({"centers": "mean"}, "centers='mean'"),
        ({"reduction": "none"}, "reduction='none'"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        RegionContrast(3, **arguments)


def test_a_bank_that_was_not_prepared_is_an_error():
    objective = RegionContrast(3)
    with pytest.raises(
        ValueError, match=r"'region_contrast' contrasts with a memory bank.*prepare"
    ):
        objective(*example())
    with pytest.raises(ValueError, match=r"Call prepare\(segmenter.output\) first"):
        objective.remember((tf.ones((3, 6)), tf.constant([0, 1, 2])))


@pytest.mark.parametrize("centers", ["weighted", "hard", "average"])
@pytest.mark.parametrize("size", [(2, 3), (8, 12), (16, 24), (3, 7)])
def test_logits_of_any_size(size, centers):
    """A user's model may have them at another stride than its features."""
    objective = prepared(centers=centers, scope="batch")
    outputs, labels = example()
    other = np.random.default_rng(1).normal(size=(4, *size, 3)).astype("float32")
    resized = tf.image.resize(other, outputs["features"].shape[1:3])
    result = objective(dict(outputs, logits=tf.constant(other)), labels)["centers"]
    expected = objective(dict(outputs, logits=resized), labels)["centers"]
    assert float(expected) > 0
    np.testing.assert_allclose(result, expected, rtol=1e-6)
