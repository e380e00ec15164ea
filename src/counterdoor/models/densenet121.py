"""DenseNet-121, from torchvision."""

from typing import Any, Literal, cast

from torch import nn

from counterdoor.component import Component


class DenseNet121(Component):
    """torchvision's DenseNet-121, by default with a stem for small images.

    Attributes:
        small_image_stem: a 3x3 convolution of stride 1 and no pooling in place of
            the 7x7 convolution of stride 2 and the max pooling made for 224x224
            images; a 32x32 image then ends as a 4x4 map.
    """

    name: Literal["densenet121"] = "densenet121"
    small_image_stem: bool = True

    def __call__(self, channels: int, num_classes: int) -> nn.Module:
        """An untrained net from (N, channels, H, W) to logits (N, num_classes); H, W >= 8."""
        from torchvision.models import densenet121

        net: Any = densenet121(num_classes=num_classes)
        if self.small_image_stem:
            net.features.conv0 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            net.features.pool0 = nn.Identity()
        elif channels != 3:
            net.features.conv0 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        return cast(nn.Module, net)
