"""The ensemble against ranks counted in loops; what it refuses, and asks for."""

from typing import Literal

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from counterdoor.detectors import LGA, Detector, Ensemble, Evidence, Oracle, Random
from counterdoor.detectors.ensemble import scaled_ranks
from counterdoor.ledger import new_ledger
from counterdoor.models import DigitsCNN, build_net


class Plain(LGA):
    """Needs the net trained as usual, and refuses two classes."""

    name: Literal["lga"] = "lga"

    @property
    def needs(self):
        return frozenset({"plain"})

    def check(self, ledger, num_classes):
        if num_classes == 2:
            raise ValueError("two are too few")


@pytest.fixture
def evidence(noise):
    images = noise(30)
    net = build_net(DigitsCNN(width=2), images, 4, seed=0, stream="x")
    flags = np.arange(30) % 7 == 0
    trusted = np.zeros(30, dtype=bool)
    return Evidence(images, np.arange(30) % 4, trusted, 4, net, is_poisoned=flags)


def slow_ranks(scores):
    """Of those below, and of half of those that are equal."""
    return [
        (sum(other < score for other in scores) + (sum(other == score for other in scores) - 1) / 2)
        / (len(scores) - 1)
        for score in scores
    ]


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_the_score_is_the_mean_or_maximum_of_the_members_ranks(evidence, combine):
    parts = (LGA(), Random(), Oracle())
    scores = Ensemble(members=parts, combine=combine)(evidence, seed=3)
    ranks = np.array([slow_ranks(part(evidence, seed=3).tolist()) for part in parts])
    expected = ranks.mean(0) if combine == "mean" else ranks.max(0)
    assert scores == pytest.approx(expected, abs=1e-12)
    assert scores.dtype == np.float64


def test_ranks_run_from_0_to_1_and_equal_scores_share_theirs():
    assert scaled_ranks(np.array([5.0, -1e9, 5.0, np.inf])).tolist() == [0.5, 0.0, 0.5, 1.0]
    assert scaled_ranks(np.array([3.0])).tolist() == [0.0]
    with pytest.raises(ValueError, match="1 of 2 scores are not numbers"):
        scaled_ranks(np.array([0.0, np.nan]))


def test_one_member_ranks_as_it_does_alone(evidence):
    alone, ensemble = (part(evidence, seed=0) for part in (LGA(), Ensemble(members=(LGA(),))))
    np.testing.assert_array_equal(np.argsort(ensemble), np.argsort(alone))


def test_it_needs_and_checks_what_its_members_do():
    ledger = new_ledger(np.arange(8) % 2, np.zeros(8))
    # as it is: a member that is in no union cannot come from a configuration
    both = Ensemble.model_construct(members=(LGA(), Plain()))
    assert both.needs == {"warmup", "plain"}
    assert Ensemble(members=(Random(),)).needs == frozenset()
    both.check(ledger, 3)
    with pytest.raises(ValueError, match="two are too few"):
        both.check(ledger, 2)


def test_it_needs_the_truth_if_a_member_does():
    assert Ensemble(members=(LGA(), Oracle())).needs_truth
    assert not Ensemble(members=(LGA(), Random())).needs_truth


def test_members_come_from_a_configuration():
    told = {"name": "ensemble", "members": [{"name": "lga"}, {"name": "random"}]}
    made = TypeAdapter(Detector).validate_python(told)
    assert made == Ensemble(members=(LGA(), Random()))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "at least 1 item"),
        ([{"name": "ensemble", "members": [{"name": "lga"}]}], "a member is itself an ensemble"),
        ([{"name": "nonsense"}], "'lga', 'ln', 'random'"),
    ],
    ids=["none", "an ensemble", "unknown"],
)
def test_refused_members(members, words):
    with pytest.raises(ValidationError, match=words):
        Ensemble(members=members)
