"""The plan of the defended training against a loop over samples."""

import numpy as np
import pandas as pd
import pytest
import torch

from counterdoor.ledger import DROPPED, new_ledger
from counterdoor.relabeling import ledger_samples, make_plan, plan_samples


def slow_plan(ledger, pseudo_labels, trusted_stamps):
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
    if trusted_stamps and any(stamped_flags):
        rows += [
            (i, int(ledger["label"][i]), True, "trusted_stamp")
            for i in range(len(ledger))
            if ledger["trusted"][i]
        ]
    return rows, stamped_flags


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


@pytest.mark.parametrize("trusted_stamps", [True, False])
@pytest.mark.parametrize("lowest", [0, DROPPED])
def test_plan_row_by_row(generator, ledger, trusted_stamps, lowest):
    pseudo_labels = generator.integers(lowest, 4, len(ledger))
    before, labels_before = ledger.copy(deep=True), pseudo_labels.copy()
    relabeled = make_plan(ledger, pseudo_labels, trusted_stamps=trusted_stamps)
    rows, stamped = slow_plan(ledger, pseudo_labels, trusted_stamps)
    assert list(relabeled.plan) == ["sample_id", "label", "stamped", "role"]
    assert list(relabeled.plan.itertuples(index=False, name=None)) == rows
    assert relabeled.plan.index.tolist() == list(range(len(rows)))
    assert relabeled.ledger["stamped"].tolist() == stamped
    assert relabeled.ledger["pseudo_label"].tolist() == pseudo_labels.tolist()
    pd.testing.assert_frame_equal(ledger, before)
    pd.testing.assert_frame_equal(relabeled.ledger[list(before)], before)
    np.testing.assert_array_equal(pseudo_labels, labels_before)


@pytest.mark.parametrize("trusted_stamps", [True, False])
@pytest.mark.parametrize("anyone_trusted", [True, False])
def test_plan_types_are_those_that_training_needs(ledger, trusted_stamps, anyone_trusted):
    if not anyone_trusted:
        ledger = ledger.assign(trusted=False)
    pseudo_labels = (ledger["label"].to_numpy() + 1) % 4
    relabeled = make_plan(ledger, pseudo_labels, trusted_stamps=trusted_stamps)
    assert relabeled.plan["sample_id"].dtype == np.int64
    assert relabeled.plan["label"].dtype == np.int64
    assert relabeled.plan["stamped"].dtype == bool
    assert relabeled.ledger["stamped"].dtype == bool
    assert torch.from_numpy(relabeled.plan["stamped"].to_numpy().copy()).dtype == torch.bool


def test_samples_nobody_suspects_keep_their_label(ledger):
    pseudo_labels = (ledger["label"].to_numpy() + 1) % 4
    plan = make_plan(ledger, pseudo_labels, trusted_stamps=False).plan.set_index("sample_id")
    kept = ledger.index[~ledger["suspect"]]
    assert plan.loc[kept, "label"].tolist() == ledger.loc[kept, "label"].tolist()
    assert not plan.loc[kept, "stamped"].any()
    assert set(plan.loc[kept, "role"]) == {"kept"}


def test_trusted_stamps_are_without_effect_where_nothing_is_stamped(ledger):
    agree = ledger["label"].to_numpy()
    with_them = make_plan(ledger, agree, trusted_stamps=True).plan
    pd.testing.assert_frame_equal(with_them, make_plan(ledger, agree, trusted_stamps=False).plan)
    assert not with_them["stamped"].any()
    assert set(with_them["role"]) == {"kept", "confirmed"}


def test_dropping_all_suspects_leaves_the_others_unstamped(ledger):
    dropped = np.full(len(ledger), DROPPED)
    relabeled = make_plan(ledger, dropped, trusted_stamps=True)
    assert relabeled.plan["sample_id"].tolist() == ledger.index[~ledger["suspect"]].tolist()
    assert not relabeled.plan["stamped"].any()
    assert DROPPED not in relabeled.plan["label"].tolist()


def test_nothing_left_is_refused():
    ledger = new_ledger(np.array([0, 1]), np.zeros(2)).assign(suspect=True)
    with pytest.raises(ValueError, match="every sample is a suspect and dropped"):
        make_plan(ledger, np.full(2, DROPPED), trusted_stamps=True)


def test_plan_samples_follow_the_plan(ledger, noise):
    images = noise(len(ledger))
    pseudo_labels = (ledger["label"].to_numpy() + 1) % 4
    plan = make_plan(ledger, pseudo_labels, trusted_stamps=True).plan
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
