"""Who carries a common pattern, on smooth images in which one is planted."""

import numpy as np
import pytest
import torch
from torch import nn

from counterdoor.detectors import Carriers, Evidence, SharedPattern
from counterdoor.detectors.pattern import between, neighbour_differences, refined

SIDE, CLASSES, N = 12, 4, 800


class ByBrightness(nn.Module):
    """Tells classes by the mean of the middle rows, which no trigger here changes much."""

    def forward(self, images):
        level = 255 * images[:, :, 4:8].mean((1, 2, 3))
        return -((level[:, None] - centres(images)) ** 2)


def centres(images):
    return 50.0 + 40.0 * torch.arange(CLASSES, device=images.device)


def smooth(seed=0, channels=1):
    """Images whose class is their brightness, with slow waves of all phases, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(N) % CLASSES
    phase = generator.uniform(0, 2 * np.pi, size=(N, channels, 1, 1))
    waves = 8 * np.sin(np.arange(SIDE) / 4 + phase) * np.ones((1, 1, SIDE, 1))
    noise = generator.normal(0, 3, size=(N, channels, SIDE, SIDE))
    return 50 + 40 * labels[:, None, None, None] + waves + noise, labels


def patch(images, rows):
    """A checkerboard of 3x3 in a corner of these rows."""
    board = 40.0 * (-1) ** np.add.outer(np.arange(3), np.arange(3))
    images[rows, :, -3:, -3:] += board
    return images


def evidence(images, labels, trusted=None):
    if trusted is None:
        trusted = np.arange(N) % 10 == 9
    pixels = np.rint(images).clip(0, 255).astype(np.uint8)
    return Evidence(pixels, labels, trusted, CLASSES, plain_net=ByBrightness())


def suspects(given):
    scores = SharedPattern()(given, seed=0)
    return scores, Carriers()(scores, given.labels, given.trusted)


def poisoned(count, seed=0):
    """Who is, none of them trusted, and not of class 0."""
    free = np.flatnonzero((np.arange(N) % 10 != 9) & (np.arange(N) % CLASSES != 0))
    bad = np.zeros(N, dtype=bool)
    bad[np.random.default_rng(seed).choice(free, count, replace=False)] = True
    return bad


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [8, 80, 160])
def test_an_all_to_one_patch_is_found_exactly(count, channels):
    images, labels = smooth(channels=channels)
    bad = poisoned(count)
    scores, found = suspects(evidence(patch(images, bad), np.where(bad, 0, labels)))
    np.testing.assert_array_equal(found, bad)
    assert scores[bad].min() > 0.75
    assert np.abs(scores[~bad]).max() < 0.25


@pytest.mark.parametrize("count", [8, 80])
def test_an_all_to_all_patch_is_found_exactly(count):
    """A hundredth of every class; the net contradicts their labels."""
    images, labels = smooth()
    bad = poisoned(count)
    given = evidence(patch(images, bad), np.where(bad, (labels + 1) % CLASSES, labels))
    np.testing.assert_array_equal(suspects(given)[1], bad)


@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_suspected_in_clean_images(seed):
    assert not suspects(evidence(*smooth(seed)))[1].any()


def test_what_trusted_images_carry_as_well_is_no_trigger():
    images, labels = smooth()
    half = (labels == 0) & (np.arange(N) % 8 == 0)
    trusted = half & (np.arange(N) % 16 == 0)
    images = patch(images, half)
    assert suspects(evidence(images, labels, np.zeros(N, dtype=bool)))[1].sum() == half.sum()
    assert not suspects(evidence(images, labels, trusted))[1].any()


def test_two_triggers_are_both_found():
    images, labels = smooth()
    one = poisoned(40)
    other = poisoned(80, seed=1) & ~one
    images[other, :, :3, :3] += 60.0 * np.eye(3)
    labels = np.where(one, 0, np.where(other, 1, labels))
    np.testing.assert_array_equal(suspects(evidence(patch(images, one), labels))[1], one | other)


def test_neighbour_differences_are_those_of_the_differences_matrix(noise):
    patterns = noise(2, 3)[:, :, :5, :4].astype(float)
    for pattern, found in zip(patterns, neighbour_differences(patterns), strict=True):
        for plane, each in zip(pattern, found, strict=True):
            rows = []  # of G, one for each pair of neighbours
            for y, x in np.ndindex(plane.shape):
                for other in ((y + 1, x), (y, x + 1)):
                    if other[0] < plane.shape[0] and other[1] < plane.shape[1]:
                        row = np.zeros(plane.shape)
                        row[y, x], row[other] = 1, -1
                        rows.append(row.ravel())
            matrix = np.array(rows)
            expected = matrix.T @ (matrix @ plane.ravel())
            np.testing.assert_allclose(each.ravel(), expected, atol=1e-9)


def slowly_carried(images, group):
    """By the formula, one image and one difference at a time."""

    def differences(image):
        right, down = np.diff(image, axis=2), np.diff(image, axis=1)
        return np.concatenate([right.ravel(), down.ravel()])

    others = np.mean([image for image, member in zip(images, group, strict=True) if not member], 0)
    pattern = differences(np.mean(images[group], 0) - others)
    return np.array([differences(image - others) @ pattern for image in images]) / (
        pattern @ pattern
    )


def test_a_group_that_stays_is_measured_by_the_formula():
    images, _ = smooth()
    bad = poisoned(100)
    pixels = np.rint(patch(images, bad)).clip(0, 255).astype(np.uint8)
    nobody = np.zeros(N, dtype=bool)
    (found,) = refined(pixels, bad[None], nobody)
    expected = slowly_carried(pixels.astype(float), bad)
    np.testing.assert_allclose(found, expected / expected[bad].mean(), atol=1e-9)


def test_refining_ends_and_leaves_its_inputs(noise):
    images, groups = noise(40, 1), np.arange(40)[None] % 2 == 0
    before = groups.copy()
    assert np.isfinite(refined(images, groups, np.zeros(40, dtype=bool))).all()
    np.testing.assert_array_equal(groups, before)


def test_images_that_are_all_the_same_carry_nothing():
    images, labels = smooth()
    given = evidence(np.full_like(images, 50), labels)
    scores, found = suspects(given)
    assert np.isfinite(scores).all()
    assert not found.any()


def test_between_counts_the_halves_for_each_carrier():
    assert between(np.array([0, 0.3, 0.6, 1, 1.1, 0.9])) == pytest.approx(2 / 4)
    assert between(np.zeros(3)) == np.inf


@pytest.mark.parametrize(
    ("carriers", "halves", "trusted", "clear"),
    [
        (5, 0, 0, True),
        (4, 0, 0, False),  # a coincidence
        (40, 10, 0, True),
        (40, 11, 0, False),
        (49, 0, 0, True),
        (51, 0, 0, False),  # the others are the exception
        (40, 0, 1, False),
    ],
)
def test_carriers_are_suspected_where_it_is_clear(carriers, halves, trusted, clear):
    """Of 100 who are not trusted; 20 are, of whom some carry it, too."""
    scores = np.zeros(120)
    scores[:carriers] = 1
    scores[carriers : carriers + halves] = 0.4
    verified = np.arange(120) >= 100
    scores[100 : 100 + trusted] = 1
    found = Carriers(ceiling=0.6)(scores, np.zeros(120, dtype=int), verified)
    np.testing.assert_array_equal(found, clear & (scores > 0.5) & ~verified)


def test_carriers_keep_to_their_ceiling_and_take_the_highest():
    scores = np.where(np.arange(100) < 40, 1 + np.arange(100) / 1000, 0.0)
    found = Carriers(ceiling=0.3)(scores, np.zeros(100, dtype=int), np.zeros(100, dtype=bool))
    np.testing.assert_array_equal(np.flatnonzero(found), np.arange(10, 40))
