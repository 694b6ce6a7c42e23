import numpy as np
import pytest

from kseg.analysis.selection import ClassSample, LargestValues, spread


def fill(classes, parts, *, size=20, seed=0):
    """A sample of rows that contain their own indices."""
    sample = ClassSample(3, size, seed=seed)
    for part in np.array_split(np.arange(len(classes)), parts):
        sample.add(classes[part], lambda positions, part=part: (part[positions], -part[positions]))
    return sample


def test_a_sample_holds_rows_of_its_class_once():
    classes = np.random.default_rng(0).integers(0, 4, 500)
    classes[classes == 1] = 255
    sample = fill(classes, 5)
    assert [sample.count(n) for n in range(3)] == [20, 0, 20]
    assert sample.of_class(1) is None
    for n in (0, 2):
        rows, negated = sample.of_class(n)
        assert (classes[rows] == n).all()
        assert len(set(rows.tolist())) == 20
        np.testing.assert_array_equal(negated, -rows)
    labels, (rows, _) = sample.all()
    np.testing.assert_array_equal(labels, [0] * 20 + [2] * 20)
    np.testing.assert_array_equal(classes[rows], labels)


def test_the_order_decides_and_not_the_division():
    classes = np.random.default_rng(1).integers(0, 3, 300)
    whole, parts, other = fill(classes, 1), fill(classes, 17), fill(classes, 1, seed=1)
    np.testing.assert_array_equal(whole.all()[1][0], parts.all()[1][0])
    assert whole.all()[1][0].tolist() != other.all()[1][0].tolist()


def test_every_row_has_the_same_chance():
    classes = np.zeros(40, int)
    counts = np.zeros(40)
    for seed in range(400):
        counts[fill(classes, 8, size=10, seed=seed).of_class(0)[0]] += 1
    # Each row is drawn with 1/4: 100 times of 400, with a standard deviation of 8.7.
    assert counts.min() > 100 - 4 * 8.7
    assert counts.max() < 100 + 4 * 8.7


def test_take_is_asked_for_drawn_rows_only():
    asked = []

    def take(places):
        asked.append(len(places))
        return (places,)

    sample = ClassSample(1, 5)
    for _ in range(50):
        sample.add(np.zeros(100, int), take)
    assert asked[0] == 5
    assert sum(asked) < 100  # About 5 x (1 + ln(50)) = 25 of 5,000.


def test_an_empty_sample():
    classes, rows = ClassSample(2, 3).all()
    assert len(classes) == 0
    assert rows is None


@pytest.mark.parametrize("count, expected", [(0, ""), (3, "dab"), (9, "dabec")])
def test_top(count, expected):
    top = LargestValues(count)
    for value, item in [(2, "a"), (2, "b"), (0, "c"), (7, "d"), (1, "e")]:
        top.add(value, item)
    assert "".join(top.items()) == expected


def test_top_does_not_compare_items():
    top = LargestValues(1)
    for _ in range(3):
        top.add(1.0, np.zeros(2))
    assert len(top.items()) == 1


@pytest.mark.parametrize(
    "count, total, expected", [(1, 5, [2]), (2, 10, [2, 7]), (4, 3, [0, 1, 2]), (2, 0, [])]
)
def test_spread(count, total, expected):
    assert spread(count, total) == expected
