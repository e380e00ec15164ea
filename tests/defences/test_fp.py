"""Fine-pruning: which channels are cut off, and that they stay so."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from counterdoor.defences import FinePruning
from counterdoor.defences.fp import channel_activity, last_convolution, only, silence
from counterdoor.feed import Samples
from counterdoor.models import (
    Compact,
    DigitsCNN,
    NormalisedNet,
    PreActResNet18,
    ResNet18,
    build_net,
)
from counterdoor.recipe import Recipe
from counterdoor.training import fit

STILL = Recipe(epochs=1, batch_size=500, learning_rate=1e-30, weight_decay=0.0)
"""Too small a rate to move a weight."""


def slow_kept(net, images, labels, tolerance, largest_share):
    """The rule by loops over images and channels, on a digits_cnn in eval mode."""
    floats = torch.tensor(images) / 255.0

    def features(image):
        normalised = (image - net.mean[:, None, None]) / net.std[:, None, None]
        return net.body[:10](normalised[None])[0]  # behind the last ReLU

    def accuracy(without):
        right = 0
        for image, label in zip(floats, labels, strict=True):
            maps = features(image)
            for channel in without:
                maps[channel] = 0.0
            right += int(net.body[10:](maps[None])[0].argmax()) == label
        return right / len(labels)

    with torch.no_grad():
        maps = [features(image) for image in floats]
        channels = len(maps[0])
        means = [
            sum(float(m[c].double().mean()) for m in maps) / len(maps) for c in range(channels)
        ]
        before, cut = accuracy([]), []
        for channel in sorted(range(channels), key=lambda c: means[c]):
            if len(cut) + 1 > largest_share * channels or len(cut) + 1 == channels:
                break
            if accuracy([*cut, channel]) < before - tolerance:
                break
            cut.append(channel)
    return [channel not in cut for channel in range(channels)], means


@pytest.mark.parametrize(
    ("tolerance", "largest_share"), [(0.03, 1.0), (0.2, 1.0), (1.0, 0.5), (1.0, 1.0), (0.1, 0.0)]
)
def test_the_pruned_channels_are_those_of_a_slow_version(digits_case, tolerance, largest_share):
    trusted = digits_case.samples(digits_case.ledger["trusted"])
    images = digits_case.images_nchw[trusted.rows]
    net = digits_case.undefended.build()
    kept, means = slow_kept(net, images, trusted.labels, tolerance, largest_share)
    activity = channel_activity(net, "body.8", images)
    assert activity.tolist() == pytest.approx(means, rel=1e-5)
    defence = FinePruning(tolerance=tolerance, largest_share=largest_share, recipe=STILL)
    state = defence(digits_case).net.state
    for name in ("body.7.weight", "body.8.weight", "body.8.bias"):
        left = state[name].flatten(1).abs().sum(1) if state[name].ndim > 1 else state[name].abs()
        assert (left > 0).tolist() == kept, name
    assert 0 < sum(kept) <= len(kept)


def test_some_are_pruned_and_some_are_not(digits_case):
    state = FinePruning(tolerance=0.1, recipe=STILL)(digits_case).net.state
    assert 0 < int((state["body.8.weight"] == 0).sum()) < len(state["body.8.weight"])


def test_a_pruned_channel_stays_so_in_the_fine_tuning(digits_case):
    recipe = Recipe(epochs=2, batch_size=20, learning_rate=0.05, nesterov=True)
    still, tuned = (
        FinePruning(tolerance=0.1, recipe=each)(digits_case).net.state for each in (STILL, recipe)
    )
    for name in ("body.7.weight", "body.8.weight", "body.8.bias"):
        assert torch.equal(tuned[name] == 0, still[name] == 0), name
        assert not torch.equal(tuned[name], still[name]), name


def test_without_a_batch_norm_behind_it_a_channel_stays_pruned_too(noise):
    """The net is given to ``fit``, which trains a copy: the hook has to be in the copy."""
    body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(600, 3))
    net = NormalisedNet(body, torch.zeros(1), torch.ones(1))
    kept = torch.tensor([True, False, True, True, False, True])
    silence(net, ("body.0",), kept)
    before = copy.deepcopy(net.state_dict())
    samples = Samples(noise(24), np.arange(24), np.arange(24) % 3)
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.05)
    with only(net, "body.0", kept):
        state = fit(net, samples, recipe, seed=0, stream="x").state
    for name in ("body.0.weight", "body.0.bias"):
        assert torch.equal(state[name][~kept], torch.zeros_like(state[name][~kept]))
        assert not torch.equal(state[name][kept], before[name][kept])
    assert not net.body[0]._forward_hooks


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (DigitsCNN(width=2), ("body.7", "body.8")),
        (Compact(widths=(4, 4, 4)), ("body.20", "body.21")),
        (PreActResNet18(), ("body.8.conv2",)),
        (ResNet18(), ("body.layer4.1.conv2", "body.layer4.1.bn2")),
    ],
    ids=lambda it: getattr(it, "name", None),
)
def test_the_last_convolution_and_the_batch_norm_behind_it(noise, model, names):
    images = noise(2, 3, 16, 16)
    net = build_net(model, images, 3, seed=0, stream="x")
    assert last_convolution(net, images) == names
    assert not any(module._forward_hooks for module in net.modules())


def test_a_net_without_convolution_is_refused(noise):
    net = NormalisedNet(
        nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), torch.zeros(1), torch.ones(1)
    )
    with pytest.raises(ValueError, match="no convolution whose channels could be pruned"):
        last_convolution(net, noise(2))
