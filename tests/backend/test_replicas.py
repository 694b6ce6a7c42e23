import numpy as np
import pytest
import tensorflow as tf

from kseg.backend import replicas


def run_on_two(strategy, function, per_replica):
    """Runs `function(x)` on both replicas inside one tf.function; returns the result of each."""
    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(per_replica[context.replica_id_in_sync_group])
    )
    results = tf.function(lambda values: strategy.run(function, (values,)))(values)
    per_result = [strategy.experimental_local_results(result) for result in results]
    return [[result[replica].numpy() for result in per_result] for replica in (0, 1)]


def with_gradient(function, upstream):
    """Returns the function `x -> (function(x), d sum(upstream * function(x)) / dx)`."""

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            # Replica 1 weights its result by 10, so that the two upstream gradients differ.
            scale = tf.where(tf.equal(replicas.replica_id(), 1), 10.0, 1.0)
            loss = scale * tf.reduce_sum(tf.constant(upstream) * y)
        return y, tape.gradient(loss, x)

    return run


def test_all_gather_and_its_gradient_by_hand(mirrored):
    inputs = [np.array([[1.0, 2.0]], "float32"), np.array([[3.0, 4.0]], "float32")]
    upstream = np.array([[1.0, 2.0], [3.0, 4.0]], "float32")
    results = run_on_two(mirrored, with_gradient(replicas.all_gather, upstream), inputs)
    # Both replicas' losses see each row, with weights 1 and 10.
    for (gathered, gradient), row in zip(results, upstream, strict=True):
        np.testing.assert_array_equal(gathered, [[1.0, 2.0], [3.0, 4.0]])
        np.testing.assert_array_equal(gradient, [11.0 * row])


def test_all_reduce_sum_and_its_gradient_by_hand(mirrored):
    inputs = [np.array([1.0, 2.0], "float32"), np.array([3.0, 5.0], "float32")]
    upstream = np.array([1.0, -2.0], "float32")
    results = run_on_two(mirrored, with_gradient(replicas.all_reduce_sum, upstream), inputs)
    for total, gradient in results:
        np.testing.assert_array_equal(total, [4.0, 7.0])
        np.testing.assert_array_equal(gradient, [11.0, -22.0])


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool", "float32", "bfloat16"])
def test_all_gather_keeps_values_dtype_and_static_shape(mirrored, dtype):
    # NaN and infinity on one replica stay in that replica's rows.
    special = [np.nan, np.inf] if dtype in ("float32", "bfloat16") else [1, 0]
    inputs = [np.array([[0, 1]]), np.array([special])]

    def run(x):
        gathered = replicas.all_gather(tf.cast(x, dtype))
        assert gathered.dtype == dtype
        assert gathered.shape == (2, 2)
        return (tf.cast(gathered, "float32"), replicas.replica_id())

    inputs = [x.astype("float32") for x in inputs]
    for index, (gathered, replica) in enumerate(run_on_two(mirrored, run, inputs)):
        np.testing.assert_array_equal(gathered, np.concatenate(inputs))
        assert replica == index


def test_number_of_replicas(mirrored):
    (first,), (second,) = run_on_two(
        mirrored,
        lambda x: (tf.constant(replicas.num_replicas()) + 0 * tf.cast(x, "int32"),),
        [1, 2],
    )
    assert first == second == 2


def test_without_replicas_every_function_is_the_identity(mirrored):
    x = np.ones((2, 3), "float32")
    for scope in (tf.distribute.get_strategy().scope, mirrored.scope):  # Cross-replica context.
        with scope():
            assert replicas.num_replicas() == 1
            assert replicas.replica_id() == 0
            assert replicas.all_gather(x) is x
            assert replicas.all_reduce_sum(x) is x
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    assert one.run(lambda: replicas.all_gather(x)) is x
