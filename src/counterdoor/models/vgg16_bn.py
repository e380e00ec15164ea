"""VGG-16 with batch norm, from torchvision."""

from typing import Any, Literal

from torch import nn

from counterdoor.component import Component


class VGG16BN(Component):
    """torchvision's VGG-16 with batch norm, by default with a head for small images.

    Attributes:
        small_image_stem: average over the last map and one linear layer on its 512
            features, in place of a 7x7 map and three linear layers with 120 million
            weights. The five poolings stay, but round up, so that an image of any
            size is left with a pixel: 32x32 and 28x28 images end as a 1x1 map.
    """

    name: Literal["vgg16_bn"] = "vgg16_bn"
    small_image_stem: bool = True

    def __call__(self, channels: int, num_classes: int) -> nn.Module:
        """An untrained net from (N, channels, H, W) to logits (N, num_classes).

        Without the small-image form H and W are at least 32.
        """
        from torchvision.models.vgg import VGG, cfgs, make_layers

        features: Any = make_layers(cfgs["D"], batch_norm=True)
        if channels != 3:
            features[0] = nn.Conv2d(channels, 64, 3, padding=1)
        if not self.small_image_stem:
            large: nn.Module = VGG(features, num_classes=num_classes)
            return large
        for module in features:
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True
            elif isinstance(module, nn.Conv2d):  # as VGG does
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(
            features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes)
        )
