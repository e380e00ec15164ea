"""What every defence promises; a new one is tested by joining the union ``Defence``."""

import inspect
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pydantic import TypeAdapter

from counterdoor.component import members
from counterdoor.defences import Case, Defence, NoDefence
from counterdoor.detectors import Fixed
from counterdoor.recipe import Recipe
from counterdoor.stamp import Stamp
from counterdoor.training import Fit

QUICK = Recipe(epochs=2, batch_size=16, learning_rate=0.01)


@pytest.fixture(params=list(members(Defence)), ids=lambda kind: kind.component_name())
def defence(request):
    own = {"recipe": QUICK} if "recipe" in request.param.model_fields else {}
    return request.param(**own)


def test_the_net_is_one_for_these_images_and_classes(defence, case):
    defence.check(case.images_nchw, case.ledger, 3, case.model)
    made = defence(case)
    assert made.net.image_shape == case.images_nchw.shape[1:]
    assert made.net.num_classes == 3
    assert made.net.architecture == case.model.model_dump()
    assert made.net.stamp in (None, defence.stamp_in_use(case.stamp))
    with torch.inference_mode():
        logits = made.net.deployable()(torch.tensor(case.images_nchw))
    assert logits.shape == (48, 3)
    assert torch.isfinite(logits).all()
    assert not any(tensor.requires_grad for tensor in made.net.state.values())


def test_the_history_has_the_usual_columns_and_epochs_that_run_on(defence, case):
    history = defence(case).history
    assert set(Fit.of({}, []).history) <= set(history)
    assert history["epoch"].tolist() == list(range(1, len(history) + 1))
    assert len(history)
    assert np.isfinite(history.to_numpy(dtype=float)).all()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(defence, case, with_seed):
    one, again, other = (defence(with_seed(case, seed)).net.state for seed in (5, 5, 6))
    assert all(torch.equal(one[name], again[name]) for name in one)
    if not isinstance(defence, NoDefence):
        assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.filterwarnings("error")
def test_inputs_and_global_state_are_left_as_they_are(defence, case):
    images, ledger, plan = case.images_nchw.copy(), case.ledger.copy(), case.plan.copy()
    state = {name: tensor.clone() for name, tensor in case.undefended.state.items()}
    history, random_before = case.undefended_history.copy(), torch.get_rng_state()
    case.images_nchw.setflags(write=False)
    defence(case)
    np.testing.assert_array_equal(case.images_nchw, images)
    pd.testing.assert_frame_equal(case.ledger, ledger)
    pd.testing.assert_frame_equal(case.plan, plan)
    pd.testing.assert_frame_equal(case.undefended_history, history)
    assert all(torch.equal(case.undefended.state[name], state[name]) for name in state)
    assert torch.equal(torch.get_rng_state(), random_before)


def test_it_comes_back_from_yaml(defence):
    text = yaml.safe_dump(defence.model_dump(mode="json"))
    assert TypeAdapter(Defence).validate_python(yaml.safe_load(text)) == defence


def test_nobody_is_handed_the_oracle(defence):
    assert list(inspect.signature(type(defence).__call__).parameters) == ["self", "case"]
    assert {field.name for field in fields(Case)} == {
        *("images_nchw", "ledger", "plan", "num_classes", "model", "recipe", "stamp"),
        *("undefended", "undefended_history", "seed", "engine"),
    }


def test_trusted_samples_are_demanded_by_those_that_need_them(defence, case):
    without = case.ledger.assign(trusted=False)
    if defence.needs_trusted or getattr(defence, "carriers", None) == "trusted":
        with pytest.raises(ValueError, match=f"defence '{defence.name}' works with trusted"):
            defence.check(case.images_nchw, without, 3, case.model)
    else:
        defence.check(case.images_nchw, without, 3, case.model)


def test_pseudo_labels_are_for_suspects(defence):
    assert defence.needs_suspects or not defence.needs_pseudo_labels
    assert 0 < defence.suspect_rule(Fixed(ratio=0.3)).ratio < 1
    assert isinstance(defence.stamp_in_use(Stamp()), Stamp | None)
