"""SimCLR: its loss against a slow one, its features, and what it refuses."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from counterdoor.component import Component, members
from counterdoor.engine import Engine
from counterdoor.features import Contrast, SimCLR, Views, features_of
from counterdoor.features import simclr as simclr_module
from counterdoor.models import Compact, DigitsCNN, External, Model
from counterdoor.recipe import Recipe

MODEL = DigitsCNN(width=4, hidden=16)
QUICK = Recipe(epochs=1, batch_size=20, learning_rate=0.05)
VIEWS = Views(crop_scale=(0.5, 1.0), flip=False)


def simclr(**changes):
    settings = {"contrast": Contrast(views=VIEWS), "projection": 8, "recipe": QUICK}
    return SimCLR(**settings | changes)


def learnt(images, seed=3, **more):
    return simclr()(images, model=MODEL, seed=seed, **more)["features"]


def slow_nt_xent(first, second, temperature):
    """Equation 1 for every ordered pair, and their mean."""
    rows = [*first.tolist(), *second.tolist()]
    n = len(first)

    def similarity(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    losses = []
    for i in range(2 * n):
        pair = (i + n) % (2 * n)
        others = sum(
            math.exp(similarity(rows[i], rows[k]) / temperature) for k in range(2 * n) if k != i
        )
        losses.append(-math.log(math.exp(similarity(rows[i], rows[pair]) / temperature) / others))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_nt_xent(temperature, n):
    outputs = torch.randn(2 * n, 5, generator=torch.Generator().manual_seed(n))
    logits, pairs = Contrast(temperature=temperature).targets(outputs)
    loss = F.cross_entropy(logits, pairs).item()
    assert loss == pytest.approx(slow_nt_xent(outputs[:n], outputs[n:], temperature), abs=1e-5)


def test_inputs_are_two_different_views_of_every_image(noise):
    images = torch.tensor(noise(6))
    seen = Contrast(views=VIEWS).inputs(images, torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(0)
    first, second = VIEWS(images, draws), VIEWS(images, draws)
    assert torch.equal(seen, torch.cat([first, second]))
    assert not torch.equal(first, second)


def test_features_are_those_before_the_head_and_repeat_under_a_seed(noise):
    images = noise(40)
    before, state = images.copy(), torch.get_rng_state()
    features = learnt(images)
    assert features.shape == (40, 16)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features, learnt(images))
    assert not np.array_equal(features, learnt(images, seed=4))
    np.testing.assert_array_equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_several_processes_are_asked_of_nobody(noise):
    two = learnt(noise(40), engine=Engine(accelerator="cpu", devices=2))
    one = learnt(noise(40), engine=Engine(accelerator="cpu"))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("layers", "units"), [("late", [8, 16]), ("all", [4, 8, 8, 16])])
def test_earlier_layers_against_an_image_at_a_time(layers, units, noise, monkeypatch):
    """The net is the same, whatever is kept of it; each layer's mean over places has length 1."""
    nets, see = [], simclr_module.representations

    def spied(net, *args):
        nets.append(net)
        return see(net, *args)

    monkeypatch.setattr(simclr_module, "representations", spied)
    images = noise(12)
    features = simclr(layers=layers)(images, model=MODEL, seed=3)
    np.testing.assert_array_equal(features["features"], learnt(images))
    modules = nets[0].eval().modules()
    looked_at = [each for each in modules if isinstance(each, nn.Conv2d | nn.Linear)][:-1]
    given = []
    for each in looked_at[-len(units) :]:
        each.register_forward_hook(lambda *io: given.append(io[2][0]))
    for image, row in zip(images, features["earlier"], strict=True):
        given.clear()
        with torch.no_grad():
            nets[0](torch.tensor(image[None]).float() / 255.0)
        means = [[float(one.mean()) for one in layer] for layer in given]
        assert [len(layer) for layer in means] == units
        slow = [value / math.hypot(*layer) for layer in means for value in layer]
        np.testing.assert_allclose(row, slow, atol=1e-5)
    tensors = {name: torch.from_numpy(each) for name, each in features.items()}
    last, every = features_of(tensors, 12), features_of(tensors, 12, earlier=True)
    np.testing.assert_array_equal(last, features["features"])
    lengths = np.linalg.norm(last, axis=1, keepdims=True)
    np.testing.assert_allclose(every, np.hstack([features["earlier"], last / lengths]), atol=1e-6)
    del tensors["earlier"]
    np.testing.assert_array_equal(features_of(tensors, 12, earlier=True), last)


@pytest.mark.slow
def test_training_makes_classes_nearer_to_each_other(digits):
    """Without a label: the centres of half of the digits name the other half better."""

    contrast = Contrast(views=Views(crop_scale=(0.6, 1.0), rotation=15, flip=False))

    def right(epochs, learning_rate):
        recipe = Recipe(epochs=epochs, batch_size=50, learning_rate=learning_rate)
        learn = SimCLR(contrast=contrast, projection=64, recipe=recipe)
        net = DigitsCNN(width=8, hidden=64)
        features = learn(digits.images_nchw, model=net, seed=0)["features"]
        known, labels = features[::2], digits.labels[::2]
        centres = np.stack([known[labels == label].mean(0) for label in range(10)])
        distances = ((features[1::2, None] - centres) ** 2).sum(2)
        return (distances.argmin(1) == digits.labels[1::2]).mean()

    assert right(20, 0.1) > right(1, 1e-9) + 0.05


@pytest.mark.parametrize("kind", list(members(Model)), ids=lambda kind: kind.__name__)
def test_every_model_has_features_before_its_head(kind, noise, their_nets):
    if kind is External:
        pytest.skip("has whatever head it has")
    simclr().check(kind(), noise(2, 3, 32, 32))


def test_a_net_without_a_linear_head_is_refused(noise, their_nets):
    model = External(target=f"{their_nets}.Net", channels_argument="in_channels")
    for refuse in (
        lambda: simclr().check(model, noise(4)),
        lambda: simclr()(noise(4), model=model, seed=0),
    ):
        with pytest.raises(ValueError, match="'external' has no linear layer as its head"):
            refuse()


class Cut(nn.Module):
    """Keeps the first few columns."""

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def forward(self, rows):
        return rows[:, : self.columns]


class Clipped(Component):
    """A net that does not end with its last linear layer."""

    name: Literal["clipped"] = "clipped"

    def __call__(self, channels, num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(144, num_classes), Cut(num_classes))


def test_a_linear_layer_that_is_not_the_head_is_refused(noise):
    with pytest.raises(ValueError, match=r"'clipped' gives \(2, 8\) .*, not \(2, 144\): that is"):
        simclr().check(Clipped(), noise(4))


class Sized(Component):
    """A net that takes images of 12 x 12 grey pixels alone."""

    name: Literal["sized"] = "sized"

    def __call__(self, channels, num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, num_classes))


def test_views_of_another_size_need_a_model_that_takes_them(noise):
    other = Contrast(views=Views(size=16))
    simclr().check(Sized(), noise(4))
    with pytest.raises(ValueError, match="'sized' takes images of 12 x 12, but no views of size"):
        simclr(contrast=other).check(Sized(), noise(4))
    net = Compact(widths=(8, 8, 8))
    learn = simclr(contrast=other, recipe=QUICK)
    learn.check(net, noise(4, 3, 20, 20))
    assert learn(noise(4, 3, 20, 20), model=net, seed=0)["features"].shape == (4, 8)


@pytest.mark.parametrize(
    "recipe",
    [{"augment": {"flip": True}}, {"loss": {"name": "flooding"}}, {"label_smoothing": 0.1}],
    ids=str,
)
def test_what_has_no_meaning_here_is_refused(recipe):
    with pytest.raises(ValidationError, match="which SimCLR does not use"):
        SimCLR(recipe={"epochs": 1} | recipe)


@pytest.mark.parametrize(
    "settings", [{"projection": 1}, {"contrast": {"temperature": 0}}, {"depth": 3}], ids=str
)
def test_refused_settings(settings):
    with pytest.raises(ValidationError):
        SimCLR(**settings)


def test_default_is_dbds():
    recipe = SimCLR().recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (1000, 512, 0.4)
    assert (recipe.momentum, recipe.weight_decay) == (0.9, 1e-4)
    assert SimCLR().contrast.temperature == 0.5


def test_features_of_the_artifact():
    given = {"features": torch.arange(6.0).view(3, 2)}
    np.testing.assert_array_equal(features_of(given, 3), np.arange(6.0).reshape(3, 2))
    with pytest.raises(ValueError, match="4 images, but features of 3: they come from different"):
        features_of(given, 4)
    for nothing in (None, {"features": torch.zeros(0, 0)}):
        with pytest.raises(ValueError, match="have not been learnt: run the stage warmup"):
            features_of(nothing, 3)
