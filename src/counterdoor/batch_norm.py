"""Batch norm over the batches of all processes, on a CPU as well as on GPUs."""

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _Sum(torch.autograd.Function):
    """The sum over all processes; what a process adds, all others' losses depend on."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics, and their gradients, are those of all processes' images.

    torch's own ``SyncBatchNorm`` does the same, on GPUs only.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, shape (N, C, H, W); N may differ between processes."""
        if not self.training:
            return super().forward(images)
        floats = images.float()
        pixels = torch.full_like(floats[0, :, 0, 0], images.numel() / images.shape[1])
        sums = torch.stack([floats.sum((0, 2, 3)), floats.square().sum((0, 2, 3)), pixels])
        total, squares, count = _Sum.apply(sums)
        mean = total / count
        variance = squares / count - mean.square()
        if self.running_mean is not None and self.running_var is not None:
            momentum = 0.1 if self.momentum is None else self.momentum
            with torch.no_grad():
                unbiased = variance * count / (count - 1)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(unbiased, momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = self.bias - mean * scale if self.affine else -mean * scale
        output: Tensor = floats * scale[:, None, None] + shift[:, None, None]
        return output


def over_all_processes(net: nn.Module) -> None:
    """Let every ``BatchNorm2d`` of a net work over all processes; its tensors stay."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
