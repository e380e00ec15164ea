"""The adaptive rule on made-up scores whose poisoned share is known."""

import math

import numpy as np
import pytest

from counterdoor.detectors import Adaptive

K = 10
SHAPES = {
    "normal": lambda generator, n: generator.normal(size=n),
    "losses": lambda generator, n: -np.exp(2 * generator.normal(size=n)),
    "heavy tails": lambda generator, n: generator.standard_t(2, size=n),
    "two modes": lambda generator, n: generator.normal(size=n) + 4 * (generator.random(n) < 0.3),
}
"""Of clean scores."""
MONOTONE = {
    "scaled": lambda scores: 1e-6 * scores - 40,
    "exponential": lambda scores: np.exp(scores / 10),
    "ranks": lambda scores: np.argsort(np.argsort(scores)).astype(np.float64),
}


def made_up(seed, share=0.0, shape="normal", *, n=4000, trusted=0.05, spread=1.0, all_to_all=False):
    """Scores, labels, trusted and poison flags; classes differ in ease, poisoned samples are apart.

    Args:
        seed: of the randomness.
        share: of the untrusted samples that are poisoned.
        shape: of the clean scores, a key of ``SHAPES``.
        n: number of samples.
        trusted: share of each class.
        spread: how much classes differ in ease.
        all_to_all: whether the poisoned samples come with labels of all classes, not one.
    """
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % K)
    is_trusted = np.zeros(n, dtype=bool)
    for label in range(K):
        rows = np.flatnonzero(labels == label)
        is_trusted[rows[: round(trusted * len(rows))]] = True
    ease = spread * generator.normal(size=K)[labels]
    scores = SHAPES[shape](generator, n)
    scores = scores * np.exp(-ease) if shape == "losses" else scores + ease
    free = np.flatnonzero(~is_trusted)
    poisoned = np.zeros(n, dtype=bool)
    poisoned[generator.permutation(free)[: round(share * len(free))]] = True
    labels = np.where(poisoned & (not all_to_all), 3, labels)
    scores = np.where(poisoned, scores.max() + generator.random(n), scores)
    return scores, labels, is_trusted, poisoned


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.25])
@pytest.mark.parametrize("seed", range(2))
def test_the_share_is_found_to_half_a_point(shape, share, seed):
    scores, labels, trusted, poisoned = made_up(seed, share, shape)
    suspect = Adaptive()(scores, labels, trusted)
    assert suspect.dtype == bool
    assert not (suspect & trusted).any()
    assert suspect.sum() / (~trusted).sum() == pytest.approx(share, abs=0.005)
    assert poisoned[suspect].mean() > 0.95
    assert suspect[poisoned].mean() > 0.95


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.01, 0.03, 0.1])
def test_one_class_is_told_from_the_others_without_trusted_samples(shape, share):
    scores, labels, trusted, poisoned = made_up(5, share, shape, trusted=0.0)
    suspect = Adaptive()(scores, labels, trusted)
    assert suspect.mean() == pytest.approx(share, abs=0.005)
    assert poisoned[suspect].mean() > 0.95


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_of_several_target_classes_the_share_is_found_to_two_points(shape, share):
    """Trusted samples alone tell; without them the answer is nobody."""
    scores, labels, trusted, poisoned = made_up(1, share, shape, all_to_all=True)
    suspect = Adaptive()(scores, labels, trusted)
    assert suspect.sum() / (~trusted).sum() == pytest.approx(share, abs=0.02)
    assert suspect[poisoned].mean() > 0.9
    assert not Adaptive()(scores, labels, np.zeros(len(scores), dtype=bool)).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("trusted", [0.05, 0.0])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_in_clean_data_nobody_is_suspected(shape, trusted, spread):
    for seed in range(6):
        scores, labels, verified, _ = made_up(seed, 0.0, shape, trusted=trusted, spread=spread)
        assert not Adaptive()(scores, labels, verified).any(), seed


def test_an_easy_class_is_no_suspect_where_its_trusted_samples_are_as_easy():
    scores, labels, trusted, _ = made_up(0)
    scores = np.where(labels == 3, scores + 100, scores)
    assert not Adaptive()(scores, labels, trusted).any()
    # without trusted samples nothing tells this from an attack
    assert Adaptive()(scores, labels, np.zeros(len(scores), dtype=bool)).any()


@pytest.mark.parametrize("change", MONOTONE)
@pytest.mark.parametrize("all_to_all", [False, True])
def test_only_the_order_counts(change, all_to_all):
    scores, labels, trusted, _ = made_up(2, 0.06, all_to_all=all_to_all)
    suspect = Adaptive()(scores, labels, trusted)
    assert suspect.any()
    np.testing.assert_array_equal(Adaptive()(MONOTONE[change](scores), labels, trusted), suspect)


@pytest.mark.parametrize("ties", [False, True])
def test_the_order_of_rows_and_the_names_of_classes_do_not_count(ties):
    scores, labels, trusted, _ = made_up(3, 0.06)
    scores = np.round(scores, 1) if ties else scores
    suspect = Adaptive()(scores, labels, trusted)
    assert suspect.any()
    order = np.random.default_rng(0).permutation(len(scores))
    renamed = (7 - labels) % K + 20
    again = Adaptive()(scores[order], renamed[order], trusted[order])
    np.testing.assert_array_equal(again, suspect[order])


def test_inputs_are_left_as_they_are():
    case = made_up(0, 0.1)[:3]
    before = [array.copy() for array in case]
    for array in case:
        array.setflags(write=False)
    Adaptive()(*case)
    for array, copy in zip(case, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_less_than_the_floor_is_nobody():
    scores, labels, trusted, _ = made_up(0, 0.03)
    share = Adaptive()(scores, labels, trusted).sum() / (~trusted).sum()
    assert Adaptive(floor=share - 1e-6)(scores, labels, trusted).any()
    assert not Adaptive(floor=share + 1e-6)(scores, labels, trusted).any()


@pytest.mark.parametrize("ceiling", [0.02, 0.1])
def test_of_more_than_the_ceiling_the_highest_scores_are_suspects(ceiling):
    scores, labels, trusted, _ = made_up(0, 0.2)
    every = Adaptive()(scores, labels, trusted)
    suspect = Adaptive(ceiling=ceiling)(scores, labels, trusted)
    count = Adaptive(ceiling=ceiling).at_most(int((~trusted).sum()))
    assert suspect.sum() == count == int(ceiling * 3800)
    highest = sorted(np.flatnonzero(every), key=lambda row: -scores[row])[:count]
    assert np.flatnonzero(suspect).tolist() == sorted(highest)


def test_a_score_of_two_values_is_enough():
    """As the oracle's is."""
    _, labels, trusted, poisoned = made_up(0, 0.04)
    np.testing.assert_array_equal(Adaptive()(poisoned * 1.0, labels, trusted), poisoned)
    assert not Adaptive()(np.zeros(4000), labels, trusted).any()


def test_few_samples_are_no_error():
    for n in (1, 2, 5, 30):
        scores, labels, trusted = np.arange(n) * 1.0, np.arange(n) % 3, np.arange(n) % 4 == 1
        assert not Adaptive()(scores, labels, trusted).any()
        assert not Adaptive()(scores, labels, np.ones(n, dtype=bool)).any()


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="1 of 3 scores are not numbers"):
        Adaptive()(np.array([0.0, np.nan, 1.0]), np.zeros(3, dtype=int), np.zeros(3, dtype=bool))


# --- the same, slowly ----------------------------------------------------------


def slow_chance(untrusted, trusted):
    n, m, chances = len(untrusted), len(trusted), []
    for r in [2**power for power in range(20) if 2**power <= m]:
        limit = sorted(trusted, reverse=True)[r - 1]
        above = sum(score > limit for score in untrusted)
        top = above + r - 1  # so many are above, of which at most r - 1 are trusted
        ways = sum(math.comb(m, i) * math.comb(n, top - i) for i in range(r) if top - i <= n)
        chances.append(ways / math.comb(n + m, top))
    return min(1.0, min(chances) * len(chances)) if chances else 1.0


def slow_plateau(untrusted, trusted, others, level):
    ranked = sorted(others, reverse=True)
    top, very_top = (max(1, round(share * len(others))) for share in (0.01, 0.0005))
    if top == very_top:
        return False
    above = [[s for s in scores if s > ranked[very_top - 1]] for scores in (untrusted, trusted)]
    if 4 * len(above[1]) * len(untrusted) > len(above[0]) * len(trusted):
        return False
    high, highest = sum(score > ranked[top - 1] for score in untrusted), len(above[0])
    q = (very_top / top) ** 0.2
    terms = [math.comb(high, i) * q**i * (1 - q) ** (high - i) for i in range(highest, high + 1)]
    return sum(terms) < level


def share_from(scores, limit):
    return sum(score >= limit for score in scores) / len(scores) if len(scores) else 0.0


def slow_limit(untrusted, *references):
    best, limit = -1.0, max(untrusted)
    least = 0.5 / (max(len(reference) for reference in references) + 1)
    for each in sorted(untrusted, reverse=True):
        p = share_from(untrusted, each)
        q = max(least, *(share_from(reference, each) for reference in references))
        divergence = p * math.log(p / q) if p > q else -1.0
        divergence += (1 - p) * math.log((1 - p) / (1 - q)) if q < p < 1 else 0.0
        if divergence > best + 1e-12:
            best, limit = divergence, each
    return limit


def slow_suspects(scores, labels, trusted, level=0.01, floor=0.002):
    classes = sorted(set(labels))
    level /= len(classes) + 1
    rows, suspects, apart = range(len(scores)), set(), set()

    def select(wanted, known):
        return [scores[i] for i in rows if labels[i] in wanted and trusted[i] == known]

    def suspect(wanted, limit):
        suspects.update(
            i for i in rows if labels[i] in wanted and not trusted[i] and scores[i] >= limit
        )

    for label in classes:
        free, known = select({label}, False), select({label}, True)
        others = [scores[i] for i in rows if labels[i] != label]
        if slow_chance(free, known) < level or slow_plateau(free, known, others, level):
            suspect({label}, slow_limit(free, known, others))
            apart.add(label)
    rest = set(classes) - apart
    free, known = select(rest, False), select(rest, True)
    if slow_chance(free, known) < level:
        suspect(rest, slow_limit(free, known))
    return sorted(suspects) if len(suspects) >= floor * trusted.count(False) else []


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(("trusted", "all_to_all"), [(0.1, False), (0.1, True), (0.0, False)])
def test_the_rule_is_what_it_is_said_to_be(share, trusted, all_to_all):
    for seed, digits in ((0, 9), (1, 1)):
        scores, labels, verified, _ = made_up(
            seed, share, n=400, trusted=trusted, all_to_all=all_to_all
        )
        scores = np.round(scores, digits)
        expected = slow_suspects(scores.tolist(), labels.tolist(), verified.tolist())
        assert np.flatnonzero(Adaptive()(scores, labels, verified)).tolist() == expected


@pytest.mark.parametrize("trusted", [0.0, 0.05])
def test_what_stands_out_most_is_less_likely_the_more_samples_there_are(trusted):
    worst = []
    for n in (200, 1000, 4000):
        scores, labels, known, _ = made_up(3, n=n, trusted=trusted, spread=0.0)
        best = Adaptive().best_chances(scores, labels, known, 0.2)
        now = Adaptive().chances(scores, labels, known)
        assert all(best[label] <= now[label] for label in now)
        worst.append(max(best.values()))
    assert worst == sorted(worst, reverse=True)
    assert worst[0] > 0.01 > 1e-6 > worst[2]
