import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.embeddings import Embeddings
from kseg.heads.projection import Projector, projection
from kseg.layers import UnitNormalization

SHAPE = (2, 3, 4, 5)


def projector(strategy=None, synchronized=False, statistics=True):
    """A projector of 5 channels to 6, with or without its batch norms, and its model."""
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        x = keras.Input((None, None, SHAPE[-1]))
        options = {"embedding_dim": 6, "synchronized_batch_norm": synchronized}
        model = keras.Model(x, {"z": projection(x, name="z", **options)})
    return Projector(model, "z", statistics=statistics), model


def trainable(project):
    return [weight for layer in project._layers for weight in layer.trainable_weights]


def features(seed=0):
    return np.random.default_rng(seed).normal(size=SHAPE).astype("float32")


@pytest.mark.parametrize("training", [False, True])
def test_taken_pixels_are_those_of_a_map_with_their_statistics(training):
    project, model = projector()
    x, positions = features(), np.array([3, 17, 3, 8, -1, -1], "int32")
    found = Embeddings(tf.constant(x), project, training=training)
    assert found.shape == (*SHAPE[:3], 6)
    taken = found.take(positions).numpy()[:4]
    _, other = projector()
    rows = x.reshape(-1, 5)[[3, 17, 3, 8]]
    expected = other(rows[None, :, None], training=training)["z"].numpy()[0, :, 0]
    np.testing.assert_allclose(taken, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(model.weights, other.weights, strict=True):  # Moving statistics.
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-7)


def test_a_map_is_projected_if_as_many_rows_are_taken_as_there_are_pixels():
    project, model = projector()
    taken = Embeddings(tf.constant(features()), project, training=True).take(np.arange(24) % 5)
    _, other = projector()
    expected = other(features(), training=True)["z"].numpy().reshape(24, 6)[np.arange(24) % 5]
    np.testing.assert_allclose(taken, expected, rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(*pair) for pair in zip(model.weights, other.weights, strict=True))


def test_what_is_stored_has_no_gradient_and_changes_no_statistics():
    project, model = projector()
    before = [w.numpy() for w in model.weights]
    x = tf.constant(features())
    with tf.GradientTape() as tape:
        tape.watch(x)
        stored = Embeddings(x, project, training=True).detached()
        rows, whole = stored.take(np.array([5, -1])), stored.projected()
    assert tape.gradient([rows, whole], x) is None
    np.testing.assert_allclose(rows[0], whole[0, 1, 1], rtol=1e-5, atol=1e-6)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_layers_after_the_last_batch_norm_are_those_of_the_map():
    project, model = projector(statistics=False)
    assert [layer.name for layer in project._layers] == ["z_linear", "z"]
    x, positions = tf.constant(features()), np.array([3, 17, 3, -1], "int32")
    found = Embeddings(x, project, training=True)
    rows = found.take(positions)[:3]
    expected = tf.gather(tf.reshape(model.layers[-1](model.layers[-2](x)), (24, 6)), [3, 17, 3])
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.detached().take(positions)[:3], expected, rtol=1e-5, atol=1e-6)
    found.projected()
    np.testing.assert_allclose(found.detached().take(positions)[:3], expected, rtol=1e-5, atol=1e-6)


def test_rows_of_a_wide_map_are_those_of_its_projection():
    """Once a narrower map has been projected, the rows are looked up in it."""
    keras.utils.set_random_seed(0)
    x = keras.Input((None, None, 5))
    model = keras.Model(x, {"z": projection(x, embedding_dim=3, name="z")})
    project, positions = Projector(model, "z", statistics=False), np.array([3, 17, 3])
    found = [Embeddings(tf.constant(features()), project, training=True) for _ in range(2)]
    weights = tf.constant(np.random.default_rng(1).normal(size=(2, 24)).astype("float32"))
    sums = found[0].weighted_sums(weights)
    np.testing.assert_allclose(
        sums, weights @ tf.reshape(found[1].projected(), (24, 3)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        found[0].take(positions),
        Embeddings(tf.constant(features()), project, training=True).take(positions),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("bias", [True, False])
def test_sums_of_a_wide_projection_are_computed_without_its_map(bias):
    keras.utils.set_random_seed(0)
    x = keras.Input((None, None, 5))
    y = keras.layers.Conv2D(12, 1, use_bias=bias, bias_initializer="normal", name="linear")(x)
    model = keras.Model(x, {"z": UnitNormalization(name="z")(y)})
    project = Projector(model, "z", statistics=False)
    assert project.linear.name == "linear"
    weights = tf.constant(np.random.default_rng(1).normal(size=(3, 24)).astype("float32"))
    slope = np.random.default_rng(2).normal(size=(3, 12)).astype("float32")
    inputs = np.concatenate([features().reshape(24, 5)[:-1], np.zeros((1, 5))])  # One is zero.
    inputs = tf.constant(inputs.reshape(SHAPE), "float32")

    def sums(x, without_map):
        embeddings = Embeddings(x, project, training=True)
        if not without_map:
            embeddings.projected()
        found = embeddings.weighted_sums(weights)
        assert (embeddings._raw_map is None) == without_map
        return found

    results = []
    for without_map in (True, False):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            found = sums(inputs, without_map)
            loss = tf.reduce_sum(found * slope)
        results.append([found, *tape.gradient(loss, [inputs, *model.trainable_weights])])
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5)
    exact = model(inputs)["z"].numpy().reshape(24, 12)
    np.testing.assert_allclose(results[0][0], weights.numpy() @ exact, rtol=1e-5, atol=1e-5)


class Standardized(keras.layers.Conv2D):
    """A convolution that computes with another kernel than its own."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - keras.ops.mean(kernel))


@pytest.mark.parametrize("kind", ["subclass", "quantized", "activation"])
def test_sums_of_other_layers_are_those_of_their_map(kind):
    options = {"activation": "tanh"} if kind == "activation" else {}
    layers = {"subclass": Standardized(12, 1), "quantized": keras.layers.Dense(12)}
    layer = layers.get(kind) or keras.layers.Dense(12, **options)
    x = keras.Input((None, None, 5))
    model = keras.Model(x, {"z": UnitNormalization(name="z")(layer(x))})
    if kind == "quantized":
        layer.quantize("int8")
    project = Projector(model, "z", statistics=False)
    assert project.linear is None
    sums = Embeddings(tf.constant(features()), project).weighted_sums(tf.eye(24))
    exact = model(features())["z"].numpy().reshape(24, 12)
    np.testing.assert_allclose(sums, exact, rtol=1e-4, atol=1e-5)


def test_sums_stay_finite_where_a_projection_cancels():
    """Vectors in the null space of the kernel: rounding decides the sign of their squared norm."""
    x = keras.Input((None, None, 5))
    model = keras.Model(
        x, {"z": UnitNormalization(name="z")(keras.layers.Dense(12, use_bias=False)(x))}
    )
    project = Projector(model, "z", statistics=False)
    kernel = np.random.default_rng(0).normal(size=(5, 12)).astype("float32")
    kernel[1] = kernel[0] * (1 + 1e-7)
    model.layers[1].kernel.assign(kernel)
    inputs = np.zeros(SHAPE, "float32")
    inputs[..., 0] = np.linspace(-100, 100, 24).reshape(SHAPE[:3])
    inputs[..., 1] = -inputs[..., 0]
    inputs = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        sums = Embeddings(inputs, project).weighted_sums(tf.eye(24))
    assert np.linalg.norm(sums, axis=1).max() <= 1.0
    assert np.abs(tape.gradient(sums, inputs)).max() < 1e3


# On both replicas; all on the second; fewer rows than replicas; none.
@pytest.mark.parametrize("positions", [[1, 14, 9, 20, -1], [15, 13, 20], [16, -1, -1], [-1, -1]])
@pytest.mark.parametrize("statistics", [True, False])
def test_two_replicas_are_one(mirrored, positions, statistics):
    positions = np.array(positions, "int32")
    slope = np.random.default_rng(3).normal(size=(len(positions), 6)).astype("float32")
    slope *= (positions >= 0)[:, None]
    x = tf.constant(features())

    def step(project, weights, x, share):
        with tf.GradientTape() as tape:
            tape.watch(x)
            rows = Embeddings(x, project, training=True).take(positions)
            loss = tf.reduce_sum(rows * slope) * share
        return rows, tape.gradient(loss, [x, *weights])

    project, model = projector(statistics=statistics)
    assert project.depends_on_training == statistics
    rows, gradients = step(project, [w.value for w in trainable(project)], x, 1.0)
    moving = [w.numpy() for w in model.non_trainable_weights]

    project, model = projector(mirrored, synchronized=True, statistics=statistics)

    def replica(index):
        weights = [w.value for w in trainable(project)]
        rows, gradients = step(project, weights, tf.gather(x, index), 0.5)
        context = tf.distribute.get_replica_context()
        return rows, gradients[0], context.all_reduce("sum", gradients[1:])

    ids = mirrored.experimental_distribute_values_from_function(
        lambda context: tf.constant([context.replica_id_in_sync_group])
    )
    found = tf.function(lambda ids: mirrored.run(replica, (ids,)))(ids)
    local = mirrored.experimental_local_results
    used = positions >= 0
    for ours in local(found[0]):
        np.testing.assert_allclose(ours[used], rows[used], rtol=1e-4, atol=1e-5)
    ours = [np.concatenate(local(found[1])), *(local(gradient)[0] for gradient in found[2])]
    for a, b in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for weight, value in zip(model.non_trainable_weights, moving, strict=True):
        np.testing.assert_allclose(weight.numpy(), value, rtol=1e-4, atol=1e-6)
