"""Each detector against its definition, and the rule from scores to suspects."""

import dataclasses
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from counterdoor.detectors import LGA, LN, Evidence, Random, select_suspects
from counterdoor.detectors.base import suspect_count
from counterdoor.models import DigitsCNN, build_net


@pytest.fixture
def net(noise):
    return build_net(DigitsCNN(width=2), noise(20), 4, seed=0, stream="x")


def evidence(images, labels, net=None):
    return Evidence(images, labels, np.zeros(len(labels), dtype=bool), 5, warmup_net=net)


def test_lga_is_minus_the_cross_entropy(net, noise):
    images, labels = noise(20), np.arange(20) % 4
    scores = LGA()(evidence(images, labels, net), seed=0)
    net.eval()
    for i in range(20):
        with torch.no_grad():
            logits = net(torch.tensor(images[i : i + 1]) / 255.0)[0].tolist()
        highest = max(logits)
        log_sum = highest + math.log(sum(math.exp(value - highest) for value in logits))
        assert scores[i] == pytest.approx(logits[labels[i]] - log_sum, abs=1e-5)


def test_lga_ranks_what_the_net_knows_above_what_it_does_not(net, noise):
    images = noise(20)
    net.eval()
    with torch.no_grad():
        known = net(torch.tensor(images) / 255.0).argmax(1).numpy()
    right = LGA()(evidence(images, known, net), seed=0)
    wrong = LGA()(evidence(images, (known + 1) % 4, net), seed=0)
    assert (right > wrong).all()


def test_lga_does_not_depend_on_the_seed(net, noise):
    labels = np.arange(20) % 4
    first, other = (LGA()(evidence(noise(20), labels, net), seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(first, other)


def test_random_depends_on_the_seed_alone(noise):
    def score(seed, images_seed, shift):
        given = evidence(noise(50, seed=images_seed), np.arange(50) % 4 + shift)
        return Random()(given, seed=seed)

    first = score(1, 0, 0)
    np.testing.assert_array_equal(first, score(1, 5, 1))
    assert not np.array_equal(first, score(2, 0, 0))
    assert first.min() >= 0
    assert first.max() < 1


def slow_select(scores, eligible, ratio):
    rows = [i for i, flag in enumerate(eligible) if flag]
    count = math.floor(Fraction(str(ratio)) * len(rows))
    ranked = sorted(rows, key=lambda i: (-scores[i], i))
    return [i in ranked[:count] for i in range(len(scores))]


@pytest.mark.parametrize("ratio", [0.05, 0.07, 0.1, 0.29, 0.57, 0.5, 0.99])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("trusted", [0, 30])
def test_select_suspects(ratio, ties, trusted):
    generator = np.random.default_rng(int(ratio * 100))
    n = 100 + trusted
    scores = generator.normal(size=n)
    if ties:
        scores = np.round(scores)
    eligible = np.ones(n, dtype=bool)
    eligible[generator.permutation(n)[:trusted]] = False
    before = scores.copy()
    suspect = select_suspects(scores, eligible, ratio)
    assert suspect.dtype == bool
    assert suspect.tolist() == slow_select(scores, eligible, ratio)
    np.testing.assert_array_equal(scores, before)


def test_ties_go_to_the_lower_row():
    suspect = select_suspects(np.array([1.0, 2.0, 2.0, 2.0]), np.ones(4, dtype=bool), 0.5)
    assert suspect.tolist() == [False, True, True, False]


def test_all_scores_equal():
    suspect = select_suspects(np.zeros(1000), np.ones(1000, dtype=bool), 0.05)
    assert np.flatnonzero(suspect).tolist() == list(range(50))


def test_trusted_rows_are_never_suspect():
    scores = np.array([9.0, 8.0, 1.0, 0.0])
    suspect = select_suspects(scores, np.array([False, False, True, True]), 0.5)
    assert suspect.tolist() == [False, False, True, False]


def test_infinite_scores_are_in_order():
    scores = np.array([-np.inf, 0.0, np.inf, 5.0])
    suspect = select_suspects(scores, np.ones(4, dtype=bool), 0.5)
    assert suspect.tolist() == [False, False, True, True]


def test_scores_that_are_no_numbers_are_counted():
    scores = np.array([0.1, np.nan, np.nan, 0.4])
    with pytest.raises(ValueError, match="2 of 4 scores are not numbers"):
        select_suspects(scores, np.ones(4, dtype=bool), 0.5)


@pytest.mark.parametrize("eligible", [3, 7, 100, 300, 4700])
def test_nobody_selected_names_a_ratio_that_selects_somebody(eligible):
    ratio = 0.5 / eligible
    with pytest.raises(ValueError, match="selects nobody") as raised:
        suspect_count(eligible, ratio)
    message = str(raised.value)
    assert f"suspect_ratio {ratio} of {eligible} untrusted samples" in message
    remedy = float(re.search(r"use at least ([\d.e-]+)", message)[1])
    assert suspect_count(eligible, remedy) >= 1


def slow_symmetric(logits, label, cross, reverse):
    highest = max(logits)
    total = sum(math.exp(value - highest) for value in logits)
    shares = [math.exp(value - highest) / total for value in logits]
    forward = -(logits[label] - highest - math.log(total))
    backward = 0.0
    for k, share in enumerate(shares):
        believed = 1.0 if k == label else 1e-4
        backward -= max(share, 1e-7) * math.log(believed)
    return cross * forward + reverse * backward


@pytest.mark.parametrize("weights", [(0.1, 1.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_ln_losses_are_the_symmetric_cross_entropy(weights, spread):
    generator = torch.Generator().manual_seed(2)
    logits = spread * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(40) % 5
    losses = LN(cross_entropy=weights[0], reverse=weights[1]).losses(logits, labels)
    for i in range(40):
        expected = slow_symmetric(logits[i].tolist(), int(labels[i]), *weights)
        assert losses[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_ln_suspects_what_is_mislabelled():
    generator = np.random.default_rng(0)
    true = np.arange(600) % 5
    centres = 3 * generator.normal(size=(5, 8))
    features = (centres[true] + generator.normal(size=(600, 8))).astype(np.float32)
    wrong = generator.random(600) < 0.1
    labels = np.where(wrong, 0, true)
    wrong &= true != 0
    given = Evidence(np.zeros((600, 1, 2, 2), np.uint8), labels, np.zeros(600, bool), 5)
    given = dataclasses.replace(given, features=features)
    for standardise in (False, True):
        scores = LN(standardise=standardise, epochs=80)(given, seed=0)
        found = select_suspects(scores, np.ones(600, dtype=bool), 0.05)
        assert wrong[found].mean() > 0.9


def test_ln_standardised_does_not_see_the_scale():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(50, 4)).astype(np.float32)
    given = evidence(np.zeros((50, 1, 2, 2), np.uint8), np.arange(50) % 5)
    scores = [
        LN(standardise=True, epochs=2)(dataclasses.replace(given, features=each), seed=0)
        for each in (features, 8 * features + 4)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_ln_default_training_is_the_authors():
    detector = LN()
    assert (detector.epochs, detector.batch_size, detector.learning_rate) == (10, 128, 2e-3)
    assert (detector.cross_entropy, detector.reverse) == (0.1, 1.0)


def test_ln_varies_with_the_seed():
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    given = evidence(np.zeros((50, 1, 2, 2), np.uint8), np.arange(50) % 5)
    given = dataclasses.replace(given, features=features)
    first, other = (LN(epochs=1)(given, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first, other)
