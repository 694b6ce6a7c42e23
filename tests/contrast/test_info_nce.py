import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.info_nce import info_nce


def unit_rows(rng, rows, dim=8):
    x = rng.normal(size=(rows, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32")


def reference(anchors, anchor_labels, keys, key_labels, temperature, self_positions=None):
    """The equation, term by term in float64: (loss, valid, d sum(loss)/d anchors, .../d keys)."""
    anchors, keys = anchors.astype("float64"), keys.astype("float64")
    loss, valid = np.zeros(len(anchors)), np.zeros(len(anchors))
    d_anchors, d_keys = np.zeros_like(anchors), np.zeros_like(keys)
    for i, label in enumerate(anchor_labels):
        itself = None if self_positions is None else self_positions[i]
        positives = [j for j, key in enumerate(key_labels) if key == label and j != itself]
        negatives = [j for j, key in enumerate(key_labels) if key not in (label, -1)]
        if label == -1 or not positives:
            continue
        valid[i] = 1
        if not negatives:
            continue
        s = keys @ anchors[i] / temperature
        peak = s[negatives].max()
        neg = peak + np.log(np.exp(s[negatives] - peak).sum())
        for j in positives:
            loss[i] += np.logaddexp(0, neg - s[j]) / len(positives)
            pull = np.exp(-np.logaddexp(0, s[j] - neg)) / len(positives)
            d_anchors[i] -= pull * keys[j] / temperature
            d_keys[j] -= pull * anchors[i] / temperature
            push = pull * np.exp(s[negatives] - neg)
            d_anchors[i] += push @ keys[negatives] / temperature
            d_keys[negatives] += push[:, None] * anchors[i] / temperature
    return loss, valid, d_anchors, d_keys


def loss_and_gradients(anchors, anchor_labels, keys, key_labels, *, row_weights=None, **arguments):
    @tf.function(autograph=False)
    def compute(anchors, keys):
        with tf.GradientTape() as tape:
            tape.watch([anchors, keys])
            loss, valid = info_nce(anchors, anchor_labels, keys, key_labels, **arguments)
            total = tf.reduce_sum(loss if row_weights is None else loss * row_weights)
        # Detached keys have no gradient at all.
        gradients = tape.gradient(total, [anchors, keys], unconnected_gradients="zero")
        return loss, valid, *gradients

    return [x.numpy() for x in compute(tf.constant(anchors), tf.constant(keys))]


@pytest.mark.parametrize(
    "key_labels, expected",
    [
        ([0, 1, 1], np.log1p(2.0 / np.e)),  # Positive at cosine 1, two negatives at 0.
        ([0, 1, -1], np.log1p(1.0 / np.e)),  # An empty slot is neither.
        ([0, 0, 1], (np.log1p(1 / np.e) + np.log1p(1.0)) / 2),  # Each positive its own term.
        ([0, 0, -1], 0.0),  # No negative: nothing to push away.
        ([1, 1, 1], 0.0),  # No positive: no loss.
    ],
)
@pytest.mark.parametrize("block_size", [None, 2])  # In one tile, and in several.
def test_one_anchor_by_hand(key_labels, expected, block_size):
    keys, key_labels = np.eye(3, dtype="float32"), np.array(key_labels)
    loss, valid = info_nce(
        keys[:1], np.array([0]), keys, key_labels, temperature=1.0, block_size=block_size
    )
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)
    assert float(valid[0]) == float(0 in key_labels)


@pytest.mark.parametrize("detach_keys", [False, True])
@pytest.mark.parametrize("order", ["random", "sorted", "empty rows last"])
@pytest.mark.parametrize("block_size", [7, 64, (5, 16)])
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_equals_the_equation(detach_keys, order, block_size, temperature):
    rng = np.random.default_rng(0)
    anchors, keys = unit_rows(rng, 23), unit_rows(rng, 37)
    anchor_labels, key_labels = rng.integers(-1, 4, 23), rng.integers(-1, 4, 37)
    if order != "random":
        anchor_labels, key_labels = np.sort(anchor_labels), np.sort(key_labels)
    if order == "empty rows last":
        anchor_labels, key_labels = (np.roll(x, -sum(x < 0)) for x in (anchor_labels, key_labels))
    expected = reference(anchors, anchor_labels, keys, key_labels, temperature)
    got = loss_and_gradients(
        anchors,
        anchor_labels,
        keys,
        key_labels,
        temperature=temperature,
        block_size=block_size,
        detach_keys=detach_keys,
    )
    if detach_keys:
        expected = (*expected[:3], np.zeros_like(keys))
    # A similarity is rounded in proportion to 1 / temperature, and gradients grow with it again.
    atol = 2e-5 * max(1.0, (0.1 / temperature) ** 2)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


@pytest.mark.parametrize(
    "order, temperature, arguments",
    [
        ("random", 0.1, {"block_size": 7}),
        ("sorted", 0.1, {"block_size": 7}),
        ("empty rows last", 0.1, {"block_size": (5, 16)}),
        ("random", 1.0, {"block_size": 64}),
        ("sorted", 0.02, {"block_size": 7}),  # Too low for exp without a shift.
        ("sorted", 0.1, {"block_size": 7, "detach_keys": True}),
        ("random", 0.1, {"block_size": 7, "rows_sorted": True}),  # Slower, not wrong.
    ],
)
def test_the_sum_equals_the_equation(order, temperature, arguments):
    rng = np.random.default_rng(5)
    anchors, keys = unit_rows(rng, 23), unit_rows(rng, 37)
    anchor_labels, key_labels = rng.integers(-1, 5, 23), rng.integers(-1, 4, 37)
    if order != "random":  # The anchors of class 4 have no positive.
        anchor_labels, key_labels = np.sort(anchor_labels), np.sort(key_labels)
    if order == "empty rows last":
        anchor_labels, key_labels = (np.roll(x, -sum(x < 0)) for x in (anchor_labels, key_labels))
    loss, valid, *gradients = reference(anchors, anchor_labels, keys, key_labels, temperature)
    if "detach_keys" in arguments:
        gradients[1] = np.zeros_like(keys)
    got = loss_and_gradients(
        *(anchors, anchor_labels, keys, key_labels),
        temperature=temperature,
        reduction="sum",
        **arguments,
    )
    atol = 2e-5 * max(1.0, (0.1 / temperature) ** 2)
    for x, y in zip(got, (loss.sum(), valid.sum(), *gradients), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("block_size", [None, 2])  # In one tile, and in several.
def test_the_sum_without_positives_or_without_negatives_is_0(block_size):
    z = np.eye(4, dtype="float32")
    for anchor_labels, key_labels, number in [
        ([0, 0, -1, 1], [2, 2, -1, -1], 0),
        ([0, 0, -1, 0], [0, 0, -1, 0], 3),
        ([-1] * 4, [0, 1, 2, 3], 0),
        ([0, 1, 2, 3], [-1] * 4, 0),
    ]:
        labels = np.array(anchor_labels), np.array(key_labels)
        loss, valid, *gradients = loss_and_gradients(
            z, labels[0], z, labels[1], reduction="sum", block_size=block_size
        )
        assert (loss, valid) == (0, number)
        np.testing.assert_array_equal(gradients, np.zeros((2, 4, 4)))


def test_with_many_keys_few_anchors_are_held_at_once(monkeypatch):
    monkeypatch.setattr("kseg.contrast.info_nce.held_similarities", lambda: 1)
    rng = np.random.default_rng(6)
    z, labels = unit_rows(rng, 50), np.sort(rng.integers(0, 5, 50))
    chosen = np.arange(0, 50, 2)  # 25 anchors: blocks of 8, the length of a row.
    loss, valid, *expected = reference(z[chosen], labels[chosen], z, labels, 0.1, chosen)
    arguments = {"exclude_self": True, "self_positions": chosen, "reduction": "sum"}
    got = loss_and_gradients(z[chosen], labels[chosen], z, labels, block_size=40, **arguments)
    for x, y in zip(got, (loss.sum(), valid.sum(), *expected), strict=True):
        np.testing.assert_allclose(x, y, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("block_size", [None, 2])  # In one tile, and in several.
def test_rows_weigh_their_gradients(block_size):
    rng = np.random.default_rng(1)
    anchors, keys = unit_rows(rng, 12), unit_rows(rng, 15)
    anchor_labels, key_labels = rng.integers(0, 3, 12), rng.integers(0, 3, 15)
    weights = rng.normal(size=12).astype("float32")  # Also negative and zero ones.
    weights[0] = 0
    got = loss_and_gradients(
        anchors, anchor_labels, keys, key_labels, row_weights=weights, block_size=block_size
    )
    alone = [
        reference(anchors[i : i + 1], anchor_labels[i : i + 1], keys, key_labels, 0.1)
        for i in range(12)
    ]
    np.testing.assert_allclose(
        got[2], np.concatenate([w * a[2] for w, a in zip(weights, alone, strict=True)]), atol=2e-5
    )
    np.testing.assert_allclose(
        got[3], sum(w * a[3] for w, a in zip(weights, alone, strict=True)), atol=5e-5
    )


@pytest.mark.parametrize("block_size", [5, 64, (64, 4)])
@pytest.mark.parametrize("rows", [None, [3, 8, 1, 19]])
def test_an_anchor_is_not_its_own_positive(block_size, rows):
    rng = np.random.default_rng(2)
    keys, key_labels = unit_rows(rng, 20), rng.integers(-1, 3, 20)
    chosen = np.arange(20) if rows is None else np.array(rows)
    got = loss_and_gradients(
        keys[chosen],
        key_labels[chosen],
        keys,
        key_labels,
        exclude_self=True,
        self_positions=None if rows is None else chosen,
        block_size=block_size,
    )
    expected = reference(keys[chosen], key_labels[chosen], keys, key_labels, 0.1, chosen)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("block_size", [None, 2])  # In one tile, and in several.
def test_a_lone_anchor_does_not_count(block_size):
    keys = np.eye(3, dtype="float32")
    loss, valid = info_nce(
        keys,
        np.array([0, 1, 1]),
        keys,
        np.array([0, 1, 1]),
        exclude_self=True,
        block_size=block_size,
    )
    assert np.array_equal(valid, [0, 1, 1])
    assert float(loss[0]) == 0


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [-1, -1, -1, -1], [2, -1, -1, -1]])
@pytest.mark.parametrize("block_size", [None, 2])  # In one tile, and in several.
def test_one_class_or_none(labels, block_size):
    keys = unit_rows(np.random.default_rng(3), 4)
    loss, valid, d_anchors, d_keys = loss_and_gradients(
        keys, labels, keys, labels, block_size=block_size
    )
    assert not loss.any() and not d_anchors.any() and not d_keys.any()
    assert np.array_equal(valid, np.array(labels) >= 0)


@pytest.mark.parametrize("block_size", [None, 2])  # In one tile, and in several.
def test_extreme_similarities_at_a_small_temperature(block_size):
    # Cosines +-1 at temperature 0.01: logits of +-100, exp(100) overflows float32.
    z = np.zeros((4, 2), "float32")
    z[:, 0] = [1, 1, -1, -1]
    labels = np.array([0, 1, 0, 1])
    got = loss_and_gradients(
        z, labels, z, labels, temperature=0.01, exclude_self=True, block_size=block_size
    )
    expected = reference(z, labels, z, labels, 0.01, np.arange(4))
    for x, y in zip(got, expected, strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, y, rtol=1e-6)
    np.testing.assert_allclose(got[0], 200.0)  # softplus(100 - -100).


@pytest.mark.parametrize("block_size", [None, 2])  # In one tile, and in several.
def test_well_separated_classes_have_no_loss_and_no_gradient(block_size):
    z = np.array([[1, 0], [1, 0], [-1, 0], [-1, 0]], "float32")
    labels = np.array([0, 0, 1, 1])
    got = loss_and_gradients(
        z, labels, z, labels, temperature=0.01, exclude_self=True, block_size=block_size
    )
    assert got[1].all()
    for x in (got[0], got[2], got[3]):
        assert np.isfinite(x).all() and np.abs(x).max() < 1e-30


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("block_size", [None, 2])  # In one tile, and in several.
def test_half_precision_inputs_are_computed_in_float32(dtype, block_size):
    rng = np.random.default_rng(4)
    z, labels = unit_rows(rng, 30), rng.integers(0, 3, 30)
    half = keras.ops.cast(z, dtype)
    loss, _ = info_nce(
        half, labels, half, labels, temperature=0.01, exclude_self=True, block_size=block_size
    )
    rounded = keras.ops.convert_to_numpy(keras.ops.cast(half, "float32"))
    expected = reference(rounded, labels, rounded, labels, 0.01, np.arange(30))[0]
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature": 0}, "`temperature` must be positive"),
        ({"block_size": 0}, "`block_size` must be positive"),
        ({"reduction": "mean"}, "`reduction` must be 'none' or 'sum'"),
    ],
)
def test_refuses(arguments, message):
    z = np.eye(3, dtype="float32")
    with pytest.raises(ValueError, match=message):
        info_nce(z, np.arange(3), z, np.arange(3), **arguments)


def test_refuses_an_unknown_number_of_rows():
    @tf.function(input_signature=[tf.TensorSpec((None, 3))], autograph=False)
    def compute(z):
        return info_nce(z, np.arange(3), z, np.arange(3))

    with pytest.raises(ValueError, match="static number of rows"):
        compute(tf.eye(3))
