"""The attacker's own net: trained, taken apart into tensors, and rebuilt."""

import numpy as np
import pytest
import torch
from torch import nn

from counterdoor.attacks import AttackerNet
from counterdoor.attacks.attacker_net import needed, robust_step
from counterdoor.attacks.pgd import pgd
from counterdoor.checkpoint import under
from counterdoor.feed import Samples
from counterdoor.models import Compact, DigitsCNN, NormalisedNet, build_net
from counterdoor.recipe import Recipe
from counterdoor.training import fit, predict_classes, predict_logits

RECIPE = Recipe(epochs=2, batch_size=50, learning_rate=0.02)
NETS = [
    AttackerNet(model=DigitsCNN(width=2, hidden=8), recipe=RECIPE),
    AttackerNet(model=Compact(widths=(4, 4, 4)), recipe=RECIPE),
]


@pytest.mark.parametrize("own", NETS, ids=lambda own: own.model.name)
def test_the_rebuilt_net_is_the_trained_one(own, digits):
    images, labels = digits.images_nchw[:150], digits.labels[:150]
    prepared = own.train(images, labels, 10, seed=3)
    net = build_net(own.model, images, 10, seed=3, stream="attack/init")
    samples = Samples(images, np.arange(150), labels)
    net.load_state_dict(fit(net, samples, RECIPE, seed=3, stream="attack").state)
    rebuilt = own.rebuild(prepared | {"patch": torch.zeros(1)})
    assert not rebuilt.training
    assert torch.equal(predict_logits(rebuilt, images), predict_logits(net, images))


def test_it_learns_real_digits(digits, more_digits):
    own = AttackerNet(model=DigitsCNN(width=4), recipe=RECIPE.model_copy(update={"epochs": 8}))
    net = own.rebuild(own.train(digits.images_nchw, digits.labels, 10, seed=0))
    assert (predict_classes(net, more_digits.images_nchw) == more_digits.labels).mean() > 0.8


def test_it_varies_with_the_seed(digits):
    images, labels = digits.images_nchw[:50], digits.labels[:50]
    first, other = (NETS[0].train(images, labels, 10, seed=seed) for seed in (0, 1))
    assert not torch.equal(first["net/body.0.weight"], other["net/body.0.weight"])


@pytest.mark.parametrize("prepared", [{}, {"patch": torch.zeros(1)}], ids=["nothing", "other"])
def test_what_is_missing_is_named(prepared):
    with pytest.raises(ValueError, match="needs 'image_shape' of what its prepare") as raised:
        NETS[0].rebuild(prepared)
    assert ("patch" if prepared else "nothing") in str(raised.value)


def test_tensors_of_another_model_are_refused(digits):
    prepared = NETS[0].train(digits.images_nchw[:50], digits.labels[:50], 10, seed=0)
    with pytest.raises(ValueError, match="do not fit the architecture"):
        NETS[1].rebuild(prepared)


def test_tensors_by_prefix_and_by_name():
    tensors = {name: torch.tensor(i) for i, name in enumerate(["a/x", "a/b/y", "b/x", "a"])}
    assert under("a/", tensors) == {"x": torch.tensor(0), "b/y": torch.tensor(1)}
    assert needed(tensors, "a") == 3


def test_a_robust_step_trains_on_images_moved_within_epsilon():
    """On a linear net: three moves by the sign of the slope, from the drawn start."""
    layer = nn.Linear(12, 3).double()
    body = nn.Sequential(nn.Flatten(), layer)
    net = NormalisedNet(body, torch.zeros(3).double(), torch.ones(3).double())
    weight, bias = (each.detach().clone() for each in (layer.weight, layer.bias))
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    labels, epsilon = torch.tensor([0, 2, 1, 1]), 0.1
    recipe = Recipe(epochs=1, learning_rate=0.5, momentum=0.0, weight_decay=0.0)
    step = robust_step(net, recipe, epsilon, torch.Generator().manual_seed(7))
    step(images, labels, 0.0)

    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(7))
    x = images.flatten(1)
    start = (x + epsilon * (2 * noise.flatten(1) - 1)).clamp(0, 1)
    onehot = torch.eye(3).double()[labels]
    moved = start
    for _ in range(3):
        errors = (moved @ weight.T + bias).softmax(1) - onehot
        moved = moved + 2.5 / 3 * epsilon * torch.sign(errors @ weight)
        moved = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)
    errors = (moved @ weight.T + bias).softmax(1) - onehot
    expected = weight - 0.5 * errors.T @ moved / 4
    torch.testing.assert_close(layer.weight.detach(), expected)
    torch.testing.assert_close(layer.bias.detach(), bias - 0.5 * errors.mean(0))


def test_a_robust_net_withstands_more(digits):
    own = AttackerNet(model=DigitsCNN(width=4), recipe=RECIPE.model_copy(update={"epochs": 8}))
    images = torch.from_numpy(digits.images_nchw[:100] / np.float32(255.0))
    labels = torch.tensor(digits.labels[:100])
    right = []
    for robust_to in (0.0, 0.1):
        net = own.rebuild(
            own.train(digits.images_nchw, digits.labels, 10, seed=0, robust_to=robust_to)
        )
        moved = pgd(net, images, labels, epsilon=0.1, step=0.03, steps=10)
        right.append(float((net(moved).argmax(1) == labels).float().mean()))
    assert right[1] > right[0] + 0.2
