"""PreActResNet-18: a residual net whose units begin with batch norm and ReLU."""

from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from counterdoor.component import Component


class PreActResNet18(Component):
    """Pre-activation ResNet-18 for small images: a 3x3 stem, no pooling before the head.

    Source: He et al., "Identity Mappings in Deep Residual Networks" (2016), the unit of
    figure 1(b), the first and the last unit as in the appendix, and the widths, depths
    and strides of ResNet-18.
    """

    name: Literal["preact_resnet18"] = "preact_resnet18"

    def __call__(self, channels: int, num_classes: int) -> nn.Module:
        """An untrained net from (N, channels, H, W) to logits (N, num_classes)."""
        units: list[nn.Module] = []
        inputs = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            units += [Unit(inputs, width, stride, split=not units), Unit(width, width)]
            inputs = width
        net = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1, bias=False),
            *units,
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(inputs, num_classes),
        )
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return net


class Unit(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, and a shortcut.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution.
        split: let the shortcut start behind the first activation, as that of the
            net's first unit and every projection does, and not before it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, split: bool = False) -> None:
        super().__init__()
        projects = stride != 1 or inputs != outputs
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if projects else nn.Identity()
        )
        self.split = split or projects

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, outputs, H / stride, W / stride), rounded up."""
        active = F.relu(self.norm1(features))
        shortcut = self.shortcut(active if self.split else features)
        return cast(Tensor, self.conv2(F.relu(self.norm2(self.conv1(active)))) + shortcut)
