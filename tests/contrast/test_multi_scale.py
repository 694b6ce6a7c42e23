import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.sampling import balanced_anchors
from kseg.layers import resize_labels
from tests.contrast.test_info_nce import reference

SIZES = {"c2": (8, 12), "c3": (4, 6), "c4": (2, 3), "c5": (1, 2)}


def example(batch=4, seed=0):
    rng = np.random.default_rng(seed)
    outputs = {}
    for stage, (height, width) in SIZES.items():
        z = rng.normal(size=(batch, height, width, 16)).astype("float32")
        outputs[f"embedding_{stage}"] = z / np.linalg.norm(z, axis=-1, keepdims=True)
    labels = rng.integers(0, 3, (batch, 32, 48))
    labels[:, :8] = 255
    return outputs, labels


def anchor_sets(outputs, labels, seed, **arguments):
    """The anchor sets that an objective with this seed draws, in its order of scales."""
    generator, sets = keras.random.SeedGenerator(seed), {}
    for stage, size in SIZES.items():
        z = outputs[f"embedding_{stage}"]
        small = np.array(resize_labels(labels, *size)).reshape(len(z), -1)
        positions, classes = balanced_anchors(small, 3, seed=generator, **arguments)
        rows = z.reshape(-1, z.shape[-1])[np.maximum(np.array(positions), 0)]
        sets[stage] = rows, np.array(classes)
    return sets


def test_terms_equal_the_equations():
    outputs, labels = example()
    sets = anchor_sets(outputs, labels, seed=5, min_count=1)

    def mean_loss(anchors, keys, same):
        loss, valid, *_ = reference(
            *anchors, *keys, 0.2, np.arange(len(anchors[0])) if same else None
        )
        return loss.sum() / valid.sum()

    same = sum(
        weight * mean_loss(sets[s], sets[s], True)
        for s, weight in {"c2": 1.0, "c3": 0.7, "c4": 0.4, "c5": 0.1}.items()
    )
    across = mean_loss(sets["c2"], sets["c5"], False) + mean_loss(sets["c2"], sets["c4"], False)
    objective = MultiScaleContrast(3, temperature=0.2, min_count=1, cross_scale_weight=0.5, seed=5)
    terms = objective(outputs, labels)
    np.testing.assert_allclose(terms["same_scale"], same, rtol=1e-5)
    np.testing.assert_allclose(terms["cross_scale"], 0.5 * across, rtol=1e-5)


def test_gradients_flow_into_both_sets_of_a_pair():
    outputs, labels = example()
    outputs = {name: tf.constant(z) for name, z in outputs.items()}
    objective = MultiScaleContrast(
        3, scale_weights={"c2": 0, "c5": 0}, cross_scale_pairs=[("c2", "c5")], min_count=1
    )
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = objective(outputs, labels)["cross_scale"]
    gradients = tape.gradient(loss, outputs)
    assert np.abs(gradients["embedding_c2"]).max() > 0
    assert np.abs(gradients["embedding_c5"]).max() > 0
    assert gradients["embedding_c3"] is None


@pytest.mark.parametrize("fill", [255, 1])
def test_all_ignored_or_one_class_is_no_loss(fill):
    outputs, labels = example()
    outputs = {name: tf.constant(z) for name, z in outputs.items()}
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        terms = MultiScaleContrast(3)(outputs, np.full_like(labels, fill))
        loss = terms["same_scale"] + terms["cross_scale"]
    assert float(loss) == 0
    assert not any(g.numpy().any() for g in tape.gradient(loss, outputs).values())


def test_only_the_stages_that_count_are_read():
    objective = MultiScaleContrast(
        3, scale_weights={"c2": 1.0, "c3": 0, "c4": 0}, cross_scale_pairs=[("c2", "c4")]
    )
    assert objective.stages == ["c2", "c4"]
    without = MultiScaleContrast(3, scale_weights={"c2": 1.0, "c3": 0}, cross_scale_pairs=[])
    outputs, labels = example()
    assert list(without({"embedding_c2": outputs["embedding_c2"]}, labels)) == ["same_scale"]


def test_a_pair_without_weight_is_refused():
    with pytest.raises(ValueError, match="needs a key in `scale_weights`"):
        MultiScaleContrast(3, scale_weights={"c2": 1.0}, cross_scale_pairs=[("c2", "c5")])


def test_config_round_trip():
    objective = MultiScaleContrast(7, scale_weights={"c2": 0.5}, cross_scale_pairs=[], seed=3)
    copy = MultiScaleContrast.from_config(objective.get_config())
    assert copy.get_config() == objective.get_config()


@pytest.mark.parametrize("cross_replica", [True, False])
def test_two_replicas(cross_replica, mirrored):
    """Over the global batch two replicas equal one; otherwise the result is the replicas' mean."""
    outputs, labels = example()
    arguments = {
        "scale_weights": {"c2": 1.0, "c4": 0.5},
        "cross_scale_pairs": [("c2", "c4")],
        "min_count": 1,
        "seed": 2,
        "cross_replica": cross_replica,
    }
    outputs = {name: outputs[name] for name in ("embedding_c2", "embedding_c4")}

    def compute(objective, outputs, labels):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            terms = objective(outputs, labels)
            loss = terms["same_scale"] + terms["cross_scale"]
        return terms, tape.gradient(loss, outputs)

    def alone(part):
        part_outputs = {name: tf.constant(z[part]) for name, z in outputs.items()}
        function = tf.function(compute, autograph=False)
        return function(MultiScaleContrast(3, **arguments), part_outputs, tf.constant(labels[part]))

    if cross_replica:
        expected_terms, expected_gradients = alone(slice(0, 4))
    else:
        halves = [alone(slice(0, 2)), alone(slice(2, 4))]
        expected_terms = {k: (halves[0][0][k] + halves[1][0][k]) / 2 for k in halves[0][0]}
        expected_gradients = {
            k: np.concatenate([half[1][k] / 2 for half in halves]) for k in halves[0][1]
        }

    with mirrored.scope():
        objective = MultiScaleContrast(3, **arguments)
    dataset = tf.data.Dataset.from_tensors((outputs, labels)).unbatch().batch(4)
    batch = next(iter(mirrored.experimental_distribute_dataset(dataset)))

    @tf.function(autograph=False)
    def step(batch):
        return mirrored.run(lambda b: compute(objective, *b), args=(batch,))

    terms, gradients = step(batch)
    for name, expected in expected_terms.items():
        got = sum(mirrored.experimental_local_results(terms[name]))
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    for name, expected in expected_gradients.items():
        got = np.concatenate(mirrored.experimental_local_results(gradients[name]))
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cross_scale_pairs": [("c2", "c2")]}, "two different stages"),
        ({"scale_weights": {}, "cross_scale_pairs": []}, "contrast nothing"),
        ({"scale_weights": {"c2": 0.0}, "cross_scale_pairs": []}, "contrast nothing"),
        (
            {"scale_weights": {"c2": 0.0, "c5": 0}, "cross_scale_pairs": [("c2", "c5")]}
            | {"cross_scale_weight": 0.0},
            "contrast nothing",
        ),
        ({"max_anchors": 1}, "max_anchors=1"),
    ],
)
def test_what_would_contrast_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleContrast(3, **arguments)


def test_a_missing_scale_is_named():
    with pytest.raises(ValueError, match=r"'multi_scale' reads the output 'embedding_c2'"):
        MultiScaleContrast(3)({"logits": np.zeros((1, 2, 2, 3))}, np.zeros((1, 2, 2), int))
