"""A compact net for short trainings on small colour images."""

from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from counterdoor.component import Channels, Component

KERNEL = 2
"""Side of the whitening patches."""


class Compact(Component):
    """Compact net in the spirit of airbench: whitening first layer, three blocks, scaled head.

    Source: airbench94 (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024),
    sections 3.2 and 3.3, with widths for a CPU. Its other accelerations are recipe.

    Attributes:
        widths: channels of the three blocks, each of which halves the resolution.
        batch_norm_momentum: weight of a new batch in batch norm's running statistics;
            short trainings need it high.
        scale: factor on the logits before the softmax.
        identity_start: convolutions of the blocks begin by passing their inputs on, and
            batch norm has a bias but no trained scale.
        whiten: the first layer decorrelates patches and is not trained; else it is a usual
            one. Whitening makes the rarest patterns the loudest: noise of a few levels on
            images that were compressed by JPEG, which have none, drowns a patch.
    """

    name: Literal["compact"] = "compact"
    widths: tuple[Channels, Channels, Channels] = (64, 128, 256)
    batch_norm_momentum: float = Field(default=0.4, gt=0, le=1)
    scale: float = Field(default=1 / 9, gt=0, le=1000)
    identity_start: bool = True
    whiten: bool = True

    def __call__(self, channels: int, num_classes: int) -> nn.Module:
        """An untrained net from (N, channels, H, W) to logits (N, num_classes); H, W >= 12."""
        first = 2 * channels * KERNEL**2
        whitening = nn.Conv2d(channels, first, KERNEL)
        whitening.weight.requires_grad_(not self.whiten)
        one, two, three = self.widths
        return nn.Sequential(
            whitening,
            nn.GELU(),
            *self._block(first, one),
            *self._block(one, two),
            *self._block(two, three),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(three, num_classes, bias=False),
            Scale(self.scale),
        )

    def adapt(self, body: nn.Module, images_nchw: Tensor) -> None:
        """Set the first layer of ``body`` so that it decorrelates patches of the images.

        Its filters are the eigenvectors of the patches' covariance, each divided by the
        root of its eigenvalue, and their negatives. It is not trained. Nothing happens
        without ``whiten``.

        Args:
            body: a net of this component.
            images_nchw: normalised images, float, shape (N, C, H, W).
        """
        if not self.whiten:
            return
        patches = nn.functional.unfold(images_nchw, KERNEL).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / torch.sqrt(values + 5e-4)).T
        layer = cast(nn.Conv2d, cast(nn.Sequential, body)[0])
        shape = (len(filters), images_nchw.shape[1], KERNEL, KERNEL)
        with torch.no_grad():
            layer.weight.copy_(torch.cat([filters, -filters]).reshape(-1, *shape[1:]))
            cast(Tensor, layer.bias).zero_()

    def _block(self, inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return (
            self._convolution(inputs, outputs),
            nn.MaxPool2d(2),
            self._norm(outputs),
            nn.GELU(),
            self._convolution(outputs, outputs),
            self._norm(outputs),
            nn.GELU(),
        )

    def _convolution(self, inputs: int, outputs: int) -> nn.Conv2d:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        if self.identity_start:
            nn.init.dirac_(layer.weight.data[:inputs])
        return layer

    def _norm(self, channels: int) -> nn.BatchNorm2d:
        layer = nn.BatchNorm2d(channels, momentum=self.batch_norm_momentum)
        layer.weight.requires_grad_(not self.identity_start)
        return layer


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        """Logits of the same shape."""
        return logits * self.factor
