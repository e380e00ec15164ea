"""Detectors that look into the plain net, on samples planted in a net that hides nothing."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from counterdoor.detectors import (
    AGPD,
    SPECTRE,
    ActivationClustering,
    Apart,
    Evidence,
    SCAn,
    Strange,
)
from counterdoor.detectors.clustering import remoteness

SIDE = 4
AC = ActivationClustering()


class Bare(nn.Module):
    """Every pixel is a unit; two linear layers, the first of which changes nothing."""

    def __init__(self, classes):
        super().__init__()
        self.body = nn.Linear(SIDE**2, SIDE**2)
        self.head = nn.Linear(SIDE**2, classes)
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(SIDE**2))
            self.body.bias.zero_()
            self.head.bias.zero_()
            self.head.weight.zero_()
            for label in range(classes):
                self.head.weight[label, label] = 4.0
                self.head.weight[label, -1 - label] = 6.0

    def forward(self, images):
        return self.head(self.body(images.flatten(1)).relu() ** 2)


def planted(targets, per_class=200, poisoned=30, classes=3, seed=0, clean_label=False, bright=120):
    """Images whose class is a bright pixel, and in ``targets`` some with a trigger in its place.

    With ``clean_label`` these have both. ``bright`` is by how much, in levels of 0 to 255.

    Returns:
        The evidence, in mixed order, 10 % of the clean samples trusted, and who is planted.
    """
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    images = generator.normal(60, 12, size=(len(labels), SIDE**2))
    bad = np.zeros(len(labels), dtype=bool)
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        images[rows, label] += bright
        if label in targets:
            bad[rows[:poisoned]] = True
            images[rows[:poisoned], label] -= 0 if clean_label else bright
            images[rows[:poisoned], -1 - label] += 110
    trusted = ~bad & (np.arange(len(labels)) % 10 == 9)
    order = generator.permutation(len(labels))
    pixels = np.clip(images, 0, 255).astype(np.uint8).reshape(-1, 1, SIDE, SIDE)
    net = Bare(classes)
    given = Evidence(pixels[order], labels[order], trusted[order], classes, plain_net=net)
    return given, bad[order]


def found(scores, given, bad):
    """Share of the planted samples among as many of the highest untrusted scores."""
    ranked = np.argsort(-np.where(given.trusted, -np.inf, scores), kind="stable")
    return bad[ranked[: bad.sum()]].mean()


@pytest.fixture(
    params=[
        SPECTRE(),
        SPECTRE(layers="last", components=3),
        AGPD(),
        AGPD(weight="dispersion"),
        AGPD(weight="sure"),
        SCAn(),
        SCAn(layers="last"),
        AC,
        ActivationClustering(layers="last"),
    ],
    ids=str,
)
def detector(request):
    return request.param


@pytest.mark.parametrize("targets", [[0], [2], [0, 1, 2]], ids=str)
def test_planted_samples_have_the_highest_scores(detector, targets):
    given, bad = planted(targets)
    assert found(detector(given, seed=0), given, bad) > 0.95


@pytest.mark.parametrize("detector", [SPECTRE(), AGPD(), SCAn(), AC], ids=str)
def test_they_are_found_where_they_are_most_of_their_class(detector):
    given, bad = planted([1], poisoned=120)
    assert found(detector(given, seed=0), given, bad) > 0.95


def test_the_order_of_the_samples_does_not_matter(detector):
    given, _ = planted([0, 1], per_class=60, poisoned=9)
    order = np.random.default_rng(1).permutation(len(given.labels))
    arrays = {name: getattr(given, name)[order] for name in ("images_nchw", "labels", "trusted")}
    other = dataclasses.replace(given, **arrays)
    scores = detector(given, seed=0)
    np.testing.assert_allclose(detector(other, seed=0), scores[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("detector", [SPECTRE(), AGPD(), SCAn(), AC], ids=lambda each: each.name)
def test_too_few_trusted_samples_are_refused_before_any_training(detector):
    given, _ = planted([0])
    trusted = given.trusted & (given.labels != 1)
    trusted[np.flatnonzero(given.labels == 1)[:1]] = True
    ledger = pd.DataFrame({"label": given.labels, "trusted": trusted})
    message = r"at least 2 trusted samples of every class.*class 1 \(1\)"
    with pytest.raises(ValueError, match=message):
        detector.check(ledger, 3)
    with pytest.raises(ValueError, match=message):
        detector(dataclasses.replace(given, trusted=trusted), seed=0)
    detector.check(ledger.assign(trusted=given.trusted), 3)


def test_trusted_samples_that_are_all_alike_leave_numbers(detector):
    given, _ = planted([0], per_class=20, poisoned=4)
    images = given.images_nchw.copy()
    for label in range(3):
        images[given.trusted & (given.labels == label)] = 40 * label
    assert np.isfinite(detector(dataclasses.replace(given, images_nchw=images), seed=0)).all()
    images[:] = 7
    assert np.isfinite(detector(dataclasses.replace(given, images_nchw=images), seed=0)).all()


def test_spectre_as_in_the_paper_needs_no_trusted_sample():
    given, bad = planted([0], poisoned=12)
    nobody = np.zeros(len(bad), dtype=bool)
    ledger = pd.DataFrame({"label": given.labels, "trusted": nobody})
    detector = SPECTRE(reference="robust", layers="last")
    detector.check(ledger, 3)
    alone = dataclasses.replace(given, trusted=nobody)
    assert found(detector(alone, seed=0), alone, bad) > 0.9


@pytest.mark.parametrize("targets", [[0], [0, 1, 2]], ids=str)
def test_clustering_finds_who_is_planted_and_how_many(targets):
    given, bad = planted(targets)
    scores = AC(given, seed=0)
    np.testing.assert_array_equal(Apart()(scores, given.labels, given.trusted), bad)
    nobody = planted([])[0]
    assert not Apart()(AC(nobody, seed=0), nobody.labels, nobody.trusted).any()


@pytest.mark.parametrize("targets", [[0], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_sure_agpd_finds_who_is_planted_and_how_many(targets, seed):
    given, bad = planted(targets, seed=seed)
    detector = AGPD(weight="sure")
    suspect = Strange()(detector(given, seed=0), given.labels, given.trusted)
    assert suspect[bad].mean() > 0.95
    assert bad[suspect].mean() > 0.95
    nobody = planted([], seed=seed)[0]
    assert not Strange()(detector(nobody, seed=0), nobody.labels, nobody.trusted).any()


@pytest.mark.parametrize("poisoned", [30, 150])
def test_clustering_is_told_by_features_who_is_honest(poisoned):
    """Of the planted, few look like their class, and nobody is trusted."""
    given, bad = planted([1], poisoned=poisoned)
    truth = np.where(bad, (given.labels + 1 + np.arange(len(bad)) % 2) % 3, given.labels)
    noise = np.random.default_rng(0).normal(size=(len(bad), 3))
    features = (np.eye(3)[truth] + 0.5 * noise).astype(np.float32)
    nobody = np.zeros(len(bad), dtype=bool)
    alone = dataclasses.replace(given, trusted=nobody, features=features)
    detector = ActivationClustering(honest="features")
    assert detector.needs == {"plain", "features"}
    detector.check(pd.DataFrame({"label": given.labels, "trusted": nobody}), 3)
    np.testing.assert_array_equal(Apart()(detector(alone, seed=0), given.labels, nobody), bad)


@pytest.mark.parametrize("poisoned", [30, 100, 150])
def test_where_all_look_like_their_class_the_remote_part_is_not_honest(poisoned):
    given, bad = planted([1], poisoned=poisoned, clean_label=True)
    noise = np.random.default_rng(0).normal(size=(len(bad), 3))
    features = (np.eye(3)[given.labels] + 0.5 * noise).astype(np.float32)
    nobody = np.zeros(len(bad), dtype=bool)
    alone = dataclasses.replace(given, trusted=nobody, features=features)
    scores = ActivationClustering(honest="features")(alone, seed=0)
    np.testing.assert_array_equal(Apart()(scores, given.labels, nobody), bad)


@pytest.mark.parametrize("poisoned", [25, 30])
def test_a_part_far_from_all_is_not_honest_though_features_show_the_trigger(poisoned):
    """The planted look alike, and more like their class than the rest of it does."""
    given, bad = planted([1], poisoned=poisoned, bright=10)
    noise = np.random.default_rng(0).normal(size=(len(bad), 4))
    features = (np.eye(4)[np.where(bad, 3, given.labels)] + 2.0 * noise).astype(np.float32)
    features[bad] = np.eye(4)[3] + 0.1 * noise[bad]
    nobody = np.zeros(len(bad), dtype=bool)
    alone = dataclasses.replace(given, trusted=nobody, features=features)
    scores = ActivationClustering(honest="features")(alone, seed=0)
    np.testing.assert_array_equal(Apart()(scores, given.labels, nobody), bad)


def test_remoteness_one_by_one():
    generator = np.random.default_rng(0)
    points, labels = generator.normal(size=(40, 3)), np.arange(40) % 4
    for label in range(4):
        expected = []
        for point in points[labels == label]:
            away = sorted(
                np.sqrt(((point - other) ** 2).sum()) for other in points[labels != label]
            )
            expected.append(sum(away[:5]) / 5)
        np.testing.assert_allclose(remoteness(points, labels, label), expected)
    assert remoteness(points[:4], labels[:4], 0).tolist() == [0.0]


@pytest.mark.parametrize("poisoned", [30, 150])
def test_clustering_takes_the_smaller_part_if_nothing_tells(poisoned):
    given, bad = planted([1], poisoned=poisoned)
    scores = ActivationClustering(honest="larger")(given, seed=0)
    suspect = Apart()(scores, given.labels, np.zeros(len(bad), bool))
    np.testing.assert_array_equal(suspect, bad if poisoned == 30 else (given.labels == 1) & ~bad)
