"""ResNet-18 for small images, from torchvision."""

from typing import Literal

from torch import nn

from counterdoor.component import Component


class ResNet18(Component):
    """torchvision's ResNet-18; with the small-image stem it is the CIFAR-style net of the paper.

    Attributes:
        small_image_stem: a 3x3 convolution of stride 1 and no pooling in place of
            the 7x7 convolution of stride 2 and the max pooling made for 224x224 images.
    """

    name: Literal["resnet18"] = "resnet18"
    small_image_stem: bool = True

    def __call__(self, channels: int, num_classes: int) -> nn.Module:
        """An untrained net from (N, channels, H, W) to logits (N, num_classes)."""
        from torchvision.models import resnet18

        net: nn.Module = resnet18(num_classes=num_classes)
        if self.small_image_stem:
            net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            net.maxpool = nn.Identity()
        elif channels != 3:
            net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        return net
