"""Projected gradient ascent against a slow version, by hand, on a linear net."""

import numpy as np
import pytest
import torch
from torch import nn

from counterdoor.attacks.pgd import pgd, pgd_step


def linear(classes=3, pixels=12, seed=0):
    """A linear net on images of 3x2x2, and its weights and biases in numpy."""
    generator = np.random.default_rng(seed)
    weight, bias = generator.normal(size=(classes, pixels)), generator.normal(size=classes)
    layer = nn.Linear(pixels, classes).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return nn.Sequential(nn.Flatten(), layer), weight, bias


def slow_step(perturbed, image, label, weight, bias, epsilon, step):
    """One step for one flat image: the slope of the cross-entropy is W^T (p - onehot)."""
    logits = [sum(w * x for w, x in zip(row, perturbed, strict=True)) for row in weight] + bias
    exponentials = np.exp(logits - max(logits))
    p = exponentials / exponentials.sum()
    p[label] -= 1.0
    moved = []
    for j in range(len(image)):
        slope = sum(p[k] * weight[k][j] for k in range(len(p)))
        x = perturbed[j] + step * np.sign(slope)
        x = min(max(x, image[j] - epsilon), image[j] + epsilon)
        moved.append(min(max(x, 0.0), 1.0))
    return moved


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(("epsilon", "step"), [(0.1, 0.03), (0.02, 0.5), (1.0, 0.2)])
def test_pgd_on_a_linear_net_by_hand(epsilon, step, steps):
    net, weight, bias = linear()
    images = np.random.default_rng(1).random((5, 3, 2, 2))
    labels = [0, 1, 2, 2, 1]
    given, classes = torch.tensor(images), torch.tensor(labels)
    before = given.clone()
    moved = pgd(net, given, classes, epsilon=epsilon, step=step, steps=steps)
    for i, label in enumerate(labels):
        expected = image = images[i].ravel()
        for _ in range(steps):
            expected = slow_step(expected, image, label, weight, bias, epsilon, step)
        np.testing.assert_allclose(moved[i].numpy().ravel(), expected, atol=1e-12)
    assert torch.equal(given, before)
    assert not moved.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_step_goes_on_from_where_the_last_ended():
    net, weight, bias = linear(seed=2)
    images = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    start = (images + 0.05).clamp(0, 1)
    moved = pgd_step(net, start, images, torch.tensor([1]), epsilon=0.06, step=0.02)
    expected = slow_step(
        start.ravel().tolist(), images.ravel().tolist(), 1, weight, bias, 0.06, 0.02
    )
    np.testing.assert_allclose(moved.ravel().numpy(), expected, atol=1e-12)


def test_no_step_leaves_the_images():
    images = torch.rand(2, 3, 2, 2).double()
    assert torch.equal(
        pgd(linear()[0], images, torch.tensor([0, 1]), epsilon=0.1, step=0.1, steps=0), images
    )
