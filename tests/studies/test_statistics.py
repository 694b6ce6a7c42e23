import math

import numpy as np
import pytest
import scipy.stats

from kseg.errors import UserError
from kseg.studies import results
from kseg.studies.statistics import (
    Estimate,
    estimate,
    estimate_difference,
    seeds_for_power,
    summarize,
)
from tests.studies.fakes import NAMES, add


def test_interval_by_hand():
    """Three values: t of 2 degrees of freedom at 97.5 % is 4.302653 (any table)."""
    result = estimate([1.0, 2.0, 6.0])
    deviation = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2)
    half = 4.302653 * deviation / math.sqrt(3)
    np.testing.assert_allclose(
        [result.mean, result.deviation, result.low, result.high],
        [3, deviation, 3 - half, 3 + half],
        rtol=1e-6,
    )
    assert not result.significant
    assert result.same_sign == 3
    assert estimate([1.0, -2.0, -6.0, -1.0]).same_sign == 3


def test_few_values_have_no_interval():
    assert math.isnan(estimate([]).mean)
    assert estimate([2.0]).mean == 2 and math.isnan(estimate([2.0]).low)
    assert not estimate([2.0]).significant


@pytest.fixture
def arms(tmp_path):
    """Two classes and two images, whose unions are 100 pixels: an IoU is the mean of the hits."""
    add(tmp_path, "ce", 0, [[10, 20], [30, 40]], cpu_seconds=10, peak_memory_mb=100)
    add(tmp_path, "ce", 1, [[20, 20], [40, 40]], cpu_seconds=10, peak_memory_mb=100)
    add(tmp_path, "ce", 2, [[90, 90], [90, 90]])  # No counterpart.
    add(tmp_path, "new", 0, [[20, 20], [40, 40]], cpu_seconds=15, peak_memory_mb=110)
    add(tmp_path, "new", 1, [[40, 20], [60, 40]], cpu_seconds=15, peak_memory_mb=110)
    names = ["ce", "new", "later"]
    return summarize(results.read(tmp_path), names, "ce", NAMES, ["sky"])


def test_difference_without_pairs():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 2, 5), rng.normal(0, 1, 9)
    result = estimate_difference(first, second, 0.9)
    expected = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    np.testing.assert_allclose([result.low, result.high], [expected.low, expected.high])
    np.testing.assert_allclose(result.mean, first.mean() - second.mean())
    np.testing.assert_allclose(result.deviation**2, first.var(ddof=1) + second.var(ddof=1))
    assert result.count == 5
    same = estimate_difference([1.0, 1.0], [3.0, 3.0])
    assert (same.low, same.high) == (-2, -2) and same.significant
    assert math.isnan(estimate_difference([1.0], [3.0, 4.0]).low)
    assert estimate_difference([], [3.0]).count == 0


def test_differences_are_paired_by_seed(arms):
    base, new, later = arms
    # mIoU of seeds 0, 1, 2: ce 25, 30, 90; new 30, 40.
    np.testing.assert_allclose(base.last.mean, (25 + 30 + 90) / 300)
    np.testing.assert_allclose(new.last.mean, 0.35)
    np.testing.assert_allclose([new.difference.mean, new.difference.count], [0.075, 2])
    half = 12.706205 * (0.10 - 0.05) / math.sqrt(2) / math.sqrt(2)  # t, 1 degree of freedom.
    np.testing.assert_allclose(new.difference.high, 0.075 + half, rtol=1e-6)
    # Class sky: ce 20, 30; new 30, 50: +10, +20. Class road: no difference.
    np.testing.assert_allclose([d.mean for d in new.class_difference], [0.15, 0], atol=1e-12)
    np.testing.assert_allclose(new.scored.mean, 0.4)
    np.testing.assert_allclose(new.scored_difference.mean, 0.15)
    np.testing.assert_allclose([new.time, new.memory], [1.5, 1.1])
    # Without pairs, all seeds count: 25, 30, 90 and 30, 40.
    np.testing.assert_allclose([new.unpaired.mean, new.unpaired.count], [0.35 - 145 / 300, 2])
    np.testing.assert_allclose(new.scored_unpaired.mean, 0.4 - base.scored.mean)
    assert new.scored_unpaired.count == 2 and base.scored_unpaired is None
    assert base.difference is None and base.unpaired is None and base.images is None
    assert later.last.count == 0 and later.difference.count == 0 and later.images is None


def test_time_on_a_gpu_is_elapsed_time(tmp_path):
    cost = {"device": "NVIDIA H200", "cpu_seconds": 0.1}
    add(tmp_path, "ce", 0, [[10, 20], [30, 40]], seconds=20, **cost)
    add(tmp_path, "new", 0, [[20, 20], [40, 40]], seconds=30, **cost)
    _, new = summarize(results.read(tmp_path), ["ce", "new"], "ce", NAMES)
    assert new.time == 1.5 and math.isnan(new.memory)


def test_images_are_drawn_for_the_same_seeds(arms):
    """Every image gains equally, so that every draw has the same difference."""
    result = arms[1].images
    np.testing.assert_allclose([result.difference[-1]], [0.075])
    np.testing.assert_allclose([result.low[-1], result.high[-1]], [0.075, 0.075])


def test_scored_classes_must_exist(tmp_path):
    with pytest.raises(UserError, match=r"'moon'\. Classes: sky, road"):
        summarize([], ["ce"], "ce", NAMES, ["moon"])


@pytest.mark.parametrize("effect", [0.6, 1.0, -2.0])
def test_seeds_for_power_by_simulation(effect):
    """The share of simulated studies whose interval is on the right side of 0."""
    rng = np.random.default_rng(0)

    def power(count):
        samples = rng.normal(effect, 1, (40_000, count)) * np.sign(effect)
        half = scipy.stats.t.ppf(0.975, count - 1) * samples.std(axis=1, ddof=1) / count**0.5
        return np.mean(samples.mean(axis=1) > half)

    found = seeds_for_power(Estimate(0.01 * effect, 0, 0, 5, 0.01))
    assert power(found) > 0.795
    assert power(found - 1) < 0.805


def test_seeds_for_power_without_deviation_or_beyond_the_limit():
    assert seeds_for_power(estimate([0.01, 0.01])) == 2
    assert seeds_for_power(estimate([0.01])) is None
    assert seeds_for_power(estimate([0.0, 0.0])) is None
    assert seeds_for_power(estimate([0.01, -0.009]), most=50) is None
