"""A node's seconds: its own, and those of trainings that another run has made for it."""

import numpy as np
import pytest

from counterdoor.checkpoint import results_shared_in
from counterdoor.engine import Engine
from counterdoor.feed import Samples
from counterdoor.models import DigitsCNN, build_net
from counterdoor.pipelines.timing import timed
from counterdoor.recipe import Recipe
from counterdoor.training import fit


def test_the_timing_is_one_more_output():
    outputs = timed(lambda x: {"double": 2 * x})(3)
    assert outputs["double"] == 6
    assert outputs["timing"]["seconds"] >= 0


def test_a_training_made_elsewhere_counts_as_if_it_were_made_here(noise, tmp_path):
    images = noise(40)
    net = build_net(DigitsCNN(width=4), images, 4, seed=0, stream="test")
    samples = Samples(images, np.arange(40), np.arange(40) % 4)
    recipe, engine = Recipe(epochs=3, batch_size=16), Engine(accelerator="cpu")

    def train():
        fitted = fit(net, samples, recipe, seed=0, stream="train", engine=engine)
        return {"seconds": float(fitted.history["seconds"].sum())}

    with results_shared_in(tmp_path):
        first, second = timed(train)(), timed(train)()
    assert second["seconds"] == pytest.approx(first["seconds"])
    assert second["timing"]["seconds"] >= second["seconds"]
