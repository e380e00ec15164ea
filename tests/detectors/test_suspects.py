"""What every rule from scores to suspects promises, and the fixed one."""

import numpy as np
import pytest
from pydantic import ValidationError

from counterdoor.component import members
from counterdoor.detectors import Adaptive, Apart, Fixed, Strange, SuspectRatio, select_suspects


@pytest.fixture(params=list(members(SuspectRatio)), ids=lambda kind: kind.__name__)
def rule(request):
    return request.param()


@pytest.fixture
def case():
    """300 samples, 30 of them trusted, and 60 high scores of one class; read-only."""
    generator = np.random.default_rng(0)
    labels, trusted = np.arange(300) % 3, np.arange(300) < 30
    scores = generator.normal(size=300) - 5 + 10 * ((labels == 1) & (np.arange(300) > 119))
    for array in (scores, labels, trusted):
        array.setflags(write=False)
    return scores, labels, trusted


def test_suspects_are_flags_of_untrusted_samples(rule, case):
    suspect = rule(*case)
    assert suspect.dtype == bool
    assert suspect.shape == (300,)
    assert 0 < suspect.sum() <= rule.at_most(270)
    assert not suspect[case[2]].any()
    np.testing.assert_array_equal(rule(*case), suspect)


def test_scores_that_are_no_numbers_are_counted(rule, case):
    scores, labels, trusted = case
    with pytest.raises(ValueError, match="2 of 300 scores are not numbers"):
        rule(np.where(np.arange(300) < 2, np.nan, scores), labels, trusted)


def test_nobody_to_suspect_is_refused(rule):
    with pytest.raises(ValueError, match="every sample is trusted: there is nobody to suspect"):
        rule.at_most(0)


def test_it_can_be_told_in_a_few_words(rule):
    assert 0 < len(rule.in_words) < 60
    assert "\n" not in rule.in_words


@pytest.mark.parametrize("ratio", [0.05, 0.29])
def test_the_fixed_rule_selects_a_share(case, ratio):
    scores, _, trusted = case
    suspect = Fixed(ratio=ratio)(*case)
    np.testing.assert_array_equal(suspect, select_suspects(scores, ~trusted, ratio))
    assert suspect.sum() == Fixed(ratio=ratio).at_most(270) == int(ratio * 270)
    assert Fixed(ratio=ratio).in_words == str(ratio)


def test_the_fixed_rule_refuses_to_select_nobody(case):
    for refused in (lambda: Fixed(ratio=0.001)(*case), lambda: Fixed(ratio=0.001).at_most(270)):
        with pytest.raises(ValueError, match=r"suspect_ratio 0\.001 of 270 untrusted samples"):
            refused()


@pytest.mark.parametrize(
    "settings",
    [{"floor": -0.1}, {"floor": 1}, {"ceiling": 0}, {"ceiling": 1}, {"level": 0}, {"level": 1}],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Adaptive(**settings)


def test_a_floor_above_the_ceiling_is_refused():
    with pytest.raises(ValidationError, match=r"floor 0\.2 is above ceiling 0\.1; lower it"):
        Adaptive(floor=0.2, ceiling=0.1)


def test_apart_suspects_the_part_behind_a_gap_and_nobody_without_one(case):
    scores, labels, trusted = case
    expected = (scores > 0) & ~trusted
    np.testing.assert_array_equal(Apart()(*case), expected)
    assert expected.sum() == 60
    normal = np.random.default_rng(1).normal(size=300)
    assert not Apart()(normal, labels, trusted).any()
    assert not Apart()(np.where(labels == 1, normal, scores), labels, trusted).any()


def test_apart_keeps_to_its_ceiling_and_takes_the_highest(case):
    scores, _, trusted = case
    suspect = Apart(ceiling=0.1)(*case)
    assert suspect.sum() == 27
    assert scores[suspect].min() > np.sort(scores[~trusted])[-28]


def test_apart_tells_how_empty_it_is_between_the_parts_of_every_class(case):
    scores, labels, _ = case
    found = Apart().valleys(scores, labels)
    assert found[1] == 0.0
    assert found[0] == found[2] == np.inf  # all below 0: no part


def test_strange_suspects_the_scores_above_0_of_strange_classes():
    labels, trusted = np.repeat([0, 1, 2], 100), np.arange(300) % 10 == 0
    scores = np.where(np.arange(300) % 4 == 1, 0.01, -0.01)  # a gap of 0.02
    scores[labels == 1] *= 0.7
    scores[labels == 2] = -1.0
    suspect = Strange()(scores, labels, trusted)
    np.testing.assert_array_equal(suspect, (labels == 0) & (scores > 0) & ~trusted)
    np.testing.assert_array_equal(
        Strange(gap=0.01)(scores, labels, trusted), (scores > 0) & ~trusted
    )
    assert not Strange(gap=0.03)(scores, labels, trusted).any()
    scores[trusted & (labels == 0)] = -9.0  # they do not widen the gap
    assert not Strange(gap=0.03)(scores, labels, trusted).any()


@pytest.mark.parametrize(("above", "strange"), [(0, True), (2, True), (3, False), (10, False)])
def test_a_class_whose_trusted_samples_lie_there_too_is_not_strange(above, strange):
    """40 of 80 untrusted samples lie above 0, and some of 10 trusted ones."""
    labels, trusted = np.zeros(90, dtype=int), np.arange(90) >= 80
    scores = np.where(np.arange(90) < 40, 0.5, -0.5)
    scores[80 : 80 + above] = 0.5
    suspect = Strange(ceiling=0.9)(scores, labels, trusted)
    np.testing.assert_array_equal(suspect, (np.arange(90) < 40) & strange)
    assert Strange(trusted=1)(scores, labels, trusted).any() == (above <= 5)
    assert Strange()(scores, labels, np.zeros(90, dtype=bool)).any()
    labels[:85] = 1  # and a class of trusted samples alone is never strange
    assert not Strange(trusted=1)(scores, labels, trusted)[labels == 0].any()


@pytest.mark.parametrize(("above", "strange"), [(1, False), (4, False), (5, True)])
def test_a_few_outliers_do_not_make_a_class_strange(above, strange):
    labels, trusted = np.zeros(90, dtype=int), np.arange(90) >= 80
    scores = np.where(np.arange(90) < above, 0.5, -0.5)
    assert Strange()(scores, labels, trusted).sum() == above * strange


def test_strange_keeps_to_its_ceiling_and_takes_the_highest(case):
    scores, labels, trusted = case
    most = Strange(ceiling=0.1)(scores, labels, trusted)
    assert most.sum() == Strange(ceiling=0.1).at_most(270) == 27
    assert scores[most].min() >= np.sort(scores[(labels == 1) & ~trusted])[-27]
