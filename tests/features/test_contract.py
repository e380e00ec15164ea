"""What every way to have features without labels promises; a new one joins ``Features``."""

import numpy as np
import pytest
import torch

from counterdoor.component import members
from counterdoor.engine import Engine
from counterdoor.features import Features, features_of
from counterdoor.models import DigitsCNN
from counterdoor.recipe import Recipe

MODEL = DigitsCNN(width=2)
QUICK = {
    "simclr": {"projection": 4, "recipe": Recipe(epochs=1, batch_size=10)},
    "patches": {"filters": 5, "side": 3},
}


@pytest.fixture(params=list(members(Features)), ids=lambda kind: kind.__name__)
def learner(request):
    return request.param(**QUICK.get(request.param.component_name(), {}))


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def images(request, noise):
    return noise(30, request.param)


def call(learner, images, seed=3):
    learner.check(MODEL, images)
    return learner(images, model=MODEL, seed=seed, engine=Engine(accelerator="cpu"))


def test_features_are_one_row_an_image(learner, images):
    artifact = call(learner, images)
    for each in artifact.values():
        assert each.dtype == np.float32
        assert np.isfinite(each).all()
    features = features_of({name: torch.from_numpy(each) for name, each in artifact.items()}, 30)
    assert features.ndim == 2
    assert len(np.unique(features, axis=0)) == 30


def test_features_repeat_under_a_seed(learner, images):
    once, again, other = (call(learner, images, seed) for seed in (3, 3, 4))
    for name in once:
        np.testing.assert_array_equal(once[name], again[name])
    assert not np.array_equal(once["features"], other["features"])


def test_inputs_and_global_state_are_left_as_they_are(learner, images):
    before, state = images.copy(), torch.get_rng_state()
    call(learner, images)
    np.testing.assert_array_equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_features_of_other_images_are_the_same_features(learner, images):
    if learner.again is None:
        return
    artifact = call(learner, images)
    tensors = {name: torch.from_numpy(each) for name, each in artifact.items()}
    some = learner.again(tensors, images[7:12])
    np.testing.assert_allclose(some, artifact["features"][7:12], atol=1e-5)
