"""Unlearning: the isolated are left out, and then their loss rises."""

import numpy as np
import pytest
import torch

from counterdoor.defences import ABL
from counterdoor.detectors import Fixed
from counterdoor.recipe import Ascent, Recipe
from counterdoor.relabeling import plan_samples
from counterdoor.training import sample_losses

ASCENT = Recipe(epochs=3, batch_size=8, learning_rate=5e-3, weight_decay=0.0)


@pytest.fixture(scope="module")
def made(digits_case):
    return ABL(recipe=ASCENT)(digits_case)


@pytest.fixture(scope="module")
def learnt(digits_case):
    """The net before the unlearning."""
    net = digits_case.new_net()
    samples = plan_samples(digits_case.images_nchw, digits_case.plan)
    digits_case.fit(net, samples, digits_case.recipe, "defended")
    return net


def test_the_loss_of_the_isolated_rises(digits_case, learnt, made):
    rows = np.flatnonzero(digits_case.ledger["suspect"])
    images, labels = digits_case.images_nchw[rows], digits_case.ledger["label"].to_numpy()[rows]
    before, after = (
        sample_losses(net, images, labels).mean() for net in (learnt, made.net.build())
    )
    assert after > before + 0.1


def test_it_is_ascent_on_the_isolated_alone(digits_case, learnt, made):
    """Against the same training written as a descent on minus the cross-entropy."""
    isolated = digits_case.samples(digits_case.ledger["suspect"])
    assert isolated.rows.tolist() == np.flatnonzero(digits_case.ledger["suspect"]).tolist()
    recipe = ASCENT.model_copy(update={"loss": Ascent()})
    digits_case.fit(learnt, isolated, recipe, "defended/unlearn")
    for name, tensor in learnt.state_dict().items():
        assert torch.equal(made.net.state[name], tensor), name


def test_no_loss_transform_of_the_recipe_turns_it_round(digits_case, made):
    again = ABL(recipe=ASCENT.model_copy(update={"loss": Ascent()}))(digits_case)
    assert all(torch.equal(again.net.state[name], each) for name, each in made.net.state.items())


def test_above_the_ceiling_nothing_is_unlearnt(digits_case):
    """Where the ascent has no end it overflows; with one it ends."""
    fierce = ASCENT.model_copy(update={"epochs": 30, "learning_rate": 0.5})
    with pytest.raises(ValueError, match=r"'defended/unlearn' diverged"):
        ABL(recipe=fierce)(digits_case)
    made = ABL(recipe=fierce, ceiling=4.6)(digits_case)
    assert all(torch.isfinite(tensor).all() for tensor in made.net.state.values())
    rows = np.flatnonzero(digits_case.ledger["suspect"])
    images, labels = digits_case.images_nchw[rows], digits_case.ledger["label"].to_numpy()[rows]
    assert sample_losses(made.net.build(), images, labels).mean() > 4.6


def test_the_history_is_of_both_trainings(digits_case, made):
    assert len(made.history) == digits_case.recipe.epochs + ASCENT.epochs
    losses = made.history["loss"].tolist()
    assert losses[-1] > losses[-ASCENT.epochs]


def test_it_isolates_its_own_share():
    assert ABL().suspect_rule(Fixed()).ratio == 0.01
    assert ABL(isolation_ratio=0.2).suspect_rule(Fixed()).ratio == 0.2
    with pytest.raises(ValueError, match="isolation_ratio"):
        ABL(isolation_ratio=0.0)
