"""Directions, dispersion, the choice of the layer, and closeness, each written out slowly."""

import math

import numpy as np
import pytest

from counterdoor.detectors import AGPD, Evidence
from counterdoor.detectors.agpd import (
    anomalies,
    clean_direction,
    dispersion,
    poison_closeness,
    strangeness,
    sure_strangeness,
    unit,
)
from counterdoor.models import DigitsCNN, build_net


def around(angle, n, spread, seed):
    """Unit vectors of the plane."""
    angles = angle + np.random.default_rng(seed).normal(0, spread, size=n)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def cosine(one, other):
    return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))


def test_directions_have_length_one_and_nothing_has_none():
    given = np.array([[3, 4], [0, 0], [-1e-20, 0]], dtype=np.float32)
    np.testing.assert_allclose(unit(given), [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)


def test_the_clean_direction_is_of_trusted_samples_that_are_right():
    given = np.array([[1.0, 0], [0, 1], [-1, 0]])
    trusted, none = np.array([True, True, False]), np.zeros(3, dtype=bool)
    right = np.array([False, True, True])
    np.testing.assert_allclose(clean_direction(given, trusted, right), [0, 1])
    np.testing.assert_allclose(clean_direction(given, trusted, none), [0.5**0.5, 0.5**0.5])


def test_dispersion():
    given = np.concatenate([around(0.1, 40, 0.1, 0), around(2, 10, 0.1, 1)])
    clean = np.array([1.0, 0])
    seed = min(range(50), key=lambda i: cosine(given[i], clean))
    gaps = [cosine(row, clean) - cosine(row, given[seed]) for row in given]
    expected = math.sqrt(math.fsum(gap**2 for gap in gaps) / 50)
    assert dispersion(given, clean) == pytest.approx(expected)
    assert dispersion(given[:40], clean) < 0.3 < expected


def test_strangeness_compares_untrusted_samples_with_trusted_ones():
    given = np.concatenate([around(0.1, 40, 0.1, 0), around(2, 10, 0.1, 1)])
    clean, trusted = np.array([1.0, 0]), np.arange(50) < 10
    means = [
        math.sqrt(math.fsum((1 - cosine(row, clean)) ** 2 for row in rows) / len(rows))
        for rows in (given[:10], given[10:])
    ]
    expected = 1 - (means[0] + 1e-3) / (means[1] + 1e-3)
    assert strangeness(given, clean, trusted) == pytest.approx(expected)
    assert expected > 0.9
    assert strangeness(given[::-1], clean, trusted) == 0
    assert strangeness(given[:40], clean, trusted[:40]) < 0.3
    assert strangeness(given, clean, np.ones(50, dtype=bool)) == 0


@pytest.mark.parametrize("errors", [0.0, 2.0])
def test_sure_strangeness_leaves_each_trusted_sample_out_of_its_own_mean(errors):
    given = np.concatenate([around(0.1, 40, 0.3, 0), around(2, 10, 0.1, 1)])
    trusted, right = np.arange(50) < 10, np.arange(50) != 3
    known = [row for row in range(10) if row != 3]
    far = []
    for row in range(50):
        others = [other for other in known if other != row]
        far.append(1 - cosine(given[row], np.sum([given[other] for other in others], axis=0)))
    own = [value**2 for value in far[:10]]
    mean = math.fsum(own) / 10
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in own) / 9)
    bound = mean + errors * deviation / math.sqrt(10)
    rest = math.fsum(value**2 for value in far[10:]) / 40
    expected = 1 - math.sqrt((bound + 1e-6) / (rest + 1e-6))
    found = sure_strangeness(given, trusted, right, errors)
    assert found == pytest.approx(expected)
    assert found > 0.5


def test_a_class_is_not_surely_strange_by_chance():
    few, all_right = np.arange(60) < 10, np.ones(60, dtype=bool)
    by_chance, surely = (
        [sure_strangeness(around(0, 60, 0.3, seed), few, all_right, e) > 0.1 for seed in range(40)]
        for e in (0.0, 2.0)
    )
    assert 0 < 2 * sum(surely) < sum(by_chance)
    given, everybody = around(0, 20, 0.3, 0), np.ones(20, dtype=bool)
    assert sure_strangeness(given, everybody, everybody, 2.0) == 0
    nobody_right = sure_strangeness(given, np.arange(20) < 5, ~everybody, 0.0)
    assert nobody_right == sure_strangeness(given, np.arange(20) < 5, everybody, 0.0)


def test_surely_strange_scores_have_a_sign(noise):
    images, labels = noise(40), np.arange(40) % 4
    net = build_net(DigitsCNN(width=2), images, 4, seed=0, stream="init")
    case = Evidence(images, labels, np.arange(40) < 16, 4, plain_net=net)
    plain, sure = (AGPD(weight=weight)(case, seed=0) for weight in ("trusted", "sure"))
    assert plain.min() >= 0
    assert sure.min() < 0
    assert [AGPD(weight=w).signed for w in ("trusted", "dispersion", "sure")] == [0, 0, 1]


def test_anomalies_are_in_deviations_above_the_median():
    found = np.array([[1.0, 2, 3, 4, 100], [1, 1, 1, 1, 1]])
    expected = [0, 0, 0, 1 / 1.4826, 97 / 1.4826]
    np.testing.assert_allclose(anomalies(found)[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(anomalies(found)[1], 0)


@pytest.mark.parametrize(
    ("found", "layer"),
    [
        ([[0.5, 0.6, 0.7, 0.55], [0.1, 0.11, 0.12, 0.9], [0.9, 0.8, 0.7, 0.9]], 1),
        ([[0.5, 0.6, 0.2, 0.55], [0.1, 0.2, 0.3, 0.4], [0.4, 0.5, 0.4, 0.6]], 2),
        ([[0.4, 0.5, 0.6, 0.7], [0.5, 0.6, 0.7, 0.8]], 1),
    ],
    ids=["one class stands out", "most classes", "the larger mean"],
)
def test_the_layer(found, layer):
    assert AGPD()._layer(np.array(found)) == layer


def test_closeness_finds_the_second_direction():
    given = np.concatenate([around(0, 40, 0.2, 0), around(1.5, 15, 0.2, 1), around(2.2, 1, 0, 2)])
    clean, untrusted = np.array([1.0, 0]), np.arange(56) >= 5
    closeness = poison_closeness(given, clean, untrusted)
    assert (closeness[:40] < 0.5).all()
    assert (closeness[40:] > 0.5).all()
    poison = given[40:].mean(0)
    for row, value in zip(given, closeness, strict=True):
        apart = 1 - cosine(row, clean), 1 - cosine(row, poison)
        assert value == pytest.approx(apart[0] / (apart[0] + apart[1]), abs=1e-9)


def test_trusted_samples_do_not_shape_the_second_direction():
    given = np.concatenate([around(0, 20, 0.2, 0), around(1.5, 10, 0.2, 1)])
    untrusted = np.arange(30) != 25
    moved = given.copy()
    moved[25] = [-1, 0]
    clean = np.array([1.0, 0])
    first, other = (poison_closeness(each, clean, untrusted) for each in (given, moved))
    np.testing.assert_array_equal(np.delete(first, 25), np.delete(other, 25))


def test_one_direction_alone_gives_numbers():
    assert np.isfinite(poison_closeness(np.ones((3, 1)), np.ones(1), np.ones(3, dtype=bool))).all()
    assert np.isfinite(poison_closeness(np.ones((3, 1)), np.ones(1), np.zeros(3, dtype=bool))).all()
