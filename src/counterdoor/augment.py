"""Augmentation as pure functions of a batch and a generator; no per-sample Python.

Padding and cutout are black *before* normalisation. The stamp goes on after
augmentation, and must not look like padding: :meth:`Augment.check_stamp`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from counterdoor.component import Config, Gap
from counterdoor.stamp import Stamp
from counterdoor.transfer import sent

FILL = 0.0
"""Level of padded and cut-out pixels, in [0, 1]."""


class Augment(Config):
    """Random crop, horizontal flip and cutout, each off at its default.

    Attributes:
        crop_padding: pixels of padding on every side before a random crop back to
            the original size.
        crop_fill: what the padding shows: ``black``, or ``reflect``, the image
            mirrored at its edge.
        flip: mirror each image left-right with probability 1/2.
        cutout: side of one black square at a random place of every image.
    """

    crop_padding: Gap = 0
    crop_fill: Literal["black", "reflect"] = "black"
    flip: bool = False
    cutout: Gap = 0

    def __call__(self, images_nchw: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            images_nchw: uint8 or float, shape (N, C, H, W).
            generator: a CPU generator; the draws do not depend on the device.

        Returns:
            A tensor of the same shape, type and range.
        """
        images = images_nchw
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, generator, self.crop_fill)
        if self.flip:
            images = random_flip(images, generator)
        if self.cutout:
            images = random_cutout(images, self.cutout, generator)
        return images

    def check_stamp(self, stamp: Stamp, mean: Tensor) -> None:
        """Raise ``ValueError`` if padding or cutout have the stamp's own colour.

        A net that sees the stamp's colour in every corner learns nothing from it.
        """
        fills = (self.crop_padding and self.crop_fill == "black") or self.cutout
        if fills and float((stamp.levels(mean) - FILL).abs().max()) < 0.02:
            raise ValueError(
                f"the stamp's colour {stamp.colour!r} is the colour of augmentation padding "
                "(black), so the stamp carries no signal; choose another stamp.colour, or set "
                "crop_padding and cutout to 0"
            )


def random_crop(
    images_nchw: Tensor, padding: int, generator: torch.Generator, fill: str = "black"
) -> Tensor:
    """Pad every side and cut each image out again at a random offset.

    Raises:
        ValueError: if the image is too small to be mirrored so far.
    """
    n, channels, height, width = images_nchw.shape
    device = images_nchw.device
    offsets = sent(torch.randint(2 * padding + 1, (2, n), generator=generator), device)
    rows = offsets[0, :, None] + torch.arange(height, device=device)
    columns = offsets[1, :, None] + torch.arange(width, device=device)
    batch = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    if fill == "reflect":
        if padding >= min(height, width):
            raise ValueError(
                f"crop_padding {padding} cannot mirror images of {height}x{width}; it must be "
                "smaller than both sides, or crop_fill black"
            )
        rows, columns = _mirrored(rows - padding, height), _mirrored(columns - padding, width)
        padded = images_nchw
    else:
        padded = F.pad(images_nchw, (padding,) * 4, value=FILL)
    return padded[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Indices from outside 0..size-1 mirrored at the first and the last one."""
    return size - 1 - (size - 1 - index.abs()).abs()


def random_flip(images_nchw: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left-right with probability 1/2."""
    flip = sent(torch.rand(len(images_nchw), generator=generator) < 0.5, images_nchw.device)
    return torch.where(flip[:, None, None, None], images_nchw.flip(-1), images_nchw)


def random_cutout(images_nchw: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Blacken one size x size square, wholly inside, at a random place of each image."""
    n, _, height, width = images_nchw.shape
    device = images_nchw.device
    top = sent(torch.randint(max(height - size, 0) + 1, (n, 1, 1), generator=generator), device)
    left = sent(torch.randint(max(width - size, 0) + 1, (n, 1, 1), generator=generator), device)
    rows = torch.arange(height, device=device)[None, :, None]
    columns = torch.arange(width, device=device)[None, None, :]
    hole = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return images_nchw.masked_fill(hole[:, None], FILL)
