"""The generators' net and its losses, against loops over images and pixels."""

import numpy as np
import pytest
import torch

from counterdoor.attacks.trigger_generator import (
    TriggerGenerator,
    density_loss,
    diversity_loss,
    with_trigger,
)
from counterdoor.seeding import seeded_torch


def generator(channels=3, outputs=1, sharpness=1.0):
    with seeded_torch(0, "test"):
        return TriggerGenerator(channels, outputs, 4, sharpness).double()


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(12, 12), (13, 15), (14, 27), (32, 32)], ids=str)
def test_maps_have_the_images_height_and_width(channels, size):
    maps = generator(channels, 2)(random(2, channels, *size))
    assert maps.shape == (2, 2, *size)
    assert maps.min() > 0
    assert maps.max() < 1


def test_a_map_depends_on_its_own_image_alone():
    images = random(5, 3, 12, 13)
    net = generator()
    whole = net(images)
    for i in range(5):
        torch.testing.assert_close(net(images[i : i + 1])[0], whole[i])
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_a_sharp_sigmoid_is_that_of_a_multiple():
    images = random(2, 3, 12, 12)
    soft, sharp = generator(), generator(sharpness=10.0)
    torch.testing.assert_close(torch.logit(sharp(images)), 10.0 * torch.logit(soft(images)))


def test_the_trigger_is_seen_through_the_mask():
    images, masks, patterns = random(2, 3, 4, 5), random(2, 1, 4, 5, seed=1), random(2, 3, 4, 5)
    triggered = with_trigger(images, masks, patterns)
    for i, c, y, x in np.ndindex(2, 3, 4, 5):
        m = float(masks[i, 0, y, x])
        expected = float(images[i, c, y, x]) * (1 - m) + float(patterns[i, c, y, x]) * m
        assert float(triggered[i, c, y, x]) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(with_trigger(images, torch.zeros_like(masks), patterns), images)


def test_density_loss_by_hand():
    masks = random(3, 1, 4, 4)
    above = [max(0.0, float(m) - 0.3) for m in masks.ravel()]
    assert float(density_loss(masks, 0.3)) == pytest.approx(sum(above) / len(above))
    assert float(density_loss(masks * 0.3, 0.3)) == 0.0


def test_diversity_loss_by_hand():
    images, maps = random(4, 3, 5, 6), random(4, 2, 5, 6, seed=1)
    ratios = []
    for i in range(4):
        distances = []
        for each in (images, maps):
            squares = [
                (float(a) - float(b)) ** 2
                for a, b in zip(each[i].ravel(), each[i - 1].ravel(), strict=True)
            ]
            distances.append((sum(squares) / len(squares)) ** 0.5)
        ratios.append(distances[0] / distances[1])
    assert float(diversity_loss(images, maps)) == pytest.approx(sum(ratios) / 4, rel=1e-5)


def test_equal_maps_cost_much_and_have_a_finite_slope():
    images = random(3, 1, 4, 4)
    maps = torch.full((3, 1, 4, 4), 0.5, dtype=torch.float64, requires_grad=True)
    loss = diversity_loss(images, maps)
    (slope,) = torch.autograd.grad(loss, maps)
    assert float(loss.detach()) > 1e4
    assert torch.isfinite(slope).all()
