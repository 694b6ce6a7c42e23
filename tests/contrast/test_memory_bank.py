import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.info_nce import info_nce
from kseg.contrast.memory_bank import MemoryBank
from tests import jax_process


class Rings:
    """A reference in plain Python: one list per class, with the oldest entries overwritten."""

    def __init__(self, capacities):
        self.slots = [[None] * capacity for capacity in capacities]
        self.cursor = [0] * len(capacities)

    def write(self, rows, labels):
        for row, label in zip(rows, labels, strict=True):
            if label >= 0:
                self.slots[label][self.cursor[label]] = row
                self.cursor[label] = (self.cursor[label] + 1) % len(self.slots[label])


@pytest.mark.parametrize("capacity", [1, 2, 5, 40, [3, 1, 20, 2]])
@pytest.mark.parametrize("graph", [False, True])
def test_rings(capacity, graph):
    rng = np.random.default_rng(0)
    capacities = [capacity] * 4 if isinstance(capacity, int) else capacity
    bank, rings = MemoryBank(4, capacity, 3), Rings(capacities)
    slots = sum(capacities)
    write = tf.function(bank.write, autograph=False) if graph else bank.write
    for _ in range(5):  # Class 3 does not occur; some rows are empty.
        rows = rng.normal(size=(12, 3)).astype("float32")
        labels = rng.integers(-1, 3, 12).astype("int32")
        write(tf.constant(rows), tf.constant(labels))
        rings.write(rows, labels)
    keys, labels = bank.keys()
    assert keys.shape == (slots, 3)
    np.testing.assert_array_equal(bank.cursor, rings.cursor)
    expected = [(n, slot) for n, ring in enumerate(rings.slots) for slot in ring]
    result = keys.rows(0, slots).numpy()
    for index, (n, slot) in enumerate(expected):
        assert labels[index] == (-1 if slot is None else n)
        if slot is not None:
            np.testing.assert_array_equal(result[index], slot)


def test_compiles_under_xla():
    """The default of a single GPU."""
    bank = MemoryBank(2, 3, 2)

    @tf.function(jit_compile=True, autograph=False)
    def step(rows, labels):
        bank.write(rows, labels)
        keys, _ = bank.keys()
        return keys.rows(0, 6)

    result = step(tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([1, 0]))
    np.testing.assert_array_equal(result, [[3, 4], [0, 0], [0, 0], [1, 2], [0, 0], [0, 0]])


def test_nothing_to_write():
    bank = MemoryBank(2, 3, 2)
    bank.write(tf.constant([[1.0, 2.0]]), tf.constant([0]))
    before = [weight.numpy() for weight in bank.weights]
    bank.write(tf.ones((4, 2)), tf.constant([-1, -1, -1, -1]))
    for weight, value in zip(bank.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_bank_as_keys(storage):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(30, 8)).astype("float32")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = rng.integers(0, 3, 30).astype("int32")
    bank = MemoryBank(3, 11, 8, storage=storage)
    assert bank.entries.dtype == storage
    bank.write(tf.constant(rows), tf.constant(labels))
    anchors = tf.constant(rows[:7][:, ::-1].copy())

    def loss_and_gradient(keys, key_labels):
        with tf.GradientTape() as tape:
            tape.watch(anchors)
            loss, _ = info_nce(
                anchors, labels[:7], keys, key_labels, detach_keys=True, block_size=8
            )
        return loss, tape.gradient(loss, anchors)

    # Of a class with more rows than slots, the first rows are overwritten.
    kept = [i for i in range(30) if (labels[i:] == labels[i]).sum() <= 11]
    expected = loss_and_gradient(tf.constant(rows[kept]), labels[kept])
    tolerance = 1e-5 if storage == "float32" else 0.2
    for x, y in zip(loss_and_gradient(*bank.keys()), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_replicas_hold_the_same(mirrored):
    with mirrored.scope():
        bank = MemoryBank(2, 3, 2)
    rows = np.arange(8.0, dtype="float32").reshape((4, 2))

    @tf.function(autograph=False)
    def step():
        def write():
            bank.write(tf.constant(rows), tf.constant([0, 1, 0, -1]))
            return bank.keys()[0].rows(0, 6)

        return mirrored.experimental_local_results(mirrored.run(write))

    first, second = step()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, [[0, 1], [4, 5], [0, 0], [2, 3], [0, 0], [0, 0]])
    for weight in bank.weights:
        copies = mirrored.experimental_local_results(weight.value)
        np.testing.assert_array_equal(copies[0], copies[1])


@pytest.mark.parametrize("graph", [False, True])
def test_sample(graph):
    """Each of the filled slots is drawn equally often, and none of them twice."""
    bank = MemoryBank(3, [40, 10, 40], 1)
    # Rings with 40, 4 and 30 entries; entry e of ring n is 100 n + e.
    labels = np.repeat([0, 1, 2], [40, 4, 30]).astype("int32")
    rows = np.concatenate([np.arange(40), 100 + np.arange(4), 200 + np.arange(30)])
    bank.write(tf.constant(rows[:, None], "float32"), tf.constant(labels))
    seed = keras.random.SeedGenerator(0)

    def sample():
        return bank.sample(20, seed=seed)

    sample = tf.function(sample, autograph=False) if graph else sample
    seen, together = np.zeros(74, int), np.zeros(73, int)
    for _ in range(600):
        keys, result = (x.numpy() for x in sample())
        positions = np.searchsorted(rows, keys[:, 0])
        np.testing.assert_array_equal(rows[positions], keys[:, 0])
        np.testing.assert_array_equal(labels[positions], result)
        assert (np.diff(positions) > 0).all()
        seen[positions] += 1
        together[positions[:-1][np.diff(positions) == 1]] += 1
    # Each slot is in n 20 / 74 of n draws, with a binomial standard deviation.
    for counts, share in ((seen, 20 / 74), (together, 20 * 19 / (74 * 73))):
        deviation = np.abs(counts - 600 * share) / np.sqrt(600 * share * (1 - share))
        assert deviation.max() < 4.5


def test_a_sample_of_few_is_all_of_them():
    bank = MemoryBank(3, 5, 1)
    bank.write(tf.constant([[1.0], [2.0], [3.0]]), tf.constant([2, 0, 2]))
    keys, labels = bank.sample(4)
    np.testing.assert_array_equal(labels, [0, 2, 2, -1])
    np.testing.assert_array_equal(keys[:3, 0], [2, 1, 3])
    keys, labels = MemoryBank(3, 5, 1).sample(4)
    np.testing.assert_array_equal(labels, [-1] * 4)


@pytest.mark.parametrize(("filled", "count"), [(40, 30), (7, 6), (33, 1)])
def test_every_slot_is_drawn_equally_often(filled, count):
    """For any seed, wherever the boundaries of equal parts would be."""
    bank = MemoryBank(2, [20, 50], 1)
    labels = np.repeat([0, 1], [filled // 3, filled - filled // 3]).astype("int32")
    bank.write(np.arange(filled, dtype="float32")[:, None], labels)
    seen = np.zeros(filled, int)
    for seed in range(500):
        keys, result = (x.numpy() for x in bank.sample(count, seed=seed))
        assert (result >= 0).all() and len(set(keys[:, 0])) == count
        seen[keys[:, 0].astype(int)] += 1
    share = count / filled
    assert np.abs(seen / 500 - share).max() < 4.5 * np.sqrt(share * (1 - share) / 500)


def test_a_sample_of_a_large_bank():
    """Indices beyond 2^24, which float32 cannot count, and more rows than the root of 2^31."""
    slots, count = 17_000_000, 50_000
    bank = MemoryBank(1, slots, 1)
    bank.count.assign([slots])
    bank.entries.assign((np.arange(slots) // 512).astype("float32")[:, None])
    keys, labels = (x.numpy() for x in bank.sample(count))
    np.testing.assert_array_equal(labels, np.zeros(count))
    seen = np.bincount((keys[:, 0] * 512 // 1_000_000).astype(int), minlength=17)
    np.testing.assert_allclose(seen, count / 17, rtol=0.1)  # 5 standard deviations.


def test_sample_refuses():
    with pytest.raises(ValueError, match="max_keys=0"):
        MemoryBank(1, 1, 1).sample(0)


def test_saves_and_loads(tmp_path):
    bank = MemoryBank(2, 3, 2)
    bank.write(tf.ones((1, 2)), tf.constant([1]))
    again = MemoryBank.from_config(bank.get_config())
    again.set_weights(bank.get_weights())
    np.testing.assert_array_equal(again.keys()[1], bank.keys()[1])
    assert not bank.trainable_weights


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"capacity": 0}, "capacity=0"),
        ({"capacity": [3, 0]}, "capacity=.3, 0."),
        ({"capacity": [3, 1, 2]}, "each of the 2 classes. Received: 3"),
        ({"storage": "int8"}, "storage='int8'"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(**{"num_classes": 2, "capacity": 3, "dim": 4, **arguments})


ON_JAX = """
import sys
import jax, keras, numpy as np
from kseg.contrast.info_nce import info_nce
from kseg.contrast.memory_bank import MemoryBank

bank = MemoryBank(2, 3, 2)

@jax.jit
def write(state, rows, labels):
    with keras.StatelessScope(state_mapping=list(zip(bank.variables, state))) as scope:
        bank.write(rows, labels)
        found = bank.keys()[0].rows(0, 6)
        sample = bank.sample(4, seed=0)
        loss, _ = info_nce(rows, labels, *bank.keys(), block_size=2, detach_keys=True)
    state = [scope.get_current_value(v) for v in bank.variables]
    return state, found, sample, loss

state = [v.value for v in bank.variables]
rows = np.array([[0, 1], [1, 0], [0.6, 0.8]], "float32")
state, found, _, _ = write(state, rows, np.array([1, 0, -1], "int32"))
np.testing.assert_array_equal(found, [[1, 0], [0, 0], [0, 0], [0, 1], [0, 0], [0, 0]])
state, found, sample, loss = write(state, rows[::-1], np.array([0, 0, 1], "int32"))
np.testing.assert_array_equal(
    found, np.array([[1, 0], [0.6, 0.8], [1, 0], [0, 1], [0, 1], [0, 0]], "float32")
)
assert list(sample[1]) in ([0, 0, 0, 1], [0, 0, 1, 1])  # 4 of 5 entries, 3 of them of class 0.
# The last anchor, (0, 1) of class 1: two positives at cosine 1; negatives at 0, 0.8 and 0.
negative = np.log(np.exp(0) + np.exp(8) + np.exp(0))
np.testing.assert_allclose(loss[2], np.log1p(np.exp(negative - 10)), rtol=1e-5)
assert "tensorflow" not in sys.modules
"""


def test_on_jax():
    """Variables are written and read in part inside `jax.jit`, under a stateless scope."""
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = jax_process.environment()
    result = subprocess.run(
        [sys.executable, "-c", ON_JAX], cwd=root, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
