import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.grouping import sort_by_group
from kseg.contrast.sampling import balanced_anchors
from kseg.layers import resize_labels


def draw(labels, num_classes, **arguments):
    positions, anchor_labels = balanced_anchors(tf.constant(labels), num_classes, **arguments)
    return np.array(positions), np.array(anchor_labels)


def checked_draw(labels, num_classes, **arguments):
    """Draws a sample, checks its invariants, and returns counts `(images, classes)`."""
    positions, classes = draw(labels, num_classes, **arguments)
    used = classes >= 0
    assert np.array_equal(used, positions >= 0)
    assert np.array_equal(used, np.sort(used)[::-1])  # Unused rows come last.
    assert np.array_equal(classes[used], np.sort(classes[used]))
    assert np.array_equal(labels.reshape(-1)[positions[used]], classes[used])
    assert len(set(positions[used])) == used.sum()
    counts = np.zeros((len(labels), num_classes), int)
    np.add.at(counts, (positions[used] // labels.shape[1], classes[used]), 1)
    return counts


def test_labels_are_resized_to_the_nearest_pixel_center():
    labels = np.arange(6 * 8).reshape(1, 6, 8)
    # Rows (i + 0.5) * 6 / 2 = 1.5, 4.5; columns (i + 0.5) * 8 / 3 = 1.33, 4, 6.67.
    expected = labels[:, [1, 4]][:, :, [1, 4, 6]]
    assert np.array_equal(resize_labels(labels, 2, 3), expected)
    assert np.array_equal(resize_labels(labels, 6, 8), labels)
    assert resize_labels(labels.astype("uint8"), 3, 4).dtype == "int32"


def test_every_class_gets_as_many_as_the_rarest_has():
    labels = np.full((2, 50), 255)
    labels[0, :30], labels[0, 30:43] = 0, 1
    labels[1, :7], labels[1, 7:20], labels[1, 20:26] = 0, 2, 3
    # 37 of class 0, 13 of 1, 13 of 2, 6 of 3; class 4 is absent.
    counts = checked_draw(labels, 5, seed=0)
    assert counts.sum(0).tolist() == [6, 6, 6, 6, 0]
    assert counts[:, 0].tolist() == [3, 3]  # Divided equally among the images that contain it.


def test_rare_classes_and_ignored_pixels_do_not_take_part():
    labels = np.array([[0] * 9 + [1] * 4 + [2] * 20 + [255] * 7 + [-1, 200]])
    assert checked_draw(labels, 3, seed=0).sum(0).tolist() == [9, 0, 9]
    assert checked_draw(labels, 3, min_count=4, seed=0).sum(0).tolist() == [4, 4, 4]


def test_the_number_of_anchors_is_capped():
    labels = np.repeat(np.arange(3), 40)[None]
    assert checked_draw(labels, 3, max_anchors=50, seed=0).sum(0).tolist() == [16, 16, 16]
    assert len(draw(labels, 3, max_anchors=50)[0]) == 50
    assert len(draw(labels, 3)[0]) == 120


def test_images_that_have_less_give_all_and_the_others_more():
    labels = np.full((4, 40), 255)
    labels[0, :2] = labels[1, :30] = labels[2, :30] = 0  # 2, 30, 30, 0 pixels of class 0.
    labels[3, :17] = 1
    counts = checked_draw(labels, 2, seed=0)
    assert counts[:, 1].tolist() == [0, 0, 0, 17]
    assert counts[0, 0] == 2 and sorted(counts[1:3, 0].tolist()) == [7, 8] and counts[3, 0] == 0


def test_equal_division_for_random_counts():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.integers(0, 4, (3, 60))
        labels[rng.random((3, 60)) < rng.random((3, 1))] = 3
        counts = checked_draw(labels, 4, seed=1)
        have = np.stack([(labels == n).sum(1) for n in range(4)], axis=1)
        for n in np.flatnonzero(counts.sum(0)):
            # No image contributes two more than another with pixels left.
            for a in range(3):
                assert counts[a, n] == have[a, n] or counts[a, n] >= counts[:, n].max() - 1


@pytest.mark.parametrize("labels", [np.full((2, 30), 255), np.zeros((1, 4), int)])
def test_no_class_present(labels):
    positions, classes = draw(labels, 3)
    assert (positions == -1).all() and (classes == -1).all()


def test_batch_of_one_with_150_classes():
    labels = np.random.default_rng(0).integers(0, 150, (1, 128 * 128))
    counts = checked_draw(labels, 150, seed=0)
    assert counts.sum() == 150 * min(np.bincount(labels[0]).min(), 10_000 // 150)


def test_same_seed_same_sample_in_a_graph_too():
    labels = np.random.default_rng(0).integers(0, 3, (2, 100))
    graph = tf.function(lambda x: balanced_anchors(x, 3, max_anchors=30, seed=7), autograph=False)
    first, again = draw(labels, 3, max_anchors=30, seed=7), graph(tf.constant(labels))
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], draw(labels, 3, max_anchors=30, seed=8)[0])
    generator = keras.random.SeedGenerator(7)
    one, two = (draw(labels, 3, max_anchors=30, seed=generator)[0] for _ in range(2))
    assert not np.array_equal(one, two)


def test_every_pixel_of_a_class_is_drawn_equally_often():
    labels = np.array([[0] * 20 + [1] * 5])
    generator = keras.random.SeedGenerator(0)
    drawn = np.zeros(25)
    for _ in range(400):
        positions, _ = draw(labels, 2, seed=generator)
        drawn[positions[positions >= 0]] += 1
    assert (drawn[20:] == 400).all()
    # 400 draws at probability 1/4: mean 100, standard deviation 8.7.
    assert abs(drawn[:20] - 100).max() < 5 * 8.7


def test_more_classes_than_anchors():
    """At least two of each, or none would have a positive; the classes are chosen at random."""
    labels = np.repeat(np.arange(20), 6)[None]
    seen = np.zeros(20, int)
    for seed in range(200):
        counts = checked_draw(labels, 20, max_anchors=12, seed=seed).sum(0)
        assert sorted(set(counts)) == [0, 2] and counts.sum() == 12
        seen += counts > 0
    assert np.abs(seen - 60).max() < 4.5 * np.sqrt(60 * 0.7)


def test_rows_of_many_groups_keep_their_order():
    """Groups times rows overflow an int32."""
    groups = (np.arange(60_000) % 50_000).astype("int32")
    order, starts = sort_by_group(groups, 50_000)
    np.testing.assert_array_equal(order, np.argsort(groups, kind="stable"))
    np.testing.assert_array_equal(np.diff(starts), [2] * 10_000 + [1] * 40_000)
