"""The verdict: evidence where a class stands out, none on clean scores, with reasons."""

import numpy as np
import pytest
from pydantic import ValidationError

from counterdoor.detectors import Adaptive
from counterdoor.duplicates import Duplicates
from counterdoor.ledger import new_ledger
from counterdoor.verdict import WORDS, Judge, Verdict, unjudged

NAMES = ["ant", "bee", "cow", "dog"]


def scored(poisoned=0, trusted=0, seed=0, n=4000):
    """Scores of four classes alike; so many of class 1 lie far above all others."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    scores = generator.normal(size=n)
    scores[np.flatnonzero(labels == 1)[:poisoned]] += 20
    known = np.zeros(n, bool)
    known[n - trusted :] = True
    ledger = new_ledger(labels, known).assign(score=scores)
    return ledger.assign(suspect=Adaptive()(scores, labels, known))


@pytest.mark.parametrize("trusted", [0, 200])
def test_a_part_of_a_class_that_stands_out_is_evidence(trusted):
    verdict = Judge()(scored(poisoned=200, trusted=trusted), NAMES)
    assert verdict.answer == "evidence"
    assert verdict.words == "There is evidence of poisoning."
    assert verdict.chance < 1e-6
    assert verdict.suspects == pytest.approx(200, abs=5)
    assert "In class 'bee'" in verdict.reasons[0]
    assert "of its 1000 samples are suspected" in verdict.reasons[0]
    assert verdict.reasons[-1].endswith(
        f"of the {verdict.suspects} suspects carry the label of such a class."
    )


@pytest.mark.parametrize("seed", range(20))
def test_classes_alike_are_no_evidence(seed):
    verdict = Judge()(scored(seed=seed), NAMES)
    assert verdict.answer == "no evidence"
    assert verdict.suspects == 0
    assert "No class stands out" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("chance", "answer"),
    [(0.001, "evidence"), (0.003, "undecided"), (0.0124, "undecided"), (0.02, "no evidence")],
)
def test_the_smallest_chance_times_the_number_of_classes_decides(monkeypatch, chance, answer):
    chances = {0: 0.9, 1: chance, 2: 1.0, 3: 0.5}
    monkeypatch.setattr(Adaptive, "chances", lambda self, *_: chances)
    verdict = Judge()(scored(), NAMES)
    assert verdict.answer == answer
    assert verdict.chance == pytest.approx(4 * chance)
    assert verdict.words == WORDS[verdict.answer]


@pytest.mark.parametrize(
    ("n", "trusted", "answer"),
    [(300, 0, "undecided"), (300, 30, "undecided"), (4000, 0, "no evidence")],
)
def test_the_silence_of_too_few_samples_is_no_answer(n, trusted, answer):
    verdict = Judge()(scored(n=n, trusted=trusted), NAMES)
    assert verdict.answer == answer
    told = "Too few samples in 4 of 4 classes ('ant', 'bee', 'cow', 'dog')"
    assert (told in verdict.reasons[-1]) == (answer == "undecided")


def test_few_samples_may_still_be_evidence():
    verdict = Judge()(scored(poisoned=40, trusted=30, n=300), NAMES)
    assert verdict.answer == "evidence"


def test_a_small_class_among_large_ones_is_told_alone():
    ledger = scored()
    few = ledger[(ledger["label"] != 3) | (ledger.index < 80)].reset_index(drop=True)
    verdict = Judge()(few, NAMES)
    assert verdict.answer == "no evidence"
    assert "Too few samples in 1 of 4 classes ('dog')" in verdict.reasons[-1]


def places(poisoned=200, near=0, n=4000, seed=0):
    """Where samples of four classes lie; so many of class 1 behind a gap, some of them in it."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    score = generator.normal(size=n)
    own = np.flatnonzero(labels == 1)
    score[own] -= 5
    score[own[:poisoned]] += 10
    score[own[:near]] = 0.1
    ledger = new_ledger(labels, np.zeros(n, bool)).assign(score=score)
    return ledger.assign(suspect=(score > 0) & (labels == 1))


@pytest.mark.parametrize(
    ("near", "answer"), [(0, "evidence"), (18, "evidence"), (26, "undecided"), (60, "no evidence")]
)
def test_a_gap_in_a_class_is_evidence_and_the_fuller_it_is_the_less(near, answer):
    verdict = Judge()(places(near=near), NAMES, in_parts=True)
    assert verdict.answer == answer
    assert verdict.chance is None
    assert verdict.valley == pytest.approx(
        near / 200 if answer != "no evidence" else verdict.valley
    )
    assert (verdict.valley > 0.15) == (answer == "no evidence")
    assert verdict.suspects == 200
    assert ("Class 'bee' falls into two parts" in verdict.reasons[0]) == (answer != "no evidence")
    if answer != "no evidence":
        assert verdict.valley == near / 200
        assert f"{near / 200:.1%} as many samples" in verdict.reasons[0]
        assert "200 of its 1000 samples are suspected" in verdict.reasons[0]
    assert Verdict.model_validate(verdict.model_dump(mode="json")) == verdict


def test_classes_too_small_to_show_a_gap_are_undecided():
    verdict = Judge()(places(poisoned=0, n=600), NAMES, in_parts=True)
    assert verdict.answer == "undecided"
    assert "Too few samples in 4 of 4 classes" in verdict.reasons[-1]
    assert Judge()(places(poisoned=0), NAMES, in_parts=True).answer == "no evidence"


def test_where_nobody_is_scored_it_is_undecided():
    verdict = Judge()(scored().assign(score=0.0, suspect=False), NAMES)
    assert verdict.answer == "undecided"
    assert "Nobody was scored" in verdict.reasons[0]


def test_a_chance_is_at_most_1(monkeypatch):
    monkeypatch.setattr(Adaptive, "chances", lambda self, *_: {0: 0.9, 1: 0.7})
    assert Judge()(scored(), NAMES).chance == 1.0


def test_the_verdict_does_not_depend_on_who_is_suspected():
    ledger = scored(poisoned=200)
    other = ledger.assign(suspect=False)
    one, two = (Judge()(each, NAMES) for each in (ledger, other))
    assert (one.answer, one.chance) == (two.answer, two.chance)
    assert two.suspects == 0


def test_a_verdict_comes_back_from_plain_values():
    verdict = Judge()(scored(poisoned=200), NAMES)
    assert Verdict.model_validate(verdict.model_dump(mode="json")) == verdict


def test_limits_are_chances():
    with pytest.raises(ValidationError):
        Judge(evidence_below=0)
    with pytest.raises(ValidationError):
        Judge(none_above=1.5)


def test_pictures_that_are_there_twice_are_reasons_and_do_not_change_the_answer():
    plain = unjudged("Nothing was tested.")
    files = [f"{row}\n.png" for row in range(10)]
    found = Duplicates(((0, 1), (2, 3, 4), (5, 7), (6, 8)), ((9, 9),))
    told = plain.with_duplicates(found, files, np.arange(10) % 2, ["ant", "=b"])
    assert (told.answer, told.conflicts, told.repeats) == (plain.answer, 4, 1)
    assert told.reasons[0] == plain.reasons[0]
    assert told.reasons[1].startswith("4 pictures are there under more than one label")
    assert r"0\x0a.png ('ant') and 1\x0a.png ('=b'); 2" in told.reasons[1]
    assert "6" not in told.reasons[1]
    assert told.reasons[2] == "1 picture is there more than once under the same label."
    assert plain.with_duplicates(Duplicates((), ()), files, [0] * 10, ["ant"]) == plain
