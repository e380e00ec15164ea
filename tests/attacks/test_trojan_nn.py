"""TrojanNN: which neuron, what gradient ascent does to the patch, where it is put."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from counterdoor.attacks import AttackerNet, TrojanNN
from counterdoor.attacks.trojan_nn import (
    head_of,
    neuron_activation,
    optimise_patch,
    strongest_neuron,
)
from counterdoor.models import Compact, DigitsCNN, build_net
from counterdoor.recipe import Recipe
from counterdoor.training import predict_classes

OWN = AttackerNet(
    model=DigitsCNN(width=4), recipe=Recipe(epochs=8, batch_size=50, learning_rate=0.02)
)
PLACE = (slice(1, 3), slice(0, 2))


@pytest.fixture(scope="module")
def prepared(digits):
    return TrojanNN(net=OWN).prepare(digits.images_nchw, digits.labels, 10, seed=0)


def test_the_head_is_the_last_linear_layer(noise):
    layers = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2)), nn.ReLU())
    assert head_of(layers) is layers[2][0]
    net = build_net(Compact(widths=(4, 5, 6)), noise(), 3, seed=0, stream="x")
    assert head_of(net).weight.shape == (3, 6)
    with pytest.raises(ValueError, match=r"no linear layer .* choose another attack\.net\.model"):
        head_of(nn.Sequential(nn.Conv2d(1, 1, 1)))


@pytest.mark.parametrize("target", [0, 2])
def test_the_strongest_neuron_by_hand(target):
    weight = np.random.default_rng(3).normal(size=(4, 6))
    best, chosen = -np.inf, None
    for neuron in range(6):
        others = [weight[k][neuron] for k in range(4) if k != target]
        if weight[target][neuron] - sum(others) / 3 > best:
            best, chosen = weight[target][neuron] - sum(others) / 3, neuron
    assert strongest_neuron(torch.tensor(weight), target) == chosen


def test_the_activation_is_an_input_of_the_head():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    images = torch.rand(5, 1, 2, 2)
    for neuron in range(3):
        expected = torch.relu(net[1](images.flatten(1)))[:, neuron]
        assert torch.equal(neuron_activation(net, images, neuron), expected)
    assert not head_of(net)._forward_pre_hooks


@pytest.mark.parametrize("steps", [0, 1, 3, 50])
def test_gradient_ascent_by_hand(steps):
    """The activation sum(w * x ** 2) has the slope 2 w x at a pixel of the patch."""
    generator = np.random.default_rng(0)
    weight, images = generator.normal(size=(2, 4, 4)), generator.random((3, 2, 4, 4))
    start = generator.random((2, 2, 2))
    before = torch.tensor(images)
    patch = optimise_patch(
        lambda x: (torch.tensor(weight) * x**2).sum((1, 2, 3)),
        before,
        torch.tensor(start),
        PLACE,
        step=0.05,
        steps=steps,
    )
    expected = start.copy()
    for c, i, j in np.ndindex(2, 2, 2):
        for _ in range(steps):
            slope = 2 * weight[c, 1 + i, j] * expected[c, i, j]
            expected[c, i, j] = min(max(expected[c, i, j] + 0.05 * np.sign(slope), 0.0), 1.0)
    np.testing.assert_allclose(patch.numpy(), expected, atol=1e-12)
    np.testing.assert_array_equal(before.numpy(), images)


def test_the_patch_excites_its_neuron_on_other_images(prepared, digits, more_digits):
    """More than random patches do, on images that it was not made on."""
    attack = TrojanNN(net=OWN)
    net = OWN.rebuild(OWN.train(digits.images_nchw, digits.labels, 10, seed=0))
    neuron = strongest_neuron(head_of(net).weight.detach(), 0)

    def excited(patch):
        images = torch.from_numpy(attack(more_digits.images_nchw, {"patch": patch}))
        with torch.no_grad():
            return float(neuron_activation(net, images.float() / 255.0, neuron).mean())

    generator = torch.Generator().manual_seed(0)
    random = [
        excited(torch.randint(0, 256, prepared["patch"].shape, generator=generator).to(torch.uint8))
        for _ in range(10)
    ]
    assert excited(prepared["patch"]) > 1.3 * max(random)
    others = more_digits.labels != 0
    plain, triggered = (
        (predict_classes(net, images[others]) == 0).mean()
        for images in (more_digits.images_nchw, attack(more_digits.images_nchw, prepared))
    )
    assert triggered > plain


def test_the_patch_is_for_one_target_and_one_seed(prepared, digits):
    assert prepared["patch"].dtype == torch.uint8
    assert prepared["patch"].shape == (1, 8, 8)
    assert set(prepared) == {"patch"}
    short = OWN.model_copy(update={"recipe": Recipe(epochs=1, learning_rate=0.02)})
    patches = [
        TrojanNN(net=short, steps=5, labels={"name": "all_to_one", "target_class": target}).prepare(
            digits.images_nchw[:100], digits.labels[:100], 10, seed=seed
        )["patch"]
        for target, seed in ((0, 0), (1, 0), (0, 1))
    ]
    assert not torch.equal(patches[0], patches[1])
    assert not torch.equal(patches[0], patches[2])


def test_the_patch_lies_where_it_is_said_to(noise):
    images = noise(2, 3, 12, 14)
    patch = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    triggered = TrojanNN(size=3, bottom=2, right=5)(images, {"patch": patch})
    for i, c, y, x in np.ndindex(*images.shape):
        row, column = y - 7, x - 6
        inside = 0 <= row < 3 and 0 <= column < 3
        assert triggered[i, c, y, x] == (patch[c, row, column] if inside else images[i, c, y, x])


@pytest.mark.parametrize("shape", [(1, 8, 12), (3, 12, 8)], ids=str)
def test_a_patch_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"side 8, 1 from the bottom .* reduce attack\.size"):
        TrojanNN().check(shape)
    TrojanNN().check((1, 9, 9))


def test_without_preparation_the_patch_is_missed(noise):
    with pytest.raises(ValueError, match="needs 'patch' of what its prepare"):
        TrojanNN()(noise(2))


@pytest.mark.parametrize("settings", [{"size": 0}, {"bottom": -1}, {"step": 0}, {"images": 0}])
def test_refused_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        TrojanNN(**settings)
