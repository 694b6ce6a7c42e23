import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.evaluation.evaluator import Evaluator, predict
from kseg.evaluation.metrics import Scores
from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.dice import dice_loss
from kseg.losses.reduction import global_ratio

NUM_CLASSES = 3


def tiny_model(dropout=0.0):
    """Has state that training, and only training, would change."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(image)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(image, keras.layers.Conv2D(NUM_CLASSES, 1, name="logits")(x))


def examples(sizes, seed=0):
    rng = np.random.default_rng(seed)
    for height, width in sizes:
        labels = rng.integers(0, NUM_CLASSES, (height, width)).astype("uint8")
        labels[0, :3] = 255
        yield rng.integers(0, 256, (height, width, 3)).astype("uint8"), labels


def batches_of(items, batch_sizes):
    """A data set of these batches, as the loader gives them."""
    items = list(items)
    grouped, start = [], 0
    for size in batch_sizes:
        images, labels = zip(*items[start : start + size], strict=True)
        grouped.append({"image": np.stack(images), "label": np.stack(labels)})
        start += size
    assert start == len(items)
    signature = {
        "image": tf.TensorSpec((None, None, None, 3), "uint8"),
        "label": tf.TensorSpec((None, None, None), "uint8"),
    }
    dataset = tf.data.Dataset.from_generator(lambda: iter(grouped), output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(grouped)))


def expected_matrix(model, items):
    matrix = np.zeros((NUM_CLASSES, NUM_CLASSES), "int64")
    for image, labels in items:
        found = np.argmax(model(image[None], training=False)[0], axis=-1)
        known = labels < NUM_CLASSES
        np.add.at(matrix, (labels[known], found[known]), 1)
    return matrix


def test_counts_every_pixel_once():
    items = list(examples([(6, 8)] * 5))
    model = tiny_model()
    evaluation = Evaluator(model, NUM_CLASSES)(batches_of(items, [2, 2, 1]))
    np.testing.assert_array_equal(evaluation.scores.matrix, expected_matrix(model, items))
    assert evaluation.num_images == 5
    assert evaluation.images_per_second > 0


def test_one_trace_for_all_sizes():
    items = list(examples([(6, 8), (9, 5), (7, 7), (16, 3)]))
    model = tiny_model()
    evaluator = Evaluator(model, NUM_CLASSES)
    done = []
    evaluation = evaluator(batches_of(items, [1, 1, 1, 1]), progress=done.append)
    np.testing.assert_array_equal(evaluation.scores.matrix, expected_matrix(model, items))
    assert done == [1, 2, 3, 4]
    evaluator(batches_of(examples([(4, 4)] * 3), [3]))
    assert evaluator._count.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("batch_sizes", [[2, 2, 1], [1] * 5, [5], [2, 3]])
def test_two_replicas_give_the_answer_of_one(mirrored, batch_sizes):
    items = list(examples([(6, 8)] * 5))
    with mirrored.scope():
        model = tiny_model()
    evaluator = Evaluator(model, NUM_CLASSES, strategy=mirrored)
    evaluation = evaluator(batches_of(items, batch_sizes), num_examples=4)
    np.testing.assert_array_equal(evaluation.scores.matrix, expected_matrix(model, items))
    assert evaluation.num_images == 5
    assert len(evaluation.examples) == 4
    for seen, truth, prediction in evaluation.examples:
        labels = next(labels for image, labels in items if np.array_equal(image, seen))
        np.testing.assert_array_equal(labels, truth)
        np.testing.assert_array_equal(predict(model, seen[None], NUM_CLASSES)[0], prediction)


def test_two_replicas_with_batches_of_different_sizes(mirrored):
    items = list(examples([(6, 8), (9, 5), (7, 7)]))
    with mirrored.scope():
        model = tiny_model()
    evaluator = Evaluator(model, NUM_CLASSES, strategy=mirrored)
    evaluation = evaluator(batches_of(items, [1, 1, 1]))
    np.testing.assert_array_equal(evaluation.scores.matrix, expected_matrix(model, items))


def test_model_of_two_replicas_on_one(mirrored):
    items = list(examples([(6, 8)] * 3))
    with mirrored.scope():
        model = tiny_model()
    evaluation = Evaluator(model, NUM_CLASSES)(batches_of(items, [2, 1]))
    np.testing.assert_array_equal(evaluation.scores.matrix, expected_matrix(model, items))


def test_changes_no_state():
    model = tiny_model(dropout=0.5)
    before = [keras.ops.convert_to_numpy(variable) for variable in model.variables]
    first = Evaluator(model, NUM_CLASSES)(batches_of(examples([(6, 8)] * 2), [2]))
    second = Evaluator(model, NUM_CLASSES)(batches_of(examples([(6, 8)] * 2), [2]))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)
    np.testing.assert_array_equal(first.scores.matrix, second.scores.matrix)


def test_sees_new_weights_without_a_new_trace():
    items = list(examples([(6, 8)] * 2))
    model = tiny_model()
    evaluator = Evaluator(model, NUM_CLASSES)
    evaluator(batches_of(items, [2]))
    model.get_layer("logits").bias.assign([0.0, 0.0, 1e6])
    matrix = evaluator(batches_of(items, [2])).scores.matrix
    assert matrix[:, 2].sum() == matrix.sum() == 2 * (6 * 8 - 3)


@pytest.mark.parametrize(
    "count, batch_sizes, expected",
    [
        (0, [2, 2], []),
        (1, [2, 2, 1], [3]),  # The middle of three batches is in the second one.
        (2, [1, 1, 1, 1], [1, 3]),
        (4, [2, 2], [0, 1, 2, 3]),
        (9, [2, 1], [0, 1, 2]),  # No image twice.
    ],
)
def test_examples_are_spread(count, batch_sizes, expected):
    items = list(examples([(4, 4)] * sum(batch_sizes)))
    evaluation = Evaluator(tiny_model(), NUM_CLASSES)(
        batches_of(items, batch_sizes), num_examples=count
    )
    found = [
        next(i for i, (image, _) in enumerate(items) if np.array_equal(image, seen))
        for seen, _, _ in evaluation.examples
    ]
    assert found == expected


def test_single_batch_has_no_speed():
    evaluation = Evaluator(tiny_model(), NUM_CLASSES)(batches_of(examples([(4, 4)]), [1]))
    assert np.isnan(evaluation.images_per_second)


def test_scores_are_those_of_the_matrix():
    evaluation = Evaluator(tiny_model(), NUM_CLASSES)(batches_of(examples([(4, 4)]), [1]))
    assert isinstance(evaluation.scores, Scores)


@pytest.mark.parametrize("replicas", [1, 2])
def test_counts_of_each_image(mirrored, replicas):
    items = list(examples([(6, 8)] * 5))
    with mirrored.scope():
        model = tiny_model()
    evaluator = Evaluator(model, NUM_CLASSES, strategy=mirrored if replicas == 2 else None)
    seen = []
    evaluation = evaluator(
        batches_of(items, [2, 2, 1]), consumers=[lambda *arrays: seen.append(arrays)]
    )
    counts = evaluation.image_counts
    assert counts.ids == ["0", "1", "2", "3", "4"]
    for item, pixels in zip(items, counts.pixels, strict=True):
        matrix = expected_matrix(model, [item])
        np.testing.assert_array_equal(pixels, [np.diag(matrix), matrix.sum(1), matrix.sum(0)])
    assert [ids for ids, _, _ in seen] == [["0", "1"], ["2", "3"], ["4"]]
    labels, predictions = (np.concatenate(arrays) for arrays in list(zip(*seen, strict=True))[1:])
    np.testing.assert_array_equal(labels, [labels for _, labels in items])
    images = np.stack([image for image, _ in items])
    np.testing.assert_array_equal(predictions, predict(model, images, NUM_CLASSES))


def test_images_have_the_names_of_the_data():
    batches = batches_of(examples([(4, 4)] * 2), [2]).map(lambda b: {**b, "id": ["left", "right"]})
    assert Evaluator(tiny_model(), NUM_CLASSES)(batches).image_counts.ids == ["left", "right"]


def test_refuses_a_model_of_other_classes():
    with pytest.raises(ValueError, match="A model of 4 classes"):
        Evaluator(tiny_model(), 4)(batches_of(examples([(4, 4)]), [1]))


@pytest.mark.parametrize("replicas", [1, 2])
def test_losses_are_means_over_the_pixels_of_all_batches(mirrored, replicas):
    """Of batches that differ in size between the replicas."""
    items = list(examples([(6, 8)] * 4 + [(9, 5)] * 3))
    if replicas == 2:
        with mirrored.scope():
            model = tiny_model()
    else:
        model = tiny_model()
    losses = {
        "cross_entropy": lambda y, outputs: global_ratio(*cross_entropy(y, outputs["logits"])),
        "dice": lambda y, outputs: dice_loss(y, outputs["logits"]),
    }
    strategy = mirrored if replicas == 2 else None
    evaluator = Evaluator(model, NUM_CLASSES, losses=losses, strategy=strategy)
    found = evaluator(batches_of(items, [2, 2, 3])).losses
    pixels = []
    for image, labels in items:
        logits = tf.nn.log_softmax(model(image[None], training=False)[0]).numpy()
        known = labels < NUM_CLASSES
        pixels.append(-logits[known][np.arange(known.sum()), labels[known]])
    assert found["cross_entropy"] == pytest.approx(np.concatenate(pixels).mean(), rel=1e-5)
    sums = np.zeros(2)
    for batch in batches_of(items, [2, 2, 3]):
        count = float((batch["label"].numpy() < NUM_CLASSES).sum())
        labels = tf.cast(batch["label"], "int32")
        loss = float(dice_loss(labels, model(batch["image"], training=False)))
        sums += [count, count * loss]
    assert found["dice"] == pytest.approx(sums[1] / sums[0], rel=1e-5)


def test_without_labels_a_loss_is_nan():
    labels = np.full((1, 4, 4), 255, "uint8")
    batch = {"image": np.zeros((1, 4, 4, 3), "uint8"), "label": labels}
    losses = {"ce": lambda y, outputs: global_ratio(*cross_entropy(y, outputs["logits"]))}
    evaluator = Evaluator(tiny_model(), NUM_CLASSES, losses=losses)
    assert np.isnan(evaluator(tf.data.Dataset.from_tensors(batch)).losses["ce"])


def test_images_whose_logits_overflow_are_counted():
    """In float16; the last has no label, so that nothing depends on it."""
    images = np.full((4, 6, 8, 3), 9, "uint8")
    images[1, 2, 3], images[3] = 250, 250
    labels = np.zeros((4, 6, 8), "uint8")
    labels[3] = 255

    def model(images, training):
        value = tf.cast(images[..., :1], "float16") * 300
        return tf.cast(tf.concat([value, -value, value], axis=-1), "float32")

    dataset = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(3)
    evaluation = Evaluator(model, NUM_CLASSES)(dataset)
    assert evaluation.non_finite == 1
    assert "the logits of 1 of 4 images are NaN or infinite" in evaluation.warning()
    assert (
        Evaluator(model, NUM_CLASSES)(
            dataset.map(lambda x: {**x, "image": x["image"] // 9})
        ).warning()
        is None
    )
