"""Muon against its definition, and its SGD against PyTorch's."""

import numpy as np
import pytest
import torch

from counterdoor.muon import COEFFICIENTS, STEPS, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (1, 8)])
def test_orthogonalising_is_the_quintic_of_the_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    values = values / (np.sqrt((values**2).sum()) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        values = a * values + b * values**3 + c * values**5
    np.testing.assert_allclose(orthogonalised(matrix).numpy(), left * values @ right, atol=1e-9)


def test_singular_values_come_near_one():
    matrix = torch.randn(16, 144, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.min() > 0.4
    assert values.max() < 1.4


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(6, 3, 3, 3), (8, 6, 3, 3), (6,), (4, 8)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


SGD = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True}


def test_steps_are_those_of_the_definition():
    weights = parameters()
    mine = Muon(weights[:2], weights[2:], learning_rate=0.2, momentum=0.6, sgd_options=SGD)
    theirs = [torch.nn.Parameter(each.detach().clone()) for each in weights]
    sgd = torch.optim.SGD(theirs[2:], **SGD)
    buffers = [torch.zeros_like(each) for each in theirs[:2]]
    for step in range(4):
        for one, other in zip(weights, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            other.grad = one.grad.clone()
        mine.step()
        sgd.step()
        with torch.no_grad():
            for k, weight in enumerate(theirs[:2]):
                buffers[k] = 0.6 * buffers[k] + weight.grad
                direction = weight.grad + 0.6 * buffers[k]
                rows = direction.reshape(len(weight), -1)
                scaled = weight * (len(weight) ** 0.5 / weight.norm())
                weight.copy_(scaled - 0.2 * orthogonalised(rows).reshape(weight.shape))
        for one, other in zip(weights, theirs, strict=True):
            torch.testing.assert_close(one, other)


def test_what_has_no_gradient_stays():
    weights = parameters()
    before = [each.detach().clone() for each in weights]
    mine = Muon(weights[:2], weights[2:], learning_rate=0.2, momentum=0.6, sgd_options=SGD)
    weights[0].grad = torch.ones_like(weights[0])
    mine.step()
    assert not torch.equal(weights[0], before[0])
    assert all(torch.equal(each, old) for each, old in zip(weights[1:], before[1:], strict=True))


def test_a_saved_state_goes_on_as_if_nothing_had_been():
    def steps(optimizer, weights, seeds):
        for seed in seeds:
            for each in weights:
                each.grad = torch.randn(each.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    def new(weights):
        return Muon(weights[:2], weights[2:], learning_rate=0.2, momentum=0.6, sgd_options=SGD)

    whole, cut = parameters(), parameters()
    steps(new(whole), whole, range(6))
    first = new(cut)
    steps(first, cut, range(3))
    second = new(cut)
    second.load_state_dict(first.state_dict())
    steps(second, cut, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(whole, cut, strict=True))
