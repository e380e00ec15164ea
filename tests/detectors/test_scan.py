"""The two groups of a class against the normal distribution's own densities."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from counterdoor.detectors.scan import two_groups


def groups(n, planted, distance, seed=0):
    """Standard normal points, ``planted`` of them moved, and some of the others trusted."""
    points = np.random.default_rng(seed).normal(size=(n, 4))
    points[:planted, 1] += distance
    trusted = np.arange(n) >= n - n // 10
    return points, trusted


@pytest.mark.parametrize("planted", [10, 60, 150])
def test_the_ratio_is_that_of_two_normal_densities(planted):
    points, trusted = groups(200, planted, 8)
    ratio = two_groups(points, trusted)
    second = np.arange(200) < planted
    np.testing.assert_array_equal(ratio > 0, second)
    densities = [multivariate_normal(points[rows].mean(0)) for rows in (second, ~second)]
    expected = densities[0].logpdf(points) - densities[1].logpdf(points)
    np.testing.assert_allclose(ratio, expected, rtol=1e-9)


def test_a_class_of_one_group_has_small_ratios():
    plain, _ = groups(200, 0, 0)
    planted, trusted = groups(200, 20, 8)
    assert two_groups(plain, trusted).max() < 0.25 * two_groups(planted, trusted)[:20].min()


def test_trusted_samples_stay_in_the_first_group():
    points, trusted = groups(200, 60, 8)
    odd = trusted.copy()
    odd[:2] = True
    ratio = two_groups(points, odd)
    assert (ratio[:2] > 0).all()  # they lie with the second group, but do not count to it
    expected = points[2:60].mean(0), points[~(np.arange(200) < 60) | odd].mean(0)
    distances = [((points - mean) ** 2).sum(1) for mean in expected]
    np.testing.assert_allclose(ratio, (distances[1] - distances[0]) / 2, rtol=1e-9)


def test_all_trusted_or_all_alike_gives_zeros():
    np.testing.assert_array_equal(two_groups(np.ones((5, 2)), np.arange(5) < 2), 0)
    np.testing.assert_array_equal(two_groups(groups(9, 0, 0)[0], np.ones(9, dtype=bool)), 0)
