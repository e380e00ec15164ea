"""ResNets for small images, from torchvision."""

from abc import abstractmethod
from typing import Any, Literal, cast

from torch import nn

from counterdoor.component import Component


class _ResNet(Component):
    """What the depths share.

    Attributes:
        small_image_stem: a 3x3 convolution of stride 1 and no pooling in place of
            the 7x7 convolution of stride 2 and the max pooling made for 224x224
            images; a 32x32 image then ends as a 4x4 map.
    """

    small_image_stem: bool = True

    def __call__(self, channels: int, num_classes: int) -> nn.Module:
        """An untrained net from (N, channels, H, W) to logits (N, num_classes)."""
        net = self._torchvision(num_classes)
        if self.small_image_stem:
            net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            net.maxpool = nn.Identity()
        elif channels != 3:
            net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        return cast(nn.Module, net)

    @abstractmethod
    def _torchvision(self, num_classes: int) -> Any: ...


class ResNet18(_ResNet):
    """torchvision's ResNet-18; with the small-image stem it is the CIFAR-style net of the paper.

    Attributes:
        small_image_stem: see :class:`_ResNet`.
    """

    name: Literal["resnet18"] = "resnet18"

    def _torchvision(self, num_classes: int) -> Any:
        from torchvision.models import resnet18

        return resnet18(num_classes=num_classes)


class ResNet34(_ResNet):
    """torchvision's ResNet-34, by default with a stem for small images.

    Attributes:
        small_image_stem: see :class:`_ResNet`.
    """

    name: Literal["resnet34"] = "resnet34"

    def _torchvision(self, num_classes: int) -> Any:
        from torchvision.models import resnet34

        return resnet34(num_classes=num_classes)


class ResNet50(_ResNet):
    """torchvision's ResNet-50 (bottleneck blocks), by default with a stem for small images.

    Attributes:
        small_image_stem: see :class:`_ResNet`.
    """

    name: Literal["resnet50"] = "resnet50"

    def _torchvision(self, num_classes: int) -> Any:
        from torchvision.models import resnet50

        return resnet50(num_classes=num_classes)
