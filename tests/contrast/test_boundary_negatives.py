import numpy as np
import pytest
from keras import ops
from scipy import ndimage

from kseg.contrast.boundary_negatives import (
    FAR,
    MAX_SAMPLES,
    _evenly,
    boundary_aware_samples,
    error_regions,
    squared_edge_distance,
)


def test_error_regions_by_hand():
    labels = np.array([[0, 0, 1, 255, 2, 1]], "int32")
    predictions = np.array([[0, 1, 1, 1, 0, 2]], "int32")
    np.testing.assert_array_equal(error_regions(labels, predictions, 3), [[-1, 1, -1, -1, 0, 2]])


def test_edge_distance_by_hand():
    regions = np.full((1, 5, 7), -1, "int32")
    regions[0, 1:4, 1:6] = 3
    regions[0, 2, 5] = 4  # Another region is an edge too.
    expected = np.zeros((5, 7))
    expected[1:4, 1:6] = 1
    expected[2, 2:4] = 4
    np.testing.assert_array_equal(squared_edge_distance(regions)[0], expected)


@pytest.mark.parametrize(("size", "classes", "wrong"), [(13, 2, 0.9), (32, 4, 0.6), (40, 2, 0.99)])
def test_edge_distance_is_that_of_scipy(size, classes, wrong):
    rng = np.random.default_rng(size)
    regions = rng.integers(0, classes, (3, size, 2 * size + 1)).astype("int32")
    regions[rng.random(regions.shape) > wrong] = -1
    regions[1, 3:-3, 4:-2] = 1  # A large one.
    regions[2, :, : size // 2] = 0  # One at the image border, which is not an edge.
    distance = ops.convert_to_numpy(squared_edge_distance(regions))
    for n in range(classes):
        for image, result in zip(regions == n, distance, strict=True):
            expected = ndimage.distance_transform_edt(image)
            np.testing.assert_array_equal(result[image], np.round(expected[image] ** 2))
    np.testing.assert_array_equal(distance[regions < 0], 0)


def test_a_region_that_fills_its_image_has_no_edge():
    regions = np.stack([np.zeros((4, 6), "int32"), np.full((4, 6), -1, "int32")])
    distance = ops.convert_to_numpy(squared_edge_distance(regions))
    assert distance[0].min() >= FAR
    assert distance[1].max() == 0


def example(seed=0, pixels=600, num_classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, pixels).astype("int32")
    labels[:50] = 255
    predictions = rng.integers(0, num_classes, pixels).astype("int32")
    regions = ops.convert_to_numpy(error_regions(labels, predictions, num_classes))
    distance = np.where(regions >= 0, rng.permutation(pixels) + 1, 0).astype("int32")
    return labels, regions, distance


def draw(*arguments, num_classes=4, **options):
    options = {"max_samples": 200, "min_negatives": 5, "seed": 1, **options}
    result = boundary_aware_samples(*arguments, num_classes, **options)
    return [[ops.convert_to_numpy(x) for x in pair] for pair in result]


def test_positives_are_pixels_of_their_class():
    labels, regions, distance = example()
    (positions, owners), _ = draw(labels, regions, distance)
    assert len(set(positions)) == 200
    np.testing.assert_array_equal(labels[positions], owners)
    np.testing.assert_array_equal(np.bincount(owners), [50] * 4)
    assert (np.diff(owners) >= 0).all()


def test_rare_classes_give_all_and_unused_rows_come_last():
    labels = np.array([0] * 50 + [1] * 3 + [3] * 20, "int32")
    none = np.full(73, -1, "int32")
    (positions, owners), (_, negative_owners) = draw(labels, none, none * 0, max_samples=60)
    used = owners >= 0
    np.testing.assert_array_equal(np.bincount(owners[used]), [20, 3, 0, 20])
    np.testing.assert_array_equal(used, np.arange(60) < 43)
    np.testing.assert_array_equal(positions[~used], -1)
    # An absent class gets no negatives.
    np.testing.assert_array_equal(np.bincount(negative_owners[negative_owners >= 0]), [5, 5, 0, 5])


def test_negatives_are_the_errors_nearest_to_an_edge():
    labels, regions, distance = example()
    _, (positions, owners) = draw(labels, regions, distance, hard_fraction=0.25)
    for n in range(4):
        errors = np.flatnonzero(regions == n)
        hard = errors[np.argsort(distance[errors])][: int(np.floor(0.25 * len(errors) + 0.5))]
        assert len(hard) < 50
        assert sorted(positions[owners == n]) == sorted(hard)


def test_each_of_many_hard_errors_is_drawn_at_most_once():
    labels, regions, distance = example(pixels=4000)
    _, (positions, owners) = draw(labels, regions, distance)
    for n in range(4):
        errors = np.flatnonzero(regions == n)
        hard = errors[np.argsort(distance[errors])][: int(np.floor(0.5 * len(errors) + 0.5))]
        result = positions[owners == n]
        assert len(set(result)) == len(result) == 50
        assert set(result) <= set(hard)
        # Spread over all hard ones.
        assert distance[result].max() > 0.9 * distance[hard].max()


def test_every_hard_error_is_drawn_equally_often():
    labels = np.array([0] * 5 + [1] * 15, "int32")
    regions = np.array([-1] * 5 + [0] * 14 + [-1], "int32")
    distance = np.arange(20).astype("int32")
    counts = np.zeros(20)
    for seed in range(400):
        _, (positions, owners) = draw(
            *(labels, regions, distance), num_classes=2, max_samples=6, min_negatives=0, seed=seed
        )
        counts += np.bincount(positions[owners == 0], minlength=20)
    assert counts[:5].sum() == 0
    assert counts[12:].sum() == 0  # Beyond the nearer half.
    np.testing.assert_allclose(counts[5:12] / 400, 3 / 7, atol=0.08)


def test_random_pixels_of_other_classes_fill_up():
    labels, regions, distance = example()
    regions[regions == 2] = -1
    regions[np.flatnonzero(regions == 1)[8:]] = -1
    _, (positions, owners) = draw(labels, regions, distance, min_negatives=30)
    np.testing.assert_array_equal(np.bincount(owners[owners >= 0])[1:3], [30, 30])
    of_one = positions[owners == 1]
    assert (
        regions[of_one] == 1
    ).sum() >= 4  # Half of the 8 errors, and possibly one more at random.
    for n in (1, 2):
        result = labels[positions[owners == n]]
        assert (result != n).all()
        assert set(result) == {0, 1, 2, 3} - {n}


def test_random_negatives():
    labels, regions, distance = example()
    _, (positions, owners) = draw(labels, regions, distance, negatives="random")
    np.testing.assert_array_equal(np.bincount(owners), [50] * 4)
    assert (labels[positions] != owners).all()
    assert (labels[positions] < 4).all()


def test_the_same_seed_draws_the_same():
    first, again, other = (draw(*example(), seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert (a[0] != c[0]).any()


@pytest.mark.parametrize("value", [255, 1])
def test_nothing_to_contrast(value):
    labels = np.full(40, value, "int32")
    none = np.full(40, -1, "int32")
    (_, owners), (negatives, _) = draw(labels, none, none * 0)
    assert (negatives == -1).all()
    assert (owners >= 0).sum() == (40 if value == 1 else 0)


def test_numbers_that_leave_an_int32_in_a_product():
    pixels = 300_000
    labels = np.zeros(pixels, "int32")
    labels[:10] = 1
    regions = np.where(labels == 0, 1, -1).astype("int32")
    _, (positions, owners) = draw(
        *(labels, regions, np.ones_like(labels)), num_classes=2, max_samples=20_000
    )
    result = positions[owners == 1]
    assert len(set(result)) == 10_000
    assert (regions[result] == 1).all()


@pytest.mark.parametrize("hard_fraction", [0.5, 0.1, 1.0])
def test_min_negatives_is_a_minimum(hard_fraction):
    """For any number of errors; more errors never yield fewer negatives."""
    pixels, least = 400, 64
    labels = (np.arange(pixels) >= 200).astype("int32")
    result = []
    for errors in (0, 1, 5, 32, 63, 64, 65, 127, 128, 129, 150, 200):
        regions = np.full(pixels, -1, "int32")
        regions[200 : 200 + errors] = 0
        _, (positions, owners) = draw(
            *(labels, regions, np.arange(pixels).astype("int32")),
            num_classes=2,
            max_samples=400,
            min_negatives=least,
            hard_fraction=hard_fraction,
        )
        own = positions[owners == 0]
        assert (labels[own] == 1).all()
        hard = int(np.floor(errors * hard_fraction + 0.5))
        assert len(own) == max(hard, least)
        # All of the hard ones are among them.
        assert set(range(200, 200 + hard)) <= set(own)
        result.append(len(own))
    assert result == sorted(result)


def test_no_negatives_where_there_is_no_other_class():
    labels = np.zeros(50, "int32")
    none = np.full(50, -1, "int32")
    _, (_, owners) = draw(labels, none, none * 0, num_classes=2, min_negatives=10)
    assert (owners == -1).all()


def test_more_classes_than_samples():
    """A random selection takes part: no class is excluded because of its index."""
    labels = np.repeat(np.arange(30), 4).astype("int32")
    none = np.full(120, -1, "int32")
    seen = np.zeros(30, int)
    for seed in range(200):
        result = draw(labels, none, none * 0, num_classes=30, max_samples=10, seed=seed)
        (positions, owners), (negatives, negative_owners) = result
        np.testing.assert_array_equal(labels[positions], owners)
        assert len(set(owners)) == 10
        np.testing.assert_array_equal(negative_owners, owners)
        assert (labels[negatives] != owners).all()
        seen[owners] += 1
    assert np.abs(seen - 200 / 3).max() < 4.5 * np.sqrt(200 * 2 / 9)


@pytest.mark.parametrize("drawn", [1, 7, 46_340, 46_341, 70_000, 1_000_003, MAX_SAMPLES])
def test_even_steps_in_an_int32(drawn):
    """Compares with NumPy's int64: products of ranks above 46,340 overflow an int32."""
    rng = np.random.default_rng(drawn)
    for available in (drawn, drawn + 1, 2 * drawn - 1, 3 * drawn + drawn // 2, 2**29):
        rank = np.unique(np.append(rng.integers(0, drawn, 500), [0, drawn - 1])).astype("int32")
        uniform = np.float32(rng.random())
        start = min(int(np.float32(uniform * np.float32(available))), available - 1)
        expected = (rank.astype("int64") * available + start) // drawn
        result = _evenly(rank, np.int32(available), np.int32(drawn), uniform)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("max_samples", [0, MAX_SAMPLES + 1])
def test_refuses_samples_beyond_its_arithmetic(max_samples):
    with pytest.raises(ValueError, match=f"{max_samples=}"):
        draw(*example(), max_samples=max_samples)
