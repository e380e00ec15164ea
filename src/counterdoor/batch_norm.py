"""Batch norm over the batches of all processes, on a CPU as well as on GPUs."""

from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


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


class _Global(_BatchNorm):
    """Batch norm whose statistics, and their gradients, are those of all processes' samples.

    torch's own ``SyncBatchNorm`` does the same, on GPUs only.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features, shape (N, C, ...); N may differ between processes."""
        if not self.training:
            return super().forward(features)
        floats = features.float()
        others = [axis for axis in range(floats.ndim) if axis != 1]
        each = (-1, *(1 for _ in others[1:]))
        count_here = floats.new_full((floats.shape[1],), floats.numel() / floats.shape[1])
        sums = torch.stack([floats.sum(others), floats.square().sum(others), count_here])
        total, squares, count = _Sum.apply(sums)
        mean = total / count
        variance = squares / count - mean.square()
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
                momentum = self._momentum()
                unbiased = variance * count / (count - 1)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(unbiased, momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = self.bias - mean * scale if self.affine else -mean * scale
        output: Tensor = floats * scale.reshape(each) + shift.reshape(each)
        return output

    def _momentum(self) -> float:
        """The weight of a new batch; torch's ``None`` stands for a plain average."""
        if self.momentum is None:
            return 1.0 / float(cast(Tensor, self.num_batches_tracked))
        return float(self.momentum)


class GlobalBatchNorm1d(_Global, nn.BatchNorm1d):
    """For features (N, C) or (N, C, L)."""


class GlobalBatchNorm2d(_Global, nn.BatchNorm2d):
    """For images (N, C, H, W)."""


class GlobalBatchNorm3d(_Global, nn.BatchNorm3d):
    """For volumes (N, C, D, H, W)."""


GLOBAL: dict[type, type[_Global]] = {
    nn.BatchNorm1d: GlobalBatchNorm1d,
    nn.BatchNorm2d: GlobalBatchNorm2d,
    nn.BatchNorm3d: GlobalBatchNorm3d,
}
"""What takes the place of torch's own."""


def over_all_processes(net: nn.Module) -> None:
    """Let every batch norm of a net work over all processes; its tensors stay.

    Raises:
        ValueError: if one is of a class of its own, whose statistics would be those of
            one process.
    """
    for module in net.modules():
        if type(module) in GLOBAL:
            module.__class__ = GLOBAL[type(module)]
        elif isinstance(module, _BatchNorm) and not isinstance(module, (_Global, nn.SyncBatchNorm)):
            raise ValueError(
                f"the net has a {type(module).__name__}, whose batch statistics cannot be taken "
                "over all processes; use torch's own batch norm, or set engine.devices and "
                "engine.num_nodes to 1"
            )
