import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from kseg.contrast.contextrast import Contextrast
from kseg.training.optimizers import SGD
from kseg.training.trainer import SegmentationTrainer, build_step

STAGES = {"c2": 0.1, "c3": 0.4, "c5": 1.0}
SIZES = {"c2": (8, 12), "c3": (4, 6), "c5": (2, 3)}
# No random draws: every pixel is a positive, and every error a negative.
EVERYTHING = {"layer_weights": STAGES, "max_samples": 10_000, "min_negatives": 0}


def example(batch=2, seed=0, num_classes=3, dim=5, dtype="float32"):
    rng = np.random.default_rng(seed)
    outputs = {"logits": rng.normal(size=(batch, *SIZES["c2"], num_classes))}
    for stage, size in SIZES.items():
        z = rng.normal(size=(batch, *size, dim))
        outputs[f"embedding_{stage}"] = z / np.linalg.norm(z, axis=-1, keepdims=True)
    labels = np.kron(rng.integers(0, num_classes, (batch, 4, 6)), np.ones((4, 4), int))
    labels[:, :4, :8] = 255
    return {name: tf.constant(x, dtype) for name, x in outputs.items()}, labels


def nearest(labels, size):
    step = labels.shape[1] // size[0]
    return labels[:, step // 2 :: step, step // 2 :: step]


def predictions(logits, size):
    """Argmax of logits at the centers of larger pixels: the mean of the four around each."""
    step = logits.shape[1] // size[0]
    if step > 1:
        a, b = step // 2 - 1, step // 2
        logits = sum(logits[:, i::step, j::step] for i in (a, b) for j in (a, b))
    return logits.argmax(-1)


def reference(
    outputs, labels, *, fraction=1.0, top="c5", shared=STAGES, own=0.5, other=0.5, tau=0.1
):
    """Loops in float64, without random sampling: see EVERYTHING."""
    outputs = {name: np.asarray(x, "float64") for name, x in outputs.items()}
    num_classes = outputs["logits"].shape[-1]
    means = {}
    for stage, size in SIZES.items():
        z, y = outputs[f"embedding_{stage}"], nearest(labels, size)
        means[stage] = [z[y == n].mean(0) if (y == n).any() else 0.0 for n in range(num_classes)]
    total = 0.0
    for stage, weight in STAGES.items():
        z, y = outputs[f"embedding_{stage}"], nearest(labels, SIZES[stage])
        guess = predictions(outputs["logits"], SIZES[stage])
        losses = []
        for n in range(num_classes):
            if not (y == n).any():
                continue
            anchor = means[stage][n]
            if stage != top and stage in shared:
                anchor = own * anchor + other * means[top][n]
            anchor = anchor / np.linalg.norm(anchor)
            error = (guess == n) & (y != n) & (y < num_classes)
            distance = np.stack([ndimage.distance_transform_edt(image) for image in error])
            order = np.argsort(distance[error], kind="stable")
            hard = order[: int(np.floor(fraction * error.sum() + 0.5))]
            negatives = np.exp(z[error][hard] @ anchor / tau).sum()
            terms = [-np.log(np.exp(s) / (np.exp(s) + negatives)) for s in z[y == n] @ anchor / tau]
            losses.append(np.mean(terms))
        total += weight * np.mean(losses) if losses else 0.0
    return total


def term(objective, outputs, labels):
    return objective(outputs, labels)["pixel_anchor"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {}),
        ({"reference": "c2"}, {"top": "c2"}),
        ({"shared_layers": ("c3", "c5")}, {"shared": ("c3", "c5")}),
        ({"own_weight": 0.9, "shared_weight": 0.2}, {"own": 0.9, "other": 0.2}),
        ({"temperature": 0.5}, {"tau": 0.5}),
    ],
)
def test_value_is_that_of_a_loop(arguments, expected):
    for seed in range(3):
        outputs, labels = example(seed=seed)
        objective = Contextrast(3, **EVERYTHING, hard_fraction=1.0, **arguments)
        np.testing.assert_allclose(
            term(objective, outputs, labels), reference(outputs, labels, **expected), rtol=1e-5
        )


def test_gradient_is_that_of_a_loop():
    outputs, labels = example()
    objective = Contextrast(3, **EVERYTHING, hard_fraction=1.0)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = term(objective, outputs, labels)
    gradients = tape.gradient(loss, outputs)
    assert gradients["logits"] is None
    rng = np.random.default_rng(0)
    for stage in STAGES:
        name = f"embedding_{stage}"
        for _ in range(12):
            index = tuple(rng.integers(0, size) for size in outputs[name].shape)
            moved = []
            for step in (-1e-5, 1e-5):
                z = np.array(outputs[name], "float64")
                z[index] += step
                moved.append(reference({**outputs, name: z}, labels))
            expected = (moved[1] - moved[0]) / 2e-5
            np.testing.assert_allclose(gradients[name][index], expected, rtol=2e-3, atol=2e-5)


def test_only_errors_near_an_edge_repel():
    # A square of errors: its 8 outer pixels are nearer to the edge than the inner one.
    labels = np.zeros((1, 8, 12), int)
    labels[0, 2:5, 2:5] = 1
    labels[0, 7] = 2
    outputs, _ = example(batch=1)
    objective = Contextrast(
        3, layer_weights={"c2": 1.0}, reference="c2", min_negatives=0, hard_fraction=8 / 9
    )
    guess = np.where(labels == 1, 0, labels)  # The square is predicted as class 0.
    outputs["logits"] = tf.one_hot(guess, 3) * 9.0
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = term(objective, outputs, labels)
    gradient = np.abs(tape.gradient(loss, outputs)["embedding_c2"][0]).sum(-1)
    assert (gradient[2:5, 2:5] > 0).sum() == 8
    assert gradient[3, 3] == 0


def test_more_samples_than_there_is_room_for_give_an_estimate():
    outputs, labels = example(batch=8)
    options = {**EVERYTHING, "hard_fraction": 1.0}
    whole = float(term(Contextrast(3, **options), outputs, labels))
    objective = Contextrast(3, **{**options, "layer_weights": STAGES, "max_samples": 150})
    draws = [float(term(objective, outputs, labels)) for _ in range(20)]
    assert np.std(draws) > 0
    # Fewer negatives, less loss; the finest layer has the least weight.
    assert 0.7 * whole < np.mean(draws) < 1.05 * whole


@pytest.mark.parametrize("labels", [np.full((2, 16, 24), 255), np.zeros((2, 16, 24), int)])
def test_nothing_to_contrast(labels):
    outputs, _ = example()
    objective = Contextrast(3, layer_weights=STAGES)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = term(objective, outputs, labels)
    assert float(loss) == 0
    for gradient in tape.gradient(loss, [outputs[f"embedding_{stage}"] for stage in STAGES]):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_a_class_in_one_image_only_and_a_batch_of_one():
    outputs, labels = example()
    labels[0][labels[0] == 1] = 2
    assert float(term(Contextrast(3, layer_weights=STAGES), outputs, labels)) > 0
    outputs, labels = example(batch=1)
    assert float(term(Contextrast(3, layer_weights=STAGES), outputs, labels)) > 0


@pytest.mark.parametrize("right", [True, False])
def test_all_correct_and_all_wrong(right):
    outputs, labels = example()
    small = nearest(labels, SIZES["c2"])
    guess = np.where(small == 255, 0, small if right else (small + 1) % 3)
    outputs["logits"] = tf.one_hot(guess, 3) * 9.0
    value = float(term(Contextrast(3, layer_weights=STAGES), outputs, labels))
    assert np.isfinite(value)
    assert value > 0  # Without errors, other pixels are the negatives.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_and_many_classes(dtype):
    outputs, labels = example(num_classes=150, dtype=dtype)
    objective = Contextrast(150, layer_weights=STAGES, temperature=0.01)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = term(objective, outputs, labels)
    assert np.isfinite(float(loss))
    gradients = tape.gradient(loss, [outputs[f"embedding_{stage}"] for stage in STAGES])
    assert all(np.isfinite(np.asarray(g, "float32")).all() for g in gradients)


def test_hugely_different_similarities_stay_finite():
    outputs, labels = example()
    objective = Contextrast(3, **EVERYTHING, hard_fraction=1.0, temperature=0.01)
    np.testing.assert_allclose(
        term(objective, outputs, labels), reference(outputs, labels, tau=0.01), rtol=1e-5
    )


def test_without_its_weight_a_layer_needs_no_projector():
    objective = Contextrast(3, layer_weights={"c2": 1.0, "c3": 0.0, "c5": 0.0})
    assert objective.stages == ["c2", "c5"]  # c5 is the reference.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": "near"}, "'boundary' or 'random'"),
        ({"reference": "c9"}, "'c9'"),
        ({"shared_layers": ["c8"]}, "'c8'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Contextrast(3, **arguments)


def test_config_round_trip():
    objective = Contextrast(3, layer_weights=STAGES, shared_layers=("c5",), seed=4)
    again = Contextrast.from_config(objective.get_config())
    assert again.get_config() == objective.get_config()


def build_trainer(**arguments):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 24, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    outputs = {}
    for stage in STAGES:
        x = keras.layers.Conv2D(5, 3, strides=2, padding="same", name=stage)(x)
        outputs[f"embedding_{stage}"] = keras.layers.UnitNormalization()(x)
        if stage == "c2":
            outputs["logits"] = keras.layers.Conv2D(3, 1, name="logits")(x)
    objective = Contextrast(3, layer_weights=STAGES, **arguments)
    trainer = SegmentationTrainer(keras.Model(image, outputs), objectives=[(objective, 0.5)])
    optimizer = SGD(0.1, weight_decay=0.0)
    optimizer.build(trainer.segmenter.trainable_variables)
    trainer.compile(optimizer=optimizer)
    return trainer


def batches(count=3):
    rng = np.random.default_rng(3)
    for _ in range(count):
        labels = np.kron(rng.integers(0, 3, (4, 4, 6)), np.ones((4, 4), int)).astype("int32")
        yield rng.integers(0, 255, (4, 16, 24, 3)).astype("uint8"), labels


def run_steps(strategy, trainer):
    step = build_step(trainer, strategy)
    logs = []
    for images, labels in batches():
        data = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(4)
        data = strategy.experimental_distribute_dataset(data)
        logs.append({k: float(v) for k, v in step(next(iter(data))).items()})
    assert step.experimental_get_tracing_count() == 1
    return logs, [np.array(w) for w in trainer.segmenter.weights]


def test_replicas_equal_one(mirrored):
    options = {"max_samples": 60, "min_negatives": 8}
    with mirrored.scope():
        trainer = build_trainer(**options)
    logs, weights = run_steps(mirrored, trainer)
    one_logs, one_weights = run_steps(tf.distribute.get_strategy(), build_trainer(**options))
    for log, one_log in zip(logs, one_logs, strict=True):
        assert log == pytest.approx(one_log, rel=1e-4)
        assert log["contextrast/pixel_anchor"] > 0
    for w, one_w in zip(weights, one_weights, strict=True):
        np.testing.assert_allclose(w, one_w, atol=1e-5)


def test_each_replica_for_itself(mirrored):
    options = {"max_samples": 10_000, "min_negatives": 0, "hard_fraction": 1.0}
    with mirrored.scope():
        trainer = build_trainer(cross_replica=False, **options)
    segmenter, objective = build_trainer(**options).segmenter, trainer.objectives[0]
    images, labels = next(batches())
    halves = [
        float(term(objective, segmenter(images[half]), labels[half]))
        for half in (slice(0, 2), slice(2, 4))
    ]
    logs, _ = run_steps(mirrored, trainer)
    np.testing.assert_allclose(logs[0]["contextrast/pixel_anchor"], np.mean(halves), rtol=1e-4)


def test_no_layer_takes_part_in_the_sharing():
    """An empty tuple is none; None is all."""
    outputs, labels = example()
    values = {}
    for shared in ((), None, ("c2",)):
        objective = Contextrast(
            3, reference="c5", shared_layers=shared, hard_fraction=1.0, **EVERYTHING
        )
        values[shared] = float(term(objective, outputs, labels))
        among = STAGES if shared is None else shared
        expected = reference(outputs, labels, shared=among)
        np.testing.assert_allclose(values[shared], expected, rtol=1e-4)
    assert len(set(values.values())) == 3


@pytest.mark.parametrize("size", [(2, 3), (4, 6), (8, 12), (16, 24)])
def test_logits_of_any_size(size):
    """Each layer uses the logits at its own size, even if they are coarser."""
    outputs, labels = example()
    logits = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
    outputs = {name: x for name, x in outputs.items() if name != "logits"}
    for stage, map_size in SIZES.items():
        arguments = dict(EVERYTHING, layer_weights={stage: 1.0}, reference=stage)
        objective = Contextrast(3, hard_fraction=1.0, **arguments)
        resized = tf.image.resize(logits, map_size)
        result = term(objective, dict(outputs, logits=tf.constant(logits)), labels)
        np.testing.assert_allclose(
            result, term(objective, dict(outputs, logits=resized), labels), rtol=1e-6
        )
        assert float(result) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_weights": {"c2": 0.0, "c5": 0.0}}, "contrasts nothing"),
        ({"max_samples": 0}, "max_samples=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"hard_fraction": 0.0}, "hard_fraction=0.0"),
        ({"min_negatives": -1}, "min_negatives=-1"),
    ],
)
def test_numbers_outside_their_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Contextrast(3, **arguments)


def test_a_missing_layer_is_named():
    outputs, labels = example()
    with pytest.raises(ValueError, match="reads the output 'embedding_c4'"):
        Contextrast(3)(outputs, labels)
