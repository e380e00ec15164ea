"""What a defence is given: noise for arithmetic, poisoned digits for learning."""

from dataclasses import replace

import numpy as np
import pytest

from counterdoor.defences import Case
from counterdoor.ledger import DROPPED, new_ledger
from counterdoor.models import DigitsCNN, TrainedNet, build_net
from counterdoor.recipe import Recipe
from counterdoor.relabeling import ledger_samples, make_plan
from counterdoor.stamp import Stamp
from counterdoor.training import fit


def make_case(images, labels, trusted, suspect, pseudo_labels, model, recipe, seed=0):
    """The case of these suspects, after a training of the undefended net."""
    classes = int(labels.max()) + 1
    ledger = new_ledger(labels, trusted).assign(score=suspect * 1.0, suspect=suspect)
    relabeled = make_plan(ledger, pseudo_labels, seed=seed)
    net = build_net(model, images, classes, seed=seed, stream="train/init")
    samples = ledger_samples(images, ledger)
    fitted = fit(net, samples, recipe, seed=seed, stream="undefended")
    return Case(
        images_nchw=images,
        ledger=relabeled.ledger,
        plan=relabeled.plan,
        num_classes=classes,
        model=model,
        recipe=recipe,
        stamp=Stamp(colour="white"),
        undefended=TrainedNet.of(model, images, classes, fitted.state),
        undefended_history=fitted.history,
        seed=seed,
    )


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def case(request, noise):
    """Noise of three classes: 12 trusted, 8 suspects, all of them relabelled."""
    n = 48
    labels, suspect = np.arange(n) % 3, np.arange(n) >= 40
    pseudo_labels = np.where(suspect, (labels + 1) % 3, labels)
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.01)
    model = DigitsCNN(width=2, hidden=8)
    images = noise(n, request.param)
    return make_case(images, labels, np.arange(n) < 12, suspect, pseudo_labels, model, recipe)


@pytest.fixture(scope="session")
def digits_case(digits):
    """Real digits; the suspects have a white corner and the label 0, and were left out."""
    images, labels = np.array(digits.images_nchw), np.array(digits.labels)
    suspect = (np.arange(len(labels)) % 10 == 3) & (labels != 0)
    images[suspect, :, -4:, -4:] = 255
    labels[suspect] = 0
    trusted = ~suspect & (np.arange(len(labels)) % 3 == 0)
    recipe = Recipe(epochs=4, batch_size=25, learning_rate=0.02)
    dropped = np.full(len(labels), DROPPED)
    return make_case(images, labels, trusted, suspect, dropped, DigitsCNN(width=4), recipe)


@pytest.fixture
def with_seed():
    """The same case under another seed."""
    return lambda case, seed: replace(case, seed=seed)
