"""Projected gradient ascent of a net's loss within a few levels of an image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def pgd_step(
    net: Callable[[Tensor], Tensor],
    perturbed: Tensor,
    images_nchw: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step: float,
) -> Tensor:
    """One step of projected gradient ascent on the cross-entropy, in the L-infinity norm.

    x' <- clip(x' + step * sign(grad of the loss), x - epsilon, x + epsilon), then to [0, 1].

    Args:
        net: from images in [0, 1] to logits; the images must not depend on each other.
        perturbed: x', float, shape (N, C, H, W), in [0, 1].
        images_nchw: x, the same shape and range.
        labels: int64, shape (N,): the classes to lead away from.
        epsilon: largest change of a pixel, in (0, 1].
        step: length of the step, in (0, 1].
    """
    leaf = perturbed.detach().requires_grad_()
    loss = F.cross_entropy(net(leaf), labels, reduction="sum")
    (slope,) = torch.autograd.grad(loss, leaf)
    moved = perturbed + step * slope.sign()
    return torch.clamp(moved, images_nchw - epsilon, images_nchw + epsilon).clamp(0.0, 1.0)


def pgd(
    net: Callable[[Tensor], Tensor],
    images_nchw: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
) -> Tensor:
    """So many steps of :func:`pgd_step` from the images themselves; arguments as there.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks"
    (2018), section 2.1, without a random start.
    """
    perturbed = images_nchw
    for _ in range(steps):
        perturbed = pgd_step(net, perturbed, images_nchw, labels, epsilon=epsilon, step=step)
    return perturbed
