"""The relabelling's node: the labeler's word becomes the plan."""

import numpy as np
import pandas as pd
import pytest
import torch

from counterdoor.features import Patches, SimCLR
from counterdoor.labelers import NC, Case
from counterdoor.ledger import DROPPED, new_ledger
from counterdoor.params import DefenceParams, FeaturesParams, ModelParams, RelabelParams
from counterdoor.pipelines.relabel.nodes import relabel
from counterdoor.relabeling import make_plan
from counterdoor.stamp import Stamp

INFO = {"class_names": ["a", "b", "c"]}
MODEL = ModelParams({"name": "digits_cnn", "width": 2, "hidden": 4})
RECIPE = {"epochs": 2, "batch_size": 8}


@pytest.fixture
def case(noise):
    labels = np.arange(48) % 3
    ledger = new_ledger(labels, np.arange(48) < 9)
    suspect = (np.arange(48) % 4 == 0) & ~ledger["trusted"].to_numpy()
    return noise(48), ledger.assign(score=0.0, suspect=suspect)


def run(case, seed=0, stamp=None, **settings):
    settings = {"labeler": {"name": "vd", "recipe": RECIPE}, "trusted_stamps": 1} | settings
    params = RelabelParams(**settings)
    stamp = stamp or Stamp(colour="white")
    return params, relabel(*case, INFO, params, MODEL, stamp, seed)


@pytest.mark.parametrize(
    "settings",
    [
        {"trusted_stamps": 0},
        {"trusted_stamps": 2},
        {"agreed_stamps": 0.5},
        {"stamp_repeats": 3, "agreed_stamps": 1.0},
        {"balanced_stamps": True},
    ],
)
def test_the_plan_is_made_from_the_labelers_word_with_these_settings(case, settings):
    images, ledger = case
    params, result = run(case, seed=3, **settings)
    stamp = Stamp(colour="white")
    pseudo = params.labeler(Case(images, ledger, 3, MODEL.root, stamp), seed=3)
    expected = make_plan(ledger, pseudo, seed=3, **({"trusted_stamps": 1} | settings))
    assert result["ledger"].equals(expected.ledger)
    assert result["plan"].equals(expected.plan)
    assert result["plan"]["stamped"].any()


def test_the_true_labels_are_given_only_in_an_ablation(case):
    settings = {"labeler": {"name": "oracle"}, "trusted_stamps": 0}
    with pytest.raises(ValueError, match="'oracle' looks at the true labels"):
        run(case, **settings)
    true = np.roll(np.arange(48) % 3, 1)
    params = RelabelParams(**settings)
    oracle = pd.DataFrame({"true_label": true})
    result = relabel(*case, INFO, params, MODEL, Stamp(colour="white"), 0, oracle=oracle)
    assert result["ledger"]["pseudo_label"].tolist() == true.tolist()
    assert result["ledger"]["stamped"].equals(case[1]["suspect"])


def test_nobody_suspected_is_the_plain_training(case):
    images, ledger = case
    calm = ledger.assign(suspect=False)
    _, result = run((images, calm), agreed_stamps=0.5, calm_stamps=0.5, stamp_repeats=2)
    assert not result["ledger"]["stamped"].any()
    plan = result["plan"]
    assert plan[["sample_id", "label"]].equals(ledger[["sample_id", "label"]])
    assert not plan["stamped"].any()
    assert set(plan["role"]) == {"kept"}


def test_dropped_suspects_are_left_out(case):
    _, ledger = case
    _, result = run(case, labeler={"name": "drop"})
    assert (result["ledger"]["pseudo_label"] == DROPPED).all()
    assert not result["ledger"]["stamped"].any()
    assert result["plan"]["sample_id"].tolist() == ledger.index[~ledger["suspect"]].tolist()


@pytest.mark.parametrize("suspects", [True, False])
def test_a_defence_without_pseudo_labels_leaves_suspects_out(case, suspects):
    images, ledger = case
    ledger = ledger.assign(suspect=ledger["suspect"] & suspects, trusted=False)
    params = RelabelParams(labeler={"name": "vd", "recipe": RECIPE}, trusted_stamps=1)
    defence = DefenceParams({"name": "abl"})
    result = relabel(images, ledger, INFO, params, MODEL, Stamp(), 0, defence=defence)
    assert (result["ledger"]["pseudo_label"] == DROPPED).all()
    left = ledger[~ledger["suspect"]]
    assert result["plan"]["sample_id"].tolist() == left["sample_id"].tolist()
    assert result["plan"]["label"].tolist() == left["label"].tolist()
    assert not result["plan"]["stamped"].any()


def test_a_labeler_that_cannot_work_is_refused(case):
    images, ledger = case
    with pytest.raises(ValueError, match="needs trusted samples of every class"):
        run((images, ledger.assign(trusted=False)))


def test_a_ledger_without_suspects_column_is_refused(case):
    images, ledger = case
    with pytest.raises(ValueError, match="no column suspect"):
        run((images, ledger.drop(columns="suspect")))


@pytest.mark.parametrize(
    "settings",
    [
        {"trusted_stamps": -1},
        {"agreed_stamps": 1.5},
        {"agreed_stamps": -0.1},
        {"stamp_repeats": 0},
        {"unknown": 1},
    ],
)
def test_refused_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RelabelParams(**{"labeler": {"name": "drop"}, "trusted_stamps": 0} | settings)


@pytest.mark.parametrize("given", [False, True])
def test_the_number_of_trusted_stamps_is_no_yes_or_no(given):
    with pytest.raises(ValueError, match="trusted_stamps"):
        RelabelParams(labeler={"name": "drop"}, trusted_stamps=given)


def test_features_reach_the_labeler_that_needs_them(case):
    images, ledger = case
    params = RelabelParams(labeler={"name": "nc"}, trusted_stamps=0)
    values = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
    given = (images, ledger, INFO, params, MODEL, Stamp(colour="white"), 0)
    result = relabel(*given, features={"features": torch.tensor(values)})
    expected = NC()(Case(images, ledger, 3, MODEL.root, Stamp(), values), seed=0)
    assert result["ledger"]["pseudo_label"].tolist() == expected.tolist()
    artifact = {"features": torch.tensor(values), "earlier": torch.tensor(values[::-1, :2].copy())}
    every = np.hstack([values[::-1, :2], values / np.linalg.norm(values, axis=1, keepdims=True)])
    expected = NC()(Case(images, ledger, 3, MODEL.root, Stamp(), every), seed=0)
    result = relabel(*given, features=artifact)
    assert result["ledger"]["pseudo_label"].tolist() == expected.tolist()
    with pytest.raises(ValueError, match="features are needed but have not been learnt"):
        relabel(*given)


def test_features_of_moved_images_reach_the_labeler(case):
    images, ledger = case
    learner = Patches(filters=3, side=3)
    made = learner(images, model=MODEL.root, seed=0)
    artifact = {name: torch.from_numpy(each) for name, each in made.items()}
    params = RelabelParams(labeler={"name": "nc", "align_images": True}, trusted_stamps=0)
    given = (images, ledger, INFO, params, MODEL, Stamp(colour="white"), 0)
    result = relabel(*given, features=artifact, learner=FeaturesParams(learner))
    own = Case(
        *(images, ledger, 3, MODEL.root, Stamp(), made["features"]),
        features_again=lambda others: learner.again(artifact, others),
    )
    expected = params.labeler(own, seed=0)
    assert result["ledger"]["pseudo_label"].tolist() == expected.tolist()
    for how in ({}, {"learner": FeaturesParams(SimCLR())}):
        with pytest.raises(ValueError, match="choose features_name=patches"):
            relabel(*given, features=artifact, **how)
