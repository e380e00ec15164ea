"""What every detector promises; a new one is tested by joining the union ``Detector``."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from counterdoor.component import members
from counterdoor.detectors import LGA, Detector, Ensemble, Evidence, Random
from counterdoor.models import DigitsCNN, build_net


@pytest.fixture(params=list(members(Detector)), ids=lambda kind: kind.__name__)
def detector(request):
    members = {"members": (LGA(), Random())} if request.param is Ensemble else {}
    return request.param(**members)


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def case(request, noise):
    """All that a detector may look at, the arrays read-only."""
    images = noise(23, request.param)
    labels, trusted = np.arange(23) % 4, np.arange(23) < 8
    labels.setflags(write=False)
    trusted.setflags(write=False)
    nets = (build_net(DigitsCNN(width=2), images, 4, seed=0, stream=name) for name in "xy")
    features = np.random.default_rng(0).normal(size=(23, 6)).astype(np.float32)
    features.setflags(write=False)
    is_poisoned = np.arange(23) % 5 == 4
    is_poisoned.setflags(write=False)
    return Evidence(images, labels, trusted, 4, *nets, features, is_poisoned)


def test_scores_are_one_number_a_sample(detector, case):
    scores = detector(case, seed=1)
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float64
    assert scores.shape == (23,)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > 1


def test_scores_repeat_under_a_seed(detector, case):
    np.testing.assert_array_equal(detector(case, seed=1), detector(case, seed=1))


@pytest.mark.filterwarnings("error")
def test_inputs_are_left_as_they_are(detector, case):
    before = copy.deepcopy(case)
    random_before = torch.get_rng_state()
    detector(case, seed=1)
    for name in ("images_nchw", "labels", "trusted", "features", "is_poisoned"):
        np.testing.assert_array_equal(getattr(case, name), getattr(before, name))
    for name in ("warmup_net", "plain_net"):
        net, state = getattr(case, name), getattr(before, name).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_before)


PLACES = {"warmup": "warmup_net", "plain": "plain_net", "features": "features"}


def test_it_looks_at_nothing_trained_that_it_does_not_name(detector, case):
    given = {PLACES[need]: getattr(case, PLACES[need]) for need in detector.needs}
    bare = dataclasses.replace(case, **dict.fromkeys(PLACES.values()))
    enough = dataclasses.replace(bare, **given)
    np.testing.assert_array_equal(detector(enough, seed=1), detector(case, seed=1))
    if detector.needs:
        with pytest.raises(ValueError, match=r"needs the .*, but the evidence has none"):
            detector(bare, seed=1)


def test_it_looks_at_the_truth_only_if_it_says_so(detector, case):
    defenders = dataclasses.replace(case, is_poisoned=None)
    if detector.needs_truth:
        with pytest.raises(ValueError, match="looks at the poison flags, which it is not given"):
            detector(defenders, seed=1)
    else:
        np.testing.assert_array_equal(detector(defenders, seed=1), detector(case, seed=1))
