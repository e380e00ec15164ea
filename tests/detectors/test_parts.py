"""A crowd in two parts, against scikit-learn and against what is known of the normal."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from counterdoor.detectors.parts import parted, separation, two_means, valley


def crowds(*sizes, distance=10.0, dimensions=4, seed=0):
    """Normal points; the second crowd lies so far from the first along a diagonal."""
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(sum(sizes), dimensions))
    second = np.arange(len(points)) >= sizes[0]
    points[second] += distance / np.sqrt(dimensions)
    order = generator.permutation(len(points))
    return points[order], second[order]


@pytest.mark.parametrize("sizes", [(310, 300), (570, 30), (200, 400)])
def test_two_crowds_are_told_apart(sizes):
    points, second = crowds(*sizes)
    place = parted(points, 0.02)
    smaller = second if sizes[1] < sizes[0] else ~second
    np.testing.assert_array_equal(place > 0, smaller)
    assert valley(place) == valley(-place) == 0.0
    assert separation(place) == pytest.approx(10, abs=1)
    for part in (place[smaller], place[~smaller]):
        assert part.std() == pytest.approx(1, abs=0.3)
        assert abs(part.mean()) == pytest.approx(5, abs=0.5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [100, 1000])
def test_one_crowd_has_no_gap(seed, n):
    points = np.random.default_rng(seed).normal(size=(n, 8)) * [2, 1, 1, 1, 1, 1, 1, 1]
    assert valley(parted(points, 0.02)) > 0.2


def test_the_valley_of_a_normal_crowd_is_known():
    place = np.random.default_rng(0).normal(size=400_000)
    assert separation(place) == pytest.approx(2 * np.sqrt(2 / np.pi), abs=0.01)
    assert valley(place) == pytest.approx(0.42, abs=0.01)
    assert valley(7 * place) == valley(place)


def test_the_valley_by_hand():
    """Means at -3 and 3, so the middle third is within 1; 2 of 20 lie there."""
    place = np.array([-3.0] * 28 + [-0.5, -5.5] + [3.0] * 18 + [0.5, 5.5])
    assert separation(place) == pytest.approx(6)
    assert valley(place) == 2 / 20


@pytest.mark.parametrize("few", [0, 1, 19])
def test_stragglers_are_no_part(few):
    points, _ = crowds(400, few)
    place = parted(points, 0.01)
    assert not ((place > 0).sum() == few > 0)
    assert valley(np.where(np.arange(400) < few, 5.0, -5.0)) == np.inf
    assert parted(crowds(400, 20)[0], 0.01).max() > 3


def test_a_share_may_be_asked_for():
    points, second = crowds(570, 30)
    assert ((parted(points, 0.05) > 0) == second).all()
    assert not ((parted(points, 0.06) > 0) == second).all()


def test_points_alike_have_no_parts():
    assert not parted(np.zeros((50, 0)), 0.02).any()
    assert not parted(np.ones((50, 3)), 0.02).any()


@pytest.mark.parametrize("seed", range(4))
def test_two_means_against_scikit_learn(seed):
    points, _ = crowds(80, 60, distance=2.0, seed=seed)
    first = points[:, 0] > np.median(points[:, 0])
    means = np.stack([points[~first].mean(0), points[first].mean(0)])
    slow = KMeans(2, init=means, n_init=1, max_iter=300, tol=0.0).fit(points)
    np.testing.assert_array_equal(two_means(points, first), slow.labels_ == 1)
