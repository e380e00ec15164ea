"""Representations and activation gradients against what the net itself gives."""

import numpy as np
import pytest
import torch
from torch import nn

from counterdoor.activations import activation_gradients, layer_names, representations
from counterdoor.models import VGG16BN, Compact, DigitsCNN, build_net


@pytest.fixture
def net(noise):
    return build_net(DigitsCNN(width=2, hidden=5), noise(12), 4, seed=0, stream="x")


class Backwards(nn.Module):
    """Calls its layers in another order than it names them, works in place, and ends in a conv."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)
        self.unused = nn.Linear(2, 2)
        self.body = nn.Conv2d(1, 3, 3)

    def forward(self, images):
        return self.head(torch.relu_(self.body(images))).mean((2, 3))


def test_layers_come_in_the_order_of_the_calls(net, noise):
    assert layer_names(net, noise(3)) == ["body.0", "body.3", "body.7", "body.12", "body.14"]
    assert layer_names(Backwards(), noise(3)) == ["body", "head"]


def test_a_net_without_layers_is_refused(noise):
    with pytest.raises(ValueError, match=r"calls no nn\.Linear and no convolution"):
        representations(nn.Sequential(nn.AvgPool2d(6), nn.Flatten()), noise(3))


@pytest.mark.parametrize("model", [DigitsCNN(width=2), Compact(widths=(4, 4, 4)), VGG16BN()])
def test_the_head_turns_its_inputs_into_the_logits(model, noise):
    images = noise(4, 3)
    net = build_net(model, images, 4, seed=0, stream="x").eval()
    (inputs,) = representations(net, images, batch_size=3)
    assert inputs.dtype == np.float32
    head = net.get_submodule(layer_names(net, images)[-1])
    with torch.no_grad():
        expected = net(torch.tensor(images) / 255.0).numpy()
        logits = head(torch.tensor(inputs)).numpy()
    scale = 1 / 9 if isinstance(model, Compact) else 1
    np.testing.assert_allclose(logits * scale, expected, atol=1e-4)


def test_inputs_of_a_convolution_are_their_mean_over_places(noise):
    net, images = Backwards(), noise(3)
    with torch.no_grad():
        maps = torch.relu(net.body(torch.tensor(images) / 255.0))
    (inputs,) = representations(net, images)
    np.testing.assert_allclose(inputs, maps.mean((2, 3)).numpy(), atol=1e-5)


def test_all_layers_are_what_each_gives_and_what_the_last_gets(net, noise):
    images = noise(12)
    *given, last = representations(net, images, "all", batch_size=5)
    np.testing.assert_array_equal(last, representations(net, images)[0])
    values = torch.tensor(images) / 255.0
    expected = []
    with torch.no_grad():
        values = (values - net.mean[:, None, None]) / net.std[:, None, None]
        for module in net.eval().body:
            values = module(values)
            if isinstance(module, nn.Conv2d):
                expected.append(values.mean((2, 3)))
            elif isinstance(module, nn.Linear):
                expected.append(values)
    assert len(given) == len(expected) - 1 == 4
    late = representations(net, images, "late")
    assert len(late) == 3
    for one, other in zip(late, [*given[2:], last], strict=True):
        np.testing.assert_array_equal(one, other)
    for each, wanted in zip(given, expected, strict=False):
        np.testing.assert_allclose(each, wanted.numpy(), atol=1e-5)


def test_gradients_are_how_the_labelled_logit_changes(noise):
    """Against finite differences: every place of a unit is raised a little."""
    net, images, labels = Backwards().double(), noise(3), np.array([1, 3, 0])
    net.float()
    (slopes,) = activation_gradients(net, images, labels, ["body"], batch_size=2)
    assert slopes.shape == (3, 3)
    net.double()
    with torch.no_grad():
        maps = net.body(torch.tensor(images).double() / 255.0)
        places = maps.shape[2] * maps.shape[3]
        for unit in range(3):
            raised, lowered = maps.clone(), maps.clone()
            raised[:, unit] += 1e-6
            lowered[:, unit] -= 1e-6
            ends = [net.head(each.relu()).mean((2, 3)) for each in (raised, lowered)]
            change = (ends[0] - ends[1])[range(3), labels] / 2e-6
            np.testing.assert_allclose(slopes[:, unit], change.numpy() / places, atol=1e-5)


def test_the_last_layers_gradient_is_the_label(net, noise):
    labels = np.arange(12) % 4
    *others, last = activation_gradients(net, noise(12), labels, layer_names(net, noise(12)))
    np.testing.assert_array_equal(last, np.eye(4)[labels])
    assert [each.shape for each in others] == [(12, 2), (12, 4), (12, 4), (12, 5)]


def test_the_net_is_left_as_it_is(net, noise):
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    activation_gradients(net, noise(12), np.zeros(12, dtype=np.int64), ["body.3"])
    representations(net, noise(12), "all")
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
