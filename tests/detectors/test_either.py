"""Several detectors with rules of their own against loops; what is refused."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from counterdoor.detectors import (
    LGA,
    Detector,
    Either,
    Evidence,
    Fixed,
    Opinion,
    Oracle,
    Random,
    SuspectedByAny,
)
from counterdoor.ledger import new_ledger
from counterdoor.models import DigitsCNN, build_net

AC = {"detector": {"name": "ac"}, "suspect_ratio": "apart"}
AGPD = {"detector": {"name": "agpd", "weight": "sure"}, "suspect_ratio": "strange"}


@pytest.fixture
def evidence(noise):
    images = noise(30)
    net = build_net(DigitsCNN(width=2), images, 4, seed=0, stream="x")
    flags = np.arange(30) % 7 == 0
    return Evidence(images, np.arange(30) % 4, np.arange(30) < 6, 4, net, is_poisoned=flags)


def opinions(**shares):
    kinds = {"lga": LGA(), "random": Random(), "oracle": Oracle()}
    made = ((kinds[name], Fixed(ratio=share)) for name, share in shares.items())
    return tuple(Opinion(detector=kind, suspect_ratio=rule) for kind, rule in made)


def test_the_score_is_the_highest_rank_and_suspects_lie_above_0(evidence):
    members = opinions(lga=0.1, random=0.3)
    scores = Either(members=members)(evidence, seed=3)
    expected, told = [], set()
    parts = [each.detector(evidence, seed=3) for each in members]
    for part, share in zip(parts, (0.1, 0.3), strict=True):
        untrusted = sorted(range(6, 30), key=lambda row: (-part[row], row))
        told |= {(row, id(part)) for row in untrusted[: int(24 * share)]}
    for row in range(30):
        heard = []
        for part in parts:
            below = sum(other < part[row] for other in part)
            equal = sum(other == part[row] for other in part)
            rank = (1 + below + (equal - 1) / 2) / 30
            heard.append(rank if (row, id(part)) in told else rank - 1)
        expected.append(max(heard))
    assert scores == pytest.approx(expected, abs=1e-12)
    assert (scores > 0).sum() == len({row for row, _ in told})


def test_those_above_0_are_suspected_and_no_other(evidence):
    scores = Either(members=opinions(lga=0.1, random=0.3))(evidence, seed=3)
    suspect = SuspectedByAny(ceiling=0.9)(scores, evidence.labels, evidence.trusted)
    np.testing.assert_array_equal(suspect, scores > 0)
    few = SuspectedByAny(ceiling=0.1)(scores, evidence.labels, evidence.trusted)
    assert few.sum() == SuspectedByAny(ceiling=0.1).at_most(24) == 2
    assert scores[few].min() >= np.sort(scores[suspect])[-2]
    nobody = SuspectedByAny()(scores - 2, evidence.labels, evidence.trusted)
    assert not nobody.any()
    with pytest.raises(ValueError, match="1 of 2 scores are not numbers"):
        SuspectedByAny()(np.array([0.0, np.nan]), np.zeros(2), np.zeros(2, dtype=bool))


def test_a_suspect_with_the_lowest_score_is_one(evidence):
    """A rule may suspect anybody, and the trusted alone may score higher."""
    evidence.is_poisoned[:] = evidence.trusted
    everybody = Opinion(detector=Oracle(), suspect_ratio=Fixed(ratio=0.99))
    scores = Either(members=(everybody,))(evidence, seed=0)
    assert ((scores > 0) & ~evidence.trusted).sum() == 23


def test_it_needs_and_checks_what_its_members_and_their_rules_do():
    ledger = new_ledger(np.arange(8) % 2, np.zeros(8))
    made = TypeAdapter(Detector).validate_python({"name": "either", "members": [AC, AGPD]})
    assert made.needs == {"plain"}
    assert not made.needs_truth
    assert Either(members=opinions(lga=0.1, oracle=0.1)).needs_truth
    with pytest.raises(ValueError, match="at least 2 trusted samples"):
        made.check(ledger, 2)
    Either(members=opinions(random=0.2)).check(ledger, 2)
    with pytest.raises(ValueError, match=r"suspect_ratio 0\.01 of 8 untrusted samples selects"):
        Either(members=opinions(random=0.01)).check(ledger, 2)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "at least 1 item"),
        ([AC | {"suspect_ratio": "strange"}], "reads how much closer.*which detector 'ac' does"),
        ([AGPD | {"suspect_ratio": "either"}], "reads whom several.*choose detector either"),
        ([{"detector": {"name": "nonsense"}, "suspect_ratio": 0.1}], "'lga', 'ln', 'random'"),
        ([AC | {"suspect_ratio": 2.0}], "less than 1"),
        (
            [{"detector": {"name": "either", "members": [AC]}, "suspect_ratio": "either"}],
            "detector is itself 'either'",
        ),
    ],
    ids=["none", "rule not told", "not one of several", "unknown", "share", "nested"],
)
def test_refused_members(members, words):
    with pytest.raises(ValidationError, match=words):
        Either(members=members)
