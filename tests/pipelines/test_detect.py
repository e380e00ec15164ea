"""The detection's node: scores for all, suspects among the untrusted."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from counterdoor.detectors import LN, Evidence
from counterdoor.ledger import new_ledger
from counterdoor.models import DigitsCNN, TrainedNet, build_net
from counterdoor.params import DefenceParams, DetectParams
from counterdoor.pipelines.detect.nodes import detect
from counterdoor.training import sample_losses


@pytest.fixture
def case(noise):
    images = noise(50)
    model = DigitsCNN(width=2, hidden=4)
    net = build_net(model, images, 4, seed=0, stream="x")
    ledger = new_ledger(np.arange(50) % 4, np.arange(50) % 5 == 0)
    return images, ledger, TrainedNet.of(model, images, 4, net.state_dict())


def run(case, name="lga", ratio=0.2, seed=0, **settings):
    params = DetectParams(detector={"name": name}, suspect_ratio=ratio)
    images, ledger, net = case
    info = {"class_names": ["a", "b", "c", "d"]}
    untrained = dataclasses.replace(net, state={})
    return detect(images, ledger, info, net, untrained, params, seed, **settings)["ledger"]


def test_scores_are_the_detectors_and_the_highest_untrusted_are_suspects(case):
    images, ledger, net = case
    result = run(case)
    losses = sample_losses(net.build(), images, ledger["label"].to_numpy())
    np.testing.assert_array_equal(result["score"], -losses)
    eligible = [row for row in range(50) if not ledger["trusted"][row]]
    expected = sorted(eligible, key=lambda row: losses[row])[: int(0.2 * len(eligible))]
    assert np.flatnonzero(result["suspect"]).tolist() == sorted(expected)
    assert len(expected) == 8


def test_the_columns_so_far_stay(case):
    _, ledger, _ = case
    before = ledger.copy()
    result = run(case)
    assert list(result) == ["sample_id", "label", "trusted", "score", "suspect"]
    assert result[list(before)].equals(before)
    assert list(ledger) == list(before)
    assert result["suspect"].dtype == bool
    assert result["score"].dtype == np.float64


def test_random_scores_follow_the_seed(case):
    one, again, other = (run(case, "random", seed=seed) for seed in (0, 0, 1))
    assert one.equals(again)
    assert not one["suspect"].equals(other["suspect"])
    assert one["suspect"].sum() == other["suspect"].sum() == 8


def test_nobody_suspected_is_refused(case):
    with pytest.raises(ValueError, match="selects nobody"):
        run(case, ratio=0.01)


def test_a_defence_without_suspects_has_none(case):
    result = run(case, defence=DefenceParams({"name": "fp"}))
    assert list(result) == list(run(case))
    assert (result["score"] == 0.0).all()
    assert not result["suspect"].any()
    assert (result["score"].dtype, result["suspect"].dtype) == (np.float64, bool)


def test_abl_has_a_share_of_its_own(case):
    defence = DefenceParams({"name": "abl", "isolation_ratio": 0.05})
    result = run(case, defence=defence)
    assert result["score"].equals(run(case)["score"])
    assert (
        np.flatnonzero(result["suspect"]).tolist()
        == np.flatnonzero(run(case, ratio=0.05)["suspect"]).tolist()
    )
    assert result["suspect"].sum() == 2


def test_nobody_suspected_is_an_answer_of_the_adaptive_rule(case):
    result = run(case, "random", ratio="adaptive")
    assert result["suspect"].dtype == bool
    assert not result["suspect"].any()
    assert result["score"].equals(run(case, "random")["score"])


def test_the_oracle_is_given_only_in_an_ablation(case):
    with pytest.raises(ValueError, match="'oracle' looks at the poison flags"):
        run(case, "oracle")
    flags = np.arange(50) % 5 == 1
    result = run(case, "oracle", ratio=0.25, oracle=pd.DataFrame({"is_poisoned": flags}))
    np.testing.assert_array_equal(result["suspect"], flags)
    assert result["score"].tolist() == flags.astype(float).tolist()


def test_a_ledger_of_other_images_is_refused(case):
    images, ledger, net = case
    with pytest.raises(ValueError, match="they come from different runs"):
        run((images[:-1], ledger, net))
    with pytest.raises(ValueError, match="no column trusted"):
        run((images, ledger.drop(columns="trusted"), net))


def test_features_reach_the_detector_that_needs_them(case):
    images, ledger, net = case
    info = {"class_names": ["a", "b", "c", "d"]}
    params = DetectParams(detector={"name": "ln"}, suspect_ratio=0.2)
    values = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    artifact = {"features": torch.tensor(values), "earlier": torch.zeros(50, 2)}  # not its business
    untrained = dataclasses.replace(net, state={})
    result = detect(images, ledger, info, untrained, untrained, params, 3, features=artifact)
    labels, trusted = ledger["label"].to_numpy(), ledger["trusted"].to_numpy()
    expected = LN()(Evidence(images, labels, trusted, 4, features=values), seed=3)
    np.testing.assert_array_equal(result["ledger"]["score"], expected)
    with pytest.raises(ValueError, match="features are needed but have not been learnt"):
        detect(images, ledger, info, untrained, untrained, params, 3)
