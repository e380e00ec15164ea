"""A small convolutional net for small grey images."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from counterdoor.component import Channels, Component

GRID = 7
"""Cells a side of the last feature map; a 28x28 image has just as many."""


class DigitsCNN(Component):
    """Three convolutions with batch norm and two linear layers, for small grey images.

    Attributes:
        width: channels of the first convolution, which halves the resolution; later
            ones have twice as many.
        hidden: units of the layer before the head. Stamp and trigger sit in
            opposite corners, so "trigger, unless stamped" takes a non-linear
            layer that sees the whole image, and sees each corner by itself.
    """

    name: Literal["digits_cnn"] = "digits_cnn"
    width: Channels = 16
    hidden: int = Field(default=128, ge=1, le=2**16)

    def __call__(self, channels: int, num_classes: int) -> nn.Module:
        """An untrained net from (N, channels, H, W) to logits (N, num_classes); H, W >= 12."""
        width = self.width
        return nn.Sequential(
            *_block(channels, width, stride=2),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 2 * width),
            GridMax(),
            nn.Flatten(),
            nn.Linear(2 * width * GRID**2, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, num_classes),
        )


class GridMax(nn.Module):
    """The largest value in each cell of a :data:`GRID` x :data:`GRID` grid over the map.

    As :class:`torch.nn.AdaptiveMaxPool2d`, which ONNX has no operator for.
    """

    def forward(self, map_nchw: Tensor) -> Tensor:
        """The map (N, C, H, W) as (N, C, GRID, GRID)."""
        for axis in (2, 3):
            size = map_nchw.shape[axis]
            if size != GRID:
                cells = [
                    map_nchw.narrow(axis, start, end - start).amax(axis, keepdim=True)
                    for start, end in (
                        (cell * size // GRID, -(-(cell + 1) * size // GRID)) for cell in range(GRID)
                    )
                ]
                map_nchw = torch.cat(cells, axis)
        return map_nchw


def _block(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
