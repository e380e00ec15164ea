"""What every detector promises; a new one is tested by joining the union ``Detector``."""

import numpy as np
import pytest
import torch

from counterdoor.component import members
from counterdoor.detectors import Detector
from counterdoor.models import DigitsCNN, build_net


@pytest.fixture(params=list(members(Detector)), ids=lambda kind: kind.__name__)
def detector(request):
    return request.param()


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def case(request, noise):
    """A net, images and labels, the arrays read-only."""
    images = noise(23, request.param)
    labels = np.arange(23) % 4
    labels.setflags(write=False)
    return build_net(DigitsCNN(width=2), images, 4, seed=0, stream="x"), images, labels


def test_scores_are_one_number_a_sample(detector, case):
    scores = detector(*case, seed=1)
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float64
    assert scores.shape == (23,)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > 1


def test_scores_repeat_under_a_seed(detector, case):
    np.testing.assert_array_equal(detector(*case, seed=1), detector(*case, seed=1))


@pytest.mark.filterwarnings("error")
def test_inputs_are_left_as_they_are(detector, case):
    net, images, labels = case
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images_before, labels_before = images.copy(), labels.copy()
    random_before = torch.get_rng_state()
    detector(net, images, labels, seed=1)
    np.testing.assert_array_equal(images, images_before)
    np.testing.assert_array_equal(labels, labels_before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_before)
