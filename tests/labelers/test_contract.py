"""What every labeler promises; a new one is tested by joining the union ``Labeler``."""

import numpy as np
import pandas as pd
import pytest
import torch

from counterdoor.component import members
from counterdoor.labelers import Case, Labeler
from counterdoor.ledger import DROPPED, new_ledger
from counterdoor.models import DigitsCNN
from counterdoor.stamp import Stamp

K = 3
MODEL = DigitsCNN(width=2)


@pytest.fixture(params=list(members(Labeler)), ids=lambda kind: kind.__name__)
def labeler(request):
    return request.param()


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def images(request, noise):
    return noise(30, request.param)


@pytest.fixture
def ledger():
    labels = np.arange(30) % K
    trusted = np.arange(30) < 9
    return new_ledger(labels, trusted).assign(score=0.0, suspect=np.arange(30) >= 25)


FEATURES = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
FEATURES.setflags(write=False)
TRUE = np.arange(30) % K
"""The true labels of the 30 samples."""
TRUE.setflags(write=False)


def call(labeler, images, ledger, seed=0, features=FEATURES, true_labels=TRUE):
    labeler.check(ledger, K)
    case = Case(images, ledger, K, MODEL, Stamp(colour="white"), features, true_labels)
    return labeler(case, seed=seed)


def test_labels_are_one_class_a_sample_or_dropped(labeler, images, ledger):
    labels = call(labeler, images, ledger)
    assert isinstance(labels, np.ndarray)
    assert labels.dtype == np.int64
    assert labels.shape == (30,)
    assert set(labels.tolist()) <= {*range(K), DROPPED}


def test_labels_repeat_under_a_seed(labeler, images, ledger):
    np.testing.assert_array_equal(call(labeler, images, ledger), call(labeler, images, ledger))


@pytest.mark.filterwarnings("error")
def test_inputs_and_global_state_are_left_as_they_are(labeler, images, ledger):
    images_before, ledger_before = images.copy(), ledger.copy(deep=True)
    random_before = torch.get_rng_state()
    call(labeler, images, ledger)
    np.testing.assert_array_equal(images, images_before)
    pd.testing.assert_frame_equal(ledger, ledger_before)
    assert torch.equal(torch.get_rng_state(), random_before)


def test_labels_given_to_the_suspects_are_not_believed(labeler, images, ledger):
    """A labeler that copied them would undo nothing."""
    lied = ledger.assign(label=ledger["label"].where(~ledger["suspect"], 0))
    np.testing.assert_array_equal(call(labeler, images, ledger), call(labeler, images, lied))


def test_it_looks_at_features_if_it_says_so_only(labeler, images, ledger):
    if labeler.needs_features:
        with pytest.raises(ValueError, match="needs features, but was given none"):
            call(labeler, images, ledger, features=None)
    else:
        bare = call(labeler, images, ledger, features=None)
        np.testing.assert_array_equal(bare, call(labeler, images, ledger))


def test_it_looks_at_the_truth_only_if_it_says_so(labeler, images, ledger):
    if labeler.needs_truth:
        with pytest.raises(ValueError, match="looks at the true labels, which it is not given"):
            call(labeler, images, ledger, true_labels=None)
    else:
        without = call(labeler, images, ledger, true_labels=None)
        np.testing.assert_array_equal(without, call(labeler, images, ledger))
