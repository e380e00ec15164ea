"""The twins: one initialisation, one recipe; the plan alone makes the difference."""

import numpy as np
import pandas as pd
import pytest
import torch

from counterdoor.ledger import new_ledger
from counterdoor.params import USUAL_DEFENCE, DefenceParams, ModelParams, TrainParams
from counterdoor.pipelines.timing import timed
from counterdoor.pipelines.train.nodes import train_base, train_defended, train_undefended
from counterdoor.stamp import Stamp

INFO = {"class_names": ["a", "b", "c"]}
MODEL = ModelParams({"name": "digits_cnn", "width": 2, "hidden": 4})
PARAMS = TrainParams(recipe={"epochs": 1, "batch_size": 8, "learning_rate": 0.01})
STAMP = Stamp(colour="white")


@pytest.fixture
def case(noise):
    ledger = new_ledger(np.arange(30) % 3, np.arange(30) < 6)
    plan = ledger[["sample_id", "label"]].assign(stamped=False, role="kept")
    return noise(30), ledger, plan


def defended(images, plan, stamp=STAMP, seed=0, defence=USUAL_DEFENCE, params=PARAMS):
    """The node on this plan; the ledger and the twin are the plain ones."""
    ledger = new_ledger(np.arange(30) % 3, np.arange(30) < 6)
    ledger = ledger.assign(score=0.0, suspect=False, pseudo_label=-1, stamped=False)
    twin = undefended(images, ledger, seed)
    return train_defended(
        *(images, ledger, plan, INFO, twin["net"], twin["history"]),
        *(params, MODEL, stamp, defence, seed),
    )


def undefended(images, ledger, seed=0):
    return train_undefended(images, ledger, INFO, {}, PARAMS, MODEL, seed)


def test_both_start_from_the_same_weights(case):
    """With a rate too small to move a weight, the trained nets are the initial ones."""
    images, ledger, plan = case
    still = TrainParams(recipe={"epochs": 1, "learning_rate": 1e-30, "weight_decay": 0})
    one = train_undefended(images, ledger, INFO, {}, still, MODEL, 0)["net"]
    other = defended(images, plan.assign(stamped=True), params=still)["net"]
    for name in one.state:
        if "running" not in name and "batches" not in name:
            torch.testing.assert_close(one.state[name], other.state[name], rtol=0, atol=1e-20)


def test_the_plan_decides_whether_the_net_is_deployed_with_the_stamp(case):
    images, _, plan = case
    assert defended(images, plan)["net"].stamp is None
    one = plan.assign(stamped=[True] + [False] * 29)
    assert defended(images, one)["net"].stamp == STAMP


def test_the_twin_never_has_a_stamp(case):
    images, ledger, _ = case
    assert undefended(images, ledger)["net"].stamp is None


def test_labels_and_stamps_of_the_plan_are_learnt(case):
    images, _, plan = case
    base = defended(images, plan)["net"].state
    relabeled = defended(images, plan.assign(label=(plan["label"] + 1) % 3))["net"].state
    stamped = defended(images, plan.assign(stamped=True))["net"].state
    key = next(name for name in base if name.endswith("weight"))
    assert not torch.equal(base[key], relabeled[key])
    assert not torch.equal(base[key], stamped[key])


def test_rows_of_the_plan_may_repeat(case):
    images, _, plan = case
    twice = pd.concat([plan, plan.assign(stamped=True)], ignore_index=True)
    result = defended(images, twice)
    assert len(result["history"]) == 1
    assert result["net"].stamp == STAMP


@pytest.mark.parametrize("seed", [0, 4])
def test_the_same_seed_gives_the_same_bits(case, seed):
    images, ledger, plan = case
    for run in (lambda s: undefended(images, ledger, s), lambda s: defended(images, plan, seed=s)):
        one, again, other = (run(s)["net"].state for s in (seed, seed, seed + 1))
        assert all(torch.equal(one[name], again[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_ledger_of_other_images_is_refused(case):
    images, ledger, _ = case
    with pytest.raises(ValueError, match="they come from different runs"):
        undefended(images[:-1], ledger)


@pytest.mark.parametrize("name", ["none", "fp"])
def test_the_defence_makes_the_net(case, name):
    images, _, plan = case
    recipe = {"recipe": {"epochs": 3}} if name == "fp" else {}
    made = defended(images, plan, defence=DefenceParams({"name": name, **recipe}))
    assert len(made["history"]) == {"none": 1, "fp": 3}[name]
    assert made["net"].stamp is None
    assert made["net"].num_classes == 3


@pytest.mark.parametrize("mirror", [False, True])
def test_both_predict_with_the_mirror_image_if_the_parameter_says_so(case, mirror):
    images, ledger, plan = case
    recipe = {**PARAMS.recipe.model_dump(), "augment": {"flip": True}}
    params = TrainParams(recipe=recipe, mirror=mirror)
    twin = train_undefended(images, ledger, INFO, {}, params, MODEL, 0)["net"]
    assert twin.mirror == defended(images, plan, params=params)["net"].mirror == mirror


def test_mirror_images_have_to_be_known_from_the_training():
    with pytest.raises(ValueError, match=r"mirror .* without recipe\.augment\.flip never shows"):
        TrainParams(recipe=PARAMS.recipe, mirror=True)


def test_timed_adds_the_seconds_and_keeps_name_and_annotations():
    def node(x: int) -> dict:
        """Doc."""
        return {"y": x + 1}

    wrapped = timed(node)
    result = wrapped(2)
    assert result["y"] == 3
    assert set(result) == {"y", "timing"}
    assert set(result["timing"]) == {"seconds"}
    assert result["timing"]["seconds"] >= 0
    assert (wrapped.__name__, wrapped.__doc__) == ("node", "Doc.")
    assert wrapped.__annotations__ == node.__annotations__


@pytest.mark.parametrize(("name", "trained"), [("nab", False), ("pdb", False), ("none", True)])
def test_the_net_that_a_defence_starts_from_is_trained_if_there_is_such_a_defence(
    case, name, trained
):
    images, ledger, _ = case
    defence = DefenceParams({"name": name})
    base = train_base(images, ledger, INFO, {}, PARAMS, MODEL, defence, 0)
    twin = undefended(images, ledger)
    assert len(base["history"]) == trained
    same = all(torch.equal(base["net"].state[key], each) for key, each in twin["net"].state.items())
    assert same == trained
    assert list(base["history"].columns) == list(twin["history"].columns)
