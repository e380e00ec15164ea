"""The plan of the defended training against a loop over samples."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from counterdoor.ledger import DROPPED, new_ledger
from counterdoor.relabeling import ledger_samples, make_plan, plan_samples


def slow_plan(ledger, pseudo_labels, trusted_stamps=0, stamp_repeats=1):
    """The plan but for the agreed stamps, which are drawn, and the flags of the ledger."""
    rows, stamped_flags = [], []
    for i in range(len(ledger)):
        given, pseudo = int(ledger["label"][i]), int(pseudo_labels[i])
        stamped = False
        if not ledger["suspect"][i]:
            rows.append((i, given, False, "kept"))
        elif pseudo == DROPPED:
            pass
        elif pseudo == given:
            rows.append((i, given, False, "confirmed"))
        else:
            stamped = True
            rows.append((i, pseudo, True, "stamped"))
        stamped_flags.append(stamped)
    if any(stamped_flags):
        once = [row for row in rows if row[3] == "stamped"]
        for _ in range(stamp_repeats - 1):
            rows += once
        for _ in range(trusted_stamps):
            for i in range(len(ledger)):
                if ledger["trusted"][i]:
                    rows.append((i, int(ledger["label"][i]), True, "trusted_stamp"))
    return rows, stamped_flags


def may_agree(ledger, pseudo_labels):
    """Rows by class of which a stamped copy may be made: nothing speaks against them."""
    rows = {}
    for i in range(len(ledger)):
        given = int(ledger["label"][i])
        if not (ledger["suspect"][i] or ledger["trusted"][i]) and pseudo_labels[i] == given:
            rows.setdefault(given, []).append(i)
    return rows


@pytest.fixture(params=range(3))
def generator(request):
    return np.random.default_rng(request.param)


@pytest.fixture
def ledger(generator):
    n = 50
    suspect = generator.random(n) < 0.4
    trusted = ~suspect & (generator.random(n) < 0.3)
    return new_ledger(generator.integers(0, 4, n), trusted).assign(
        score=generator.normal(size=n), suspect=suspect
    )


@pytest.mark.parametrize("stamp_repeats", [1, 2, 4])
@pytest.mark.parametrize("trusted_stamps", [0, 1, 3])
@pytest.mark.parametrize("lowest", [0, DROPPED])
def test_plan_row_by_row(generator, ledger, trusted_stamps, stamp_repeats, lowest):
    pseudo_labels = generator.integers(lowest, 4, len(ledger))
    before, labels_before = ledger.copy(deep=True), pseudo_labels.copy()
    relabeled = make_plan(
        ledger, pseudo_labels, trusted_stamps=trusted_stamps, stamp_repeats=stamp_repeats
    )
    rows, stamped = slow_plan(ledger, pseudo_labels, trusted_stamps, stamp_repeats)
    assert list(relabeled.plan) == ["sample_id", "label", "stamped", "role"]
    assert list(relabeled.plan.itertuples(index=False, name=None)) == rows
    assert relabeled.plan.index.tolist() == list(range(len(rows)))
    assert relabeled.ledger["stamped"].tolist() == stamped
    assert relabeled.ledger["pseudo_label"].tolist() == pseudo_labels.tolist()
    pd.testing.assert_frame_equal(ledger, before)
    pd.testing.assert_frame_equal(relabeled.ledger[list(before)], before)
    np.testing.assert_array_equal(pseudo_labels, labels_before)


@pytest.mark.parametrize("agreed_stamps", [0.0, 0.5])
@pytest.mark.parametrize("trusted_stamps", [0, 2])
@pytest.mark.parametrize("anyone_trusted", [True, False])
def test_plan_types_are_those_that_training_needs(
    ledger, trusted_stamps, agreed_stamps, anyone_trusted
):
    if not anyone_trusted:
        ledger = ledger.assign(trusted=False)
    given, suspect = ledger["label"].to_numpy(), ledger["suspect"].to_numpy()
    pseudo_labels = np.where(suspect, (given + 1) % 4, given)
    relabeled = make_plan(
        ledger, pseudo_labels, trusted_stamps=trusted_stamps, agreed_stamps=agreed_stamps
    )
    assert relabeled.plan["sample_id"].dtype == np.int64
    assert relabeled.plan["label"].dtype == np.int64
    assert relabeled.plan["stamped"].dtype == bool
    assert relabeled.ledger["stamped"].dtype == bool
    assert torch.from_numpy(relabeled.plan["stamped"].to_numpy().copy()).dtype == torch.bool


def test_samples_nobody_suspects_keep_their_label(ledger):
    pseudo_labels = (ledger["label"].to_numpy() + 1) % 4
    plan = make_plan(ledger, pseudo_labels, trusted_stamps=0).plan.set_index("sample_id")
    kept = ledger.index[~ledger["suspect"]]
    assert plan.loc[kept, "label"].tolist() == ledger.loc[kept, "label"].tolist()
    assert not plan.loc[kept, "stamped"].any()
    assert set(plan.loc[kept, "role"]) == {"kept"}


def test_extra_stamps_are_without_effect_where_nothing_is_stamped(ledger):
    agree = ledger["label"].to_numpy()
    with_them = make_plan(ledger, agree, trusted_stamps=2, agreed_stamps=1.0, stamp_repeats=3).plan
    pd.testing.assert_frame_equal(with_them, make_plan(ledger, agree, trusted_stamps=0).plan)
    assert not with_them["stamped"].any()
    assert set(with_them["role"]) == {"kept", "confirmed"}


def test_dropping_all_suspects_leaves_the_others_unstamped(ledger):
    dropped = np.full(len(ledger), DROPPED)
    relabeled = make_plan(ledger, dropped, trusted_stamps=1)
    assert relabeled.plan["sample_id"].tolist() == ledger.index[~ledger["suspect"]].tolist()
    assert not relabeled.plan["stamped"].any()
    assert DROPPED not in relabeled.plan["label"].tolist()


def test_nothing_left_is_refused():
    ledger = new_ledger(np.array([0, 1]), np.zeros(2)).assign(suspect=True)
    with pytest.raises(ValueError, match="every sample is a suspect and dropped"):
        make_plan(ledger, np.full(2, DROPPED), trusted_stamps=1)


def test_plan_samples_follow_the_plan(ledger, noise):
    images = noise(len(ledger))
    pseudo_labels = (ledger["label"].to_numpy() + 1) % 4
    plan = make_plan(ledger, pseudo_labels, trusted_stamps=1).plan
    samples = plan_samples(images, plan)
    assert samples.images_nchw is images
    assert len(samples) == len(plan) > len(ledger)
    assert samples.rows.tolist() == plan["sample_id"].tolist()
    assert samples.labels.tolist() == plan["label"].tolist()
    assert samples.stamped.tolist() == plan["stamped"].tolist()


def test_ledger_samples_are_all_samples_as_they_came(ledger, noise):
    images = noise(len(ledger))
    samples = ledger_samples(images, ledger)
    assert samples.rows.tolist() == list(range(len(ledger)))
    assert samples.labels.tolist() == ledger["label"].tolist()
    assert samples.stamped is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_agreed_stamps_class_by_class(generator, ledger, share, seed):
    """Who is drawn is left to chance; who may be, how many, and what they get is not."""
    pseudo_labels = generator.integers(0, 4, len(ledger))
    plan = make_plan(
        ledger, pseudo_labels, trusted_stamps=2, agreed_stamps=share, stamp_repeats=2, seed=seed
    ).plan
    rest, stamped = slow_plan(ledger, pseudo_labels, trusted_stamps=2, stamp_repeats=2)
    assert any(stamped)
    rows = list(plan.itertuples(index=False, name=None))
    assert rows[: len(rest)] == rest
    agreed = rows[len(rest) :]
    assert plan.index.tolist() == list(range(len(rows)))
    drawn = [row[0] for row in agreed]
    assert drawn == sorted(set(drawn))
    for i, label, flag, role in agreed:
        assert (label, flag, role) == (int(ledger["label"][i]), True, "agreed_stamp")
    allowed = may_agree(ledger, pseudo_labels)
    assert set(drawn) <= {i for rows in allowed.values() for i in rows}
    for label, rows in allowed.items():
        assert sum(ledger["label"][i] == label for i in drawn) == round(share * len(rows))
    if share == 1.0:
        assert drawn == sorted(i for rows in allowed.values() for i in rows)


@pytest.mark.parametrize("agreed_stamps", [0.0, 0.3])
@pytest.mark.parametrize("trusted_stamps", [0, 2])
def test_balanced_stamps_class_by_class(generator, agreed_stamps, trusted_stamps):
    """Every class gets what it lacks in stamped samples, or all that agree if these are fewer."""
    n = 300
    suspect, trusted = generator.random(n) < 0.3, generator.random(n) < 0.1
    labels = np.where(suspect, 0, generator.integers(0, 4, n))
    ledger = new_ledger(labels, trusted & ~suspect).assign(suspect=suspect)
    pseudo_labels = np.where(generator.random(n) < 0.4, labels, generator.integers(1, 4, n))
    options = {"agreed_stamps": agreed_stamps, "trusted_stamps": trusted_stamps, "stamp_repeats": 2}
    usual = make_plan(ledger, pseudo_labels, **options).plan
    plan = make_plan(ledger, pseudo_labels, balanced_stamps=True, **options).plan
    pd.testing.assert_frame_equal(plan[: len(usual)], usual)
    added = plan[len(usual) :]
    assert len(added)
    assert added["stamped"].all()
    assert set(added["role"]) == {"agreed_stamp"}
    assert added["sample_id"].is_unique
    before = set(usual.loc[usual["role"] == "agreed_stamp", "sample_id"])
    free = may_agree(ledger, pseudo_labels)
    stamped = usual.loc[usual["stamped"], "label"].tolist()
    for label in range(4):
        own = added.loc[added["label"] == label, "sample_id"].tolist()
        left = set(free.get(label, [])) - before
        assert set(own) <= left
        share = len(free.get(label, [])) / sum(len(rows) for rows in free.values())
        lacks = share * len(stamped) - stamped.count(label)
        assert len(own) == min(max(0, math.ceil(lacks)), len(left))


def test_balanced_stamps_change_nothing_where_no_class_lacks_any(ledger):
    agree = ledger["label"].to_numpy()
    plan = make_plan(ledger, agree, balanced_stamps=True).plan
    pd.testing.assert_frame_equal(plan, make_plan(ledger, agree).plan)


def test_agreed_stamps_are_drawn_by_the_seed():
    n = 400
    ledger = new_ledger(np.arange(n) % 4, np.zeros(n)).assign(suspect=np.arange(n) < 4)
    given = ledger["label"].to_numpy()
    pseudo_labels = np.where(ledger["suspect"], (given + 1) % 4, given)

    def drawn(seed):
        plan = make_plan(ledger, pseudo_labels, agreed_stamps=0.2, seed=seed).plan
        return plan.loc[plan["role"] == "agreed_stamp", "sample_id"].tolist()

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert len(drawn(0)) == len(drawn(1)) == 4 * round(0.2 * 99)


def test_nobody_agrees_nobody_is_added(ledger):
    pseudo_labels = (ledger["label"].to_numpy() + 1) % 4
    without = make_plan(ledger, pseudo_labels).plan
    pd.testing.assert_frame_equal(make_plan(ledger, pseudo_labels, agreed_stamps=1.0).plan, without)


def test_a_suspect_or_trusted_sample_is_never_among_the_agreed(ledger):
    pseudo_labels = ledger["label"].to_numpy().copy()
    first = int(np.flatnonzero(ledger["suspect"])[0])
    pseudo_labels[first] = (pseudo_labels[first] + 1) % 4  # so that there is a stamp at all
    plan = make_plan(ledger, pseudo_labels, trusted_stamps=1, agreed_stamps=1.0).plan
    agreed = plan.loc[plan["role"] == "agreed_stamp", "sample_id"]
    others = ledger.index[~ledger["suspect"] & ~ledger["trusted"]]
    assert agreed.tolist() == others.tolist()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_calm_stamps_are_the_least_suspicious_of_each_class(generator, ledger, share):
    scored = ledger.assign(score=generator.permutation(len(ledger)).astype(float))
    pseudo_labels = generator.integers(0, 4, len(ledger))
    without = make_plan(scored, pseudo_labels, trusted_stamps=1).plan
    plan = make_plan(scored, pseudo_labels, trusted_stamps=1, calm_stamps=share).plan
    pd.testing.assert_frame_equal(plan.iloc[: len(without)], without)
    expected = []
    for label in range(4):
        free = [
            i
            for i in range(len(scored))
            if scored["label"][i] == label and not scored["suspect"][i] and not scored["trusted"][i]
        ]
        free.sort(key=lambda i: scored["score"][i])
        expected += free[: round(share * len(free))]
    rows = list(plan.iloc[len(without) :].itertuples(index=False, name=None))
    assert rows == [(i, int(scored["label"][i]), True, "calm_stamp") for i in sorted(expected)]


def test_repeats_are_of_stamped_suspects_alone(ledger, noise):
    pseudo_labels = (ledger["label"].to_numpy() + 1) % 4
    plan = make_plan(ledger, pseudo_labels, trusted_stamps=1, stamp_repeats=5).plan
    counts = plan.groupby("role")["sample_id"].value_counts()
    assert set(counts["stamped"]) == {5}
    assert set(counts["kept"]) == {1}
    assert set(counts["trusted_stamp"]) == {1}
    assert len(plan_samples(noise(len(ledger)), plan)) == len(plan)


def test_the_defaults_are_the_papers(generator, ledger):
    pseudo_labels = generator.integers(0, 4, len(ledger))
    rows, _ = slow_plan(ledger, pseudo_labels)
    plan = make_plan(ledger, pseudo_labels).plan
    assert list(plan.itertuples(index=False, name=None)) == rows
    assert set(plan["role"]) == {"kept", "confirmed", "stamped"}
