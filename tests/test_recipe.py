"""Loss transforms, schedules and the recipe, against their formulas."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from counterdoor.models import DigitsCNN, build_net
from counterdoor.recipe import (
    Ascent,
    Cosine,
    CrossEntropy,
    Flooding,
    LocalGradientAscent,
    Recipe,
    Steps,
    Triangle,
)


@pytest.mark.parametrize("tail", [0, 5, 80])
@pytest.mark.parametrize("epochs", [1, 7, 100])
def test_cosine(tail, epochs):
    for epoch in range(epochs):
        expected = (1 + math.cos(math.pi * epoch / (epochs + tail))) / 2
        assert Cosine(tail_epochs=tail)(epoch, epochs) == pytest.approx(expected, abs=1e-12)


def test_cosine_falls_from_one_towards_zero():
    factors = [Cosine()(epoch, 100) for epoch in range(100)]
    assert factors[0] == 1.0
    assert all(later < earlier for earlier, later in pairwise(factors))
    assert 0 < factors[-1] < 1e-3
    assert Cosine(tail_epochs=80)(99, 100) > 0.4


@pytest.mark.parametrize("milestones", [(), (0,), (2,), (2, 5), (5, 2), (50,)])
@pytest.mark.parametrize("factor", [0.1, 0.5, 2.0])
def test_steps(milestones, factor):
    for epoch in range(8):
        expected = 1.0
        for milestone in milestones:
            if epoch >= milestone:
                expected *= factor
        assert Steps(milestones=milestones, factor=factor)(epoch, 8) == pytest.approx(expected)


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 0.8, 3.0])
def test_flooding_value_and_gradient(level):
    loss = torch.tensor(level, requires_grad=True)
    flooded = Flooding(gamma=0.5)(loss)
    assert flooded.item() == pytest.approx(level if level > 0.5 else 1.0 - level)
    flooded.backward()
    assert loss.grad.item() == (level > 0.5) - (level < 0.5)


@pytest.mark.parametrize("level", [0.0, 0.8, 3.0])
def test_ascent_value_and_gradient(level):
    loss = torch.tensor(level, requires_grad=True)
    turned = Ascent()(loss)
    assert turned.item() == -loss.item()
    turned.backward()
    assert loss.grad.item() == -1.0


def test_ascent_ends_at_its_ceiling():
    losses = torch.tensor([0.5, 2.9, 3.1], requires_grad=True)
    turned = Ascent(ceiling=3.0)(losses)
    assert turned.tolist() == pytest.approx([-0.5, -2.9, -3.0])
    turned.sum().backward()
    assert losses.grad.tolist() == [-1.0, -1.0, 0.0]
    assert Ascent.of_samples


def test_flooding_default_is_the_authors():
    assert Flooding().gamma == 0.5


def test_flooding_climbs_below_its_level_and_descends_above(noise):
    """The gradient on every weight is turned round, not scaled."""
    net = build_net(DigitsCNN(width=4), noise(8), 4, seed=0, stream="x")
    loss = F.cross_entropy(net(torch.tensor(noise(8)) / 255.0), torch.arange(8) % 4)

    def gradients(value):
        parameters = list(net.parameters())
        return torch.cat(
            [g.ravel() for g in torch.autograd.grad(value, parameters, retain_graph=True)]
        )

    plain = gradients(loss)
    assert torch.equal(gradients(Flooding(gamma=loss.item() + 1)(loss)), -plain)
    assert torch.equal(gradients(Flooding(gamma=loss.item() / 2)(loss)), plain)


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 0.8, 3.0])
def test_gradient_ascent_of_a_sample(level):
    loss = torch.tensor(level, requires_grad=True)
    turned = LocalGradientAscent(gamma=0.5)(loss)
    sign = (level > 0.5) - (level < 0.5)
    assert turned.item() == pytest.approx(sign * level)
    turned.backward()
    assert loss.grad.item() == sign


def test_gradient_ascent_of_a_mean_would_be_flooding():
    """So it has to be the samples' own losses that are compared with gamma."""
    slopes = []
    for transform in (LocalGradientAscent(gamma=0.5), Flooding(gamma=0.5)):
        losses = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
        transform(losses.mean()).backward()
        slopes.append(losses.grad.tolist())
    assert slopes[0] == slopes[1]
    assert LocalGradientAscent.of_samples
    assert not Flooding.of_samples


def test_cross_entropy_is_left_alone():
    loss = torch.tensor(1.25)
    assert CrossEntropy()(loss) is loss


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Flooding, {"gamma": 0}),
        (LocalGradientAscent, {"gamma": 0}),
        (Cosine, {"tail_epochs": -1}),
        (Steps, {"factor": 0}),
        (Triangle, {"peak": 0}),
        (Triangle, {"start": 2}),
        (Recipe, {"epochs": 0}),
        (Recipe, {"batch_size": 1}),
        (Recipe, {"learning_rate": 0}),
        (Recipe, {"momentum": 1}),
        (Recipe, {"weight_decay": -1}),
        (Recipe, {"label_smoothing": 1}),
        (Recipe, {"optimizer": "adam"}),
    ],
    ids=str,
)
def test_refused_settings(kind, settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        kind(**({"epochs": 1} | settings if kind is Recipe else settings))


def test_recipe_is_frozen():
    recipe = Recipe(epochs=1)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 2


@pytest.mark.parametrize("epoch", [0.0, 0.3, 0.99])
def test_cosine_and_steps_change_between_epochs_only(epoch):
    for schedule in (Cosine(), Steps(milestones=(3, 4))):
        assert schedule(3 + epoch, 9) == schedule(3, 9)


@pytest.mark.parametrize("epochs", [1, 8])
def test_triangle_climbs_in_a_line_and_falls_in_a_line(epochs):
    schedule = Triangle(start=0.2, peak=0.25, end=0.1)
    for share, expected in [(0, 0.2), (0.125, 0.6), (0.25, 1.0), (0.625, 0.55), (1, 0.1)]:
        assert schedule(share * epochs, epochs) == pytest.approx(expected)
