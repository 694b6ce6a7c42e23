import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.pixel_contrast import PixelContrast
from kseg.contrast.sampling import hard_anchors, pixels_of_each_image
from tests.contrast.test_info_nce import reference


def draw(labels, predictions, num_classes=3, **arguments):
    arguments = {"max_anchors": 1000, "min_count": 1, "seed": 1, **arguments}
    result = hard_anchors(np.array(labels), np.array(predictions), num_classes, **arguments)
    return [x.numpy() for x in result]


def counts(positions, labels, predictions, group):
    """Counts the wrongly and the correctly predicted pixels drawn of one class and image."""
    n, image = group
    size = labels.shape[1]
    own = [p for p in positions if p >= 0 and p // size == image and labels.flat[p] == n]
    right = [predictions.flat[p] == n for p in own]
    return len(right) - sum(right), sum(right)


def test_half_are_wrong_where_there_are_enough():
    labels = np.repeat([[0] * 60 + [1] * 40, [0] * 30 + [255] * 70], 1, axis=0)
    predictions = labels.copy()
    predictions[0, :50] = 2  # Class 0, image 0: 50 wrong, 10 right.
    predictions[0, 60:63] = 0  # Class 1, image 0: 3 wrong, 37 right.
    predictions[1, :15] = 1  # Class 0, image 1: 15 and 15.
    positions, classes = draw(labels, predictions, max_views=20)
    used = positions >= 0
    assert (np.diff(classes[used]) >= 0).all()
    np.testing.assert_array_equal(labels.flat[positions[used]], classes[used])
    assert len(set(positions[used])) == used.sum() == 60
    assert counts(positions, labels, predictions, (0, 0)) == (10, 10)
    assert counts(positions, labels, predictions, (1, 0)) == (3, 17)
    assert counts(positions, labels, predictions, (0, 1)) == (10, 10)
    positions, _ = draw(labels, predictions, max_views=40)
    assert counts(positions, labels, predictions, (0, 0)) == (30, 10)
    assert counts(positions, labels, predictions, (0, 1)) == (15, 15)  # All that are available.


def test_the_classes_of_all_images_share_the_anchors():
    labels = np.array([[0] * 40 + [1] * 60, [0] * 50 + [2] * 50])
    positions, classes = draw(labels, labels, max_anchors=22)
    assert len(positions) == 22
    # 22 // 4 views of each.
    np.testing.assert_array_equal(np.bincount(classes[classes >= 0]), [10, 5, 5])
    assert (positions[20:] == -1).all()


def test_small_groups_do_not_take_part():
    labels = np.array([[0] * 4 + [1] * 96])
    assert set(draw(labels, labels, min_count=5)[1]) - {-1} == {1}
    assert set(draw(labels, labels, min_count=4)[1]) - {-1} == {0, 1}


def test_more_groups_than_anchors():
    labels = np.arange(50)[None]
    seen = np.zeros(50, int)
    for seed in range(200):
        positions, classes = draw(labels, labels, num_classes=50, max_anchors=8, seed=seed)
        np.testing.assert_array_equal(classes, positions)
        assert len(set(classes)) == 8
        seen[classes] += 1
    # No group is excluded because of its index: 200 * 8 / 50 draws each.
    assert np.abs(seen - 32).max() < 4.5 * np.sqrt(32 * 42 / 50)


def test_the_same_seed_draws_the_same():
    labels = np.random.default_rng(0).integers(0, 3, (2, 90))
    first, again, other = (draw(labels, labels, max_views=5, seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("max_rows", [1000, 5])
def test_pixels_of_each_image(max_rows):
    labels = np.array([[0] * 8 + [1, 1] + [255] * 2, [2] * 6 + [0] * 6])
    positions, classes = (
        x.numpy() for x in pixels_of_each_image(labels, 3, count=3, max_rows=max_rows, seed=1)
    )
    expected = [(0, 0)] * 3 + [(0, 1)] * 3 + [(1, 0)] * 2 + [(2, 1)] * 3
    result = [(int(c), int(p) // 12) for p, c in zip(positions, classes, strict=True) if p >= 0]
    if max_rows >= len(expected):
        assert result == expected
    else:
        assert len(result) == max_rows and sorted(result) == result
        assert all(result.count(group) <= expected.count(group) for group in result)
    assert len(set(positions[positions >= 0])) == len(result)
    np.testing.assert_array_equal(labels.flat[positions[positions >= 0]], classes[classes >= 0])


def example(seed=0, batch=2, dim=5):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(batch, 4, 6, dim))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    outputs = {
        "embedding_features": tf.constant(z, "float32"),
        "logits": tf.constant(rng.normal(size=(batch, 4, 6, 3)), "float32"),
    }
    labels = rng.integers(0, 3, (batch, 4, 6))
    labels[:, 0] = 255
    return outputs, labels


def everything(**arguments):
    """An objective without random draws: all pixels are anchors."""
    arguments = {"max_anchors": 1000, "max_views": 1000, "min_count": 1, **arguments}
    return PixelContrast(3, **arguments)


def rows(outputs, labels):
    known = labels.reshape(-1) < 3
    return np.array(outputs["embedding_features"]).reshape(-1, 5)[known], labels.reshape(-1)[known]


def test_without_memory_all_anchors_are_keys():
    outputs, labels = example()
    z, y = rows(outputs, labels)
    loss, valid, *_ = reference(z, y, z, y, 0.1, np.arange(len(z)))
    result = everything()(outputs, labels)["pixels"]
    np.testing.assert_allclose(result, loss.sum() / valid.sum() * 0.1 / 0.07, rtol=1e-5)
    result = everything(temperature=0.3, base_temperature=0.3)(outputs, labels)["pixels"]
    loss, valid, *_ = reference(z, y, z, y, 0.3, np.arange(len(z)))
    np.testing.assert_allclose(result, loss.sum() / valid.sum(), rtol=1e-5)


def test_gradient_is_that_of_a_loop():
    outputs, labels = example()
    objective = everything()
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = objective(outputs, labels)["pixels"]
    gradients = tape.gradient(loss, outputs)
    assert gradients["logits"] is None
    rng = np.random.default_rng(0)
    z = np.array(outputs["embedding_features"], "float64")
    for _ in range(12):
        index = tuple(rng.integers(0, n) for n in z.shape)
        moved = []
        for step in (-1e-5, 1e-5):
            x = z.copy()
            x[index] += step
            x, y = rows({"embedding_features": x}, labels)
            value, valid, *_ = reference(x, y, x, y, 0.1, np.arange(len(x)))
            moved.append(value.sum() / valid.sum() * 0.1 / 0.07)
        expected = (moved[1] - moved[0]) / 2e-5
        np.testing.assert_allclose(
            gradients["embedding_features"][index], expected, rtol=2e-3, atol=2e-5
        )


def image_means(outputs, labels):
    z = np.array(outputs["embedding_features"])
    result = []
    for image, y in zip(z, labels, strict=True):
        for n in range(3):
            if (y == n).any():
                mean = image[y == n].mean(0)
                result.append((n, mean / np.linalg.norm(mean)))
    return result


@pytest.mark.parametrize("memory", ["pixel", "region", "both"])
def test_memory_holds_pixels_and_regions_of_their_class(memory):
    objective = everything(
        memory=memory, pixel_capacity=500, region_capacity=40, pixels_per_image=100
    )
    objective.prepare(example()[0])
    remembered = []
    for seed in range(3):
        outputs, labels = example(seed)
        terms, to_store = objective.contrast(outputs, labels)
        z, y = rows(outputs, labels)
        if remembered:
            keys = np.array([row for _, row in remembered])
            loss, valid, *_ = reference(z, y, keys, np.array([n for n, _ in remembered]), 0.1, None)
            expected = loss.sum() / valid.sum() * 0.1 / 0.07
            np.testing.assert_allclose(terms["pixels"], expected, rtol=1e-4)
        else:
            assert float(terms["pixels"]) == 0  # An empty memory.
        objective.remember(to_store)
        if memory in ("pixel", "both"):
            remembered += list(zip(y, z, strict=True))
        if memory in ("region", "both"):
            remembered += image_means(outputs, labels)
    assert int(np.sum(objective.bank.count)) == len(remembered)


def test_a_full_ring_holds_the_newest_pixels():
    objective = everything(memory="pixel", pixel_capacity=4, pixels_per_image=2)
    objective.prepare(example()[0])
    for seed in range(4):
        outputs, labels = example(seed)
        objective.remember(objective.contrast(outputs, labels)[1])
    np.testing.assert_array_equal(objective.bank.count, [4, 4, 4])
    z, y = rows(outputs, labels)
    keys, rings = objective.bank.keys()
    for row, n in zip(keys.rows(0, 12).numpy(), rings.numpy(), strict=True):
        # Two of each of the two images of the last step.
        (index,) = np.flatnonzero(np.abs(z - row).max(axis=1) < 1e-6)
        assert y[index] == n


def test_a_part_of_the_memory_is_drawn_as_keys():
    objective = everything(memory="both", pixel_capacity=30, region_capacity=10, max_keys=17)
    outputs, labels = example()
    objective.prepare(outputs)
    for seed in range(4):
        objective.remember(objective.contrast(*example(seed))[1])
    drawn = []
    take = objective.bank.sample
    objective.bank.sample = lambda *a, **k: drawn.append(take(*a, **k)) or drawn[-1]
    result = objective.contrast(outputs, labels)[0]["pixels"]
    ((keys, rings),) = drawn
    z, y = rows(outputs, labels)
    # Rings of pixels and of regions alternate.
    loss, valid, *_ = reference(z, y, keys.numpy(), rings.numpy() // 2, 0.1, None)
    assert len(set(rings.numpy())) >= 4
    np.testing.assert_allclose(result, loss.sum() / valid.sum() * 0.1 / 0.07, rtol=1e-4)


def test_config_round_trip_and_refusal():
    objective = everything(memory="both", seed=4)
    again = PixelContrast.from_config(objective.get_config())
    assert again.get_config() == objective.get_config()
    with pytest.raises(ValueError, match="memory='pixels'"):
        PixelContrast(3, memory="pixels")


@pytest.mark.parametrize("memory", ["pixel", "region", "both"])
def test_a_memory_that_was_not_prepared_is_an_error(memory):
    """The anchors must not be used instead."""
    objective = everything(memory=memory)
    with pytest.raises(ValueError, match=r"'pixel_contrast' contrasts with a memory bank.*prepare"):
        objective(*example())
    with pytest.raises(ValueError, match=r"Call prepare\(segmenter.output\) first"):
        objective.contrast(*example())


def test_a_memory_belongs_to_one_segmenter():
    objective = everything(memory="pixel")
    objective.prepare(example(dim=5)[0])
    bank = objective.bank
    objective.prepare(example(dim=5)[0])
    assert objective.bank is bank
    with pytest.raises(ValueError, match=r"5 channels\. Received: outputs with 4"):
        objective.prepare(example(dim=4)[0])


def test_a_missing_output_is_named():
    outputs, labels = example()
    with pytest.raises(ValueError, match=r"reads the output 'embedding_c3'.*projections="):
        everything(stage="c3")(outputs, labels)
    with pytest.raises(ValueError, match="reads the output 'logits'"):
        everything()({"embedding_features": outputs["embedding_features"]}, labels)


def at(size, seed=0, batch=2, logits=(4, 6)):
    """Outputs with embeddings of one size and logits of another, and labels twice as large."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(batch, *size, 5)).astype("float32")
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    outputs = {"logits": rng.normal(size=(batch, *logits, 3)).astype("float32")}
    for stage in ("c3", "c4", "c5"):
        outputs[f"embedding_{stage}"] = z
    return outputs, rng.integers(0, 3, (batch, 8, 12))


@pytest.mark.parametrize("memory", ["none", "region", "both"])
@pytest.mark.parametrize("size", [(2, 3), (4, 6), (8, 12), (3, 5), (2, 12)])
def test_logits_of_any_size(size, memory):
    """Logits resized to the map's size by hand yield the same term."""
    objectives = [everything(stage="c4", memory=memory, pixels_per_image=200) for _ in range(2)]
    for seed in range(2):
        outputs, labels = at(size, seed)
        resized = dict(outputs, logits=tf.image.resize(outputs["logits"], size))
        values = []
        for objective, given in zip(objectives, (outputs, resized), strict=True):
            objective.prepare(given)
            terms, to_store = objective.contrast(given, labels)
            objective.remember(to_store)
            values.append(float(terms["pixels"]))
        np.testing.assert_allclose(*values, rtol=1e-6)
    assert values[0] > 0
