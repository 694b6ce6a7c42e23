import numpy as np
import pytest
import tensorflow as tf

from kseg.training.distribution import build_strategy, describe_devices


def test_the_device_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    strategy = tf.distribute.get_strategy()
    line = describe_devices(strategy, driver=str(tmp_path / "none"))
    assert line.startswith("device: CPU, ") and ";" not in line
    (tmp_path / "driver").write_text("")
    assert "finds no GPU" in describe_devices(strategy, driver=str(tmp_path / "driver"))
    driver = str(tmp_path / "none")
    assert "float16 is slow on a CPU" in describe_devices(strategy, "mixed_float16", driver=driver)
    assert ";" not in describe_devices(strategy, "mixed_bfloat16", driver=driver)
    # Nobody misses what was switched off.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ";" not in describe_devices(strategy, driver=str(tmp_path / "driver"))


def summed(strategy, values):
    """Sums `values`, one row for each replica, by a collective in a compiled function."""

    @tf.function
    def function():
        context = tf.distribute.get_replica_context()
        row = tf.constant(values)[context.replica_id_in_sync_group]
        return context.all_reduce(tf.distribute.ReduceOp.SUM, row)

    result = tf.function(lambda: strategy.run(function))()
    return strategy.experimental_local_results(result)[0].numpy()


def test_strategies_of_one_process_are_independent():
    """The case of a notebook that trains one network and then another."""
    for size in (3, 5, 2):
        values = np.arange(2.0 * size, dtype="float32").reshape(2, size)
        np.testing.assert_array_equal(summed(build_strategy(2), values), values.sum(0))


def test_an_aborted_step_leaves_the_next_strategy_whole():
    broken = build_strategy(2)

    @tf.function
    def fail():
        context = tf.distribute.get_replica_context()
        wrong = tf.debugging.Assert(context.replica_id_in_sync_group == 0, ["broken"])
        with tf.control_dependencies([wrong]):
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones([4]))

    with pytest.raises(tf.errors.InvalidArgumentError, match="broken"):
        tf.function(lambda: broken.run(fail))()
    values = np.ones((2, 7), "float32")
    np.testing.assert_array_equal(summed(build_strategy(2), values), values.sum(0))
