"""Attention distillation: the maps, their loss, and a step by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from counterdoor.defences import NAD
from counterdoor.defences.nad import attention_loss, map_names, outputs_of
from counterdoor.models import DigitsCNN, NormalisedNet, ResNet18, build_net
from counterdoor.recipe import Recipe


def slow_attention_loss(student, teacher, p):
    """Pixel by pixel, in fp64."""

    def attention(features):
        channels, height, width = features.shape
        values = [
            sum(abs(float(features[c, y, x])) ** p for c in range(channels))
            for y in range(height)
            for x in range(width)
        ]
        norm = sum(value**2 for value in values) ** 0.5
        return [value / norm for value in values]

    squares = [
        (one - other) ** 2
        for mine, theirs in zip(student, teacher, strict=True)
        for one, other in zip(attention(mine), attention(theirs), strict=True)
    ]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("channels", [(3, 3), (2, 5)], ids=["same width", "other width"])
def test_the_attention_loss_against_a_slow_version(p, channels):
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(4, c, 3, 2, generator=generator) for c in channels)
    expected = slow_attention_loss(one, other, p)
    assert float(attention_loss(one, other, p)) == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-3


def test_equal_maps_and_multiples_of_them_cost_nothing():
    maps = torch.rand(2, 3, 4, 4)
    assert float(attention_loss(maps, 3.0 * maps, 2.0)) == pytest.approx(0.0, abs=1e-12)


def test_maps_are_those_at_the_end_of_each_resolution(noise):
    net = build_net(DigitsCNN(width=2), noise(2, 1, 28, 28), 3, seed=0, stream="x")
    assert map_names(net, noise(2, 1, 28, 28), 3) == ("body.5", "body.10")  # 14x14, 7x7
    assert map_names(net, noise(2, 1, 28, 28), 1) == ("body.10",)
    residual = build_net(ResNet18(), noise(2, 3, 32, 32), 3, seed=0, stream="x")
    groups = ("body.layer2", "body.layer3", "body.layer4")
    assert map_names(residual, noise(2, 3, 32, 32), 3) == groups


def test_a_net_without_maps_is_refused(noise):
    body = nn.Sequential(nn.Conv2d(1, 2, 12), nn.Flatten(), nn.Linear(2, 3))
    net = NormalisedNet(body, torch.zeros(1), torch.ones(1))
    with pytest.raises(ValueError, match="no map of activations"):
        map_names(net, noise(2), 3)


def test_a_step_is_that_of_cross_entropy_and_weighted_map_losses(digits_case):
    """All trusted samples in one batch: only their order, and so rounding, may differ."""
    trusted = digits_case.samples(digits_case.ledger["trusted"])
    recipe = Recipe(
        epochs=1, batch_size=len(trusted), learning_rate=0.05, momentum=0.0, weight_decay=0.0
    )
    made = NAD(betas=(3.0, 7e3, 2e3), recipe=recipe)(digits_case)

    teacher = digits_case.undefended.build()
    digits_case.fit(teacher, trusted, recipe, "defended/teacher")
    student = digits_case.undefended.build().train()
    images = torch.tensor(digits_case.images_nchw[trusted.rows]) / 255.0
    names = ("body.5", "body.10")
    with torch.no_grad(), outputs_of(teacher.eval(), names) as taught:
        teacher(images)
    with outputs_of(student, names) as own:
        logits = student(images)
    entropy = F.cross_entropy(logits, torch.tensor(trusted.labels))
    maps = [attention_loss(own[name], taught[name], 2.0) for name in names]
    (entropy + 7e3 * maps[0] + 2e3 * maps[1]).backward()
    for name, parameter in student.named_parameters():
        moved = parameter.detach() - 0.05 * parameter.grad
        torch.testing.assert_close(made.net.state[name], moved, rtol=1e-3, atol=1e-5)
    (record,) = made.history.to_dict("records")
    assert record["loss"] == pytest.approx(entropy.item(), rel=1e-4)
    expected = (7e3 * maps[0] + 2e3 * maps[1]).item()
    assert record["attention_loss"] == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-4
    assert record["learning_rate"] == 0.05


def test_the_learning_rates_of_the_history_are_the_recipes(digits_case):
    history = NAD(recipe=Recipe(epochs=3, batch_size=50, learning_rate=0.01))(digits_case).history
    by_hand = [0.005 * (1 + np.cos(np.pi * epoch / 3)) for epoch in range(3)]
    assert history["learning_rate"].tolist() == pytest.approx(by_hand)


def test_divergence_is_told_with_what_to_do(digits_case):
    recipe = Recipe(epochs=3, batch_size=20, learning_rate=0.01)
    wild = NAD(recipe=recipe).model_copy(update={"betas": (1e30,)})  # no configuration can say so
    with pytest.raises(ValueError, match=r"'defended' diverged in epoch .*lower defence\.betas"):
        wild(digits_case)
