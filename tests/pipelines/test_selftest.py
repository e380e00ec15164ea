"""The stage that plants a canary and says whether it was found."""

import numpy as np
import pandas as pd
import pytest

from counterdoor.ledger import new_ledger
from counterdoor.params import AttackParams, DetectParams
from counterdoor.pipelines.selftest.nodes import plant, tell
from counterdoor.verdict import Judge

INFO = {"class_names": ["a", "b", "c"]}
CANARY = AttackParams({"name": "badnets", "poison_ratio": 0.2})
DETECT = DetectParams(detector={"name": "ac"}, suspect_ratio="apart")


@pytest.fixture
def case(noise):
    labels = np.arange(90) % 3
    trusted = np.zeros(90, bool)
    trusted[:30] = True
    return noise(90), new_ledger(labels, trusted)


def test_the_canary_is_in_a_copy_and_trusted_samples_stay_as_they_are(case):
    images, ledger = case
    before, rows = images.copy(), ledger.copy()
    made = plant(images, ledger, INFO, CANARY, seed=3)
    np.testing.assert_array_equal(images, before)
    pd.testing.assert_frame_equal(ledger, rows)
    planted = made["oracle"]["is_poisoned"].to_numpy()
    changed = (made["images"] != images).any(axis=(1, 2, 3))
    assert changed.sum() == planted.sum() == 12  # a fifth of the untrusted
    assert (changed == planted).all()
    assert not planted[:30].any()
    assert (made["ledger"]["label"].to_numpy()[planted] == 0).all()
    again = plant(images, ledger, INFO, CANARY, seed=3)
    np.testing.assert_array_equal(made["images"], again["images"])


def test_an_attack_that_needs_a_net_trains_one(case):
    images, ledger = case
    canary = AttackParams(
        {
            "name": "trojannn",
            "size": 3,
            "steps": 2,
            "net": {"model": {"name": "digits_cnn", "width": 2}, "recipe": {"epochs": 1}},
        }
    )
    assert plant(images, ledger, INFO, canary, seed=0)["oracle"]["is_poisoned"].any()


def test_a_canary_that_poisons_nothing_is_refused(case):
    with pytest.raises(ValueError, match=r"canary\.name is 'none', which poisons nothing"):
        plant(*case, INFO, AttackParams({"name": "none"}), seed=0)


@pytest.mark.parametrize(
    ("found", "others", "answer"),
    [(12, 0, "found"), (6, 3, "found"), (5, 0, "missed"), (0, 0, "missed"), (0, 9, "missed")],
)
def test_it_is_found_if_half_of_it_is_suspected(case, found, others, answer):
    images, ledger = case
    made = plant(images, ledger, INFO, CANARY, seed=3)
    planted = made["oracle"]["is_poisoned"].to_numpy()
    suspect = np.zeros(90, bool)
    suspect[np.flatnonzero(planted)[:found]] = True
    suspect[np.flatnonzero(~planted)[40 : 40 + others]] = True
    scored = made["ledger"].assign(score=suspect + np.linspace(0, 0.1, 90), suspect=suspect)
    report = tell(scored, made["oracle"], INFO, CANARY, DETECT, Judge())["report"]
    assert report["answer"] == answer
    assert report["planted"] == 12
    assert report["found"] == found / 12
    assert report["precision"] == (found / (found + others) if found + others else None)
    assert f"{found / 12:.1%} were suspected" in report["words"]
    assert "12 samples of a canary (badnets, 13.3% of a copy)" in report["words"]
    assert report["verdict"]["suspects"] == found + others
    assert ("unseen here" in report["words"]) == (answer == "missed")
