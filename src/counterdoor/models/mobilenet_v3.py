"""MobileNetV3, from torchvision."""

from functools import partial
from typing import Any, Literal, cast

from pydantic import Field
from torch import nn

from counterdoor.component import Component


class MobileNetV3(Component):
    """torchvision's MobileNetV3, small or large, by default with strides for small images.

    Attributes:
        size: ``small`` (1.5 million weights for 10 classes) or ``large`` (4.2 million).
        small_image_stem: stride 1 in place of 2 in the first convolution and in the
            first block that has a stride; a 32x32 image then ends as a 4x4 map, not
            as a 1x1 map.
        batch_norm_momentum: weight of a new batch in batch norm's running statistics;
            torchvision's 0.01 lags a hundred steps behind, which is longer than a
            short warm-up.
    """

    name: Literal["mobilenet_v3"] = "mobilenet_v3"
    size: Literal["small", "large"] = "small"
    small_image_stem: bool = True
    batch_norm_momentum: float = Field(default=0.1, gt=0, le=1)

    def __call__(self, channels: int, num_classes: int) -> nn.Module:
        """An untrained net from (N, channels, H, W) to logits (N, num_classes)."""
        from torchvision.models import mobilenet_v3_large, mobilenet_v3_small

        build = {"small": mobilenet_v3_small, "large": mobilenet_v3_large}[self.size]
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=self.batch_norm_momentum)
        net: Any = build(num_classes=num_classes, norm_layer=norm)
        if self.small_image_stem:
            strided = [each for each in net.modules() if getattr(each, "stride", 0) == (2, 2)]
            for convolution in strided[:2]:
                convolution.stride = (1, 1)
        if channels != 3:
            stride = net.features[0][0].stride
            net.features[0][0] = nn.Conv2d(channels, 16, 3, stride, padding=1, bias=False)
        return cast(nn.Module, net)
