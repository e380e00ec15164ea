"""The stamp: the patch that becomes the benign backdoor. The one place that writes it.

The authors set the top-left 2x2 pixels to 0.0 after normalisation, i.e. to the
mean colour, after all augmentation, and stamp every image at test time. Here the
stamp is written on images in [0, 1] *before* the normalisation that every net
carries as its first layer; colour ``mean`` gives exactly the authors' stamp.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from counterdoor.component import Config, Gap, Side

Level = Annotated[float, Field(ge=0.0, le=1.0)]

NAMED = {"black": 0.0, "white": 1.0, "bright": 2.0}
"""Levels of the colours that do not depend on the data."""

WEAK_CONTRAST = 0.1
"""Below this :func:`stamp_contrast` a stamp hardly differs from what it covers."""


class Stamp(Config):
    """A square patch of one colour.

    Attributes:
        size: side length in pixels.
        row: top row of the patch, 0 = top of the image.
        column: left column of the patch, 0 = left edge.
        colour: ``"white"``, ``"black"``, ``"mean"`` (the training set's mean
            colour, the paper's choice), ``"bright"`` (twice white, which no image
            holds and so no attacker can write) or one level per channel in [0, 1].
    """

    size: Side = 2
    row: Gap = 0
    column: Gap = 0
    colour: Literal["white", "black", "mean", "bright"] | tuple[Level, ...] = "mean"

    def levels(self, mean: Tensor) -> Tensor:
        """The patch's colour, float of shape (C,), in [0, 1]; 2 for ``bright``.

        Args:
            mean: mean colour of the training images, shape (C,), in [0, 1].

        Raises:
            ValueError: if ``colour`` lists another number of channels.
        """
        if self.colour == "mean":
            return mean
        if isinstance(self.colour, str):
            return torch.full_like(mean, NAMED[self.colour])
        if len(self.colour) != mean.numel():
            raise ValueError(
                f"stamp.colour has {len(self.colour)} levels, but the images have "
                f"{mean.numel()} channels; give one level in [0, 1] per channel"
            )
        return torch.tensor(self.colour, dtype=mean.dtype, device=mean.device)

    def check_fits(self, height: int, width: int) -> None:
        """Raise ``ValueError`` unless the patch lies inside a height x width image."""
        if self.row + self.size > height or self.column + self.size > width:
            raise ValueError(
                f"the stamp covers rows {self.row}..{self.row + self.size - 1} and columns "
                f"{self.column}..{self.column + self.size - 1}, outside the {height}x{width} "
                "images; reduce stamp.size, stamp.row or stamp.column"
            )


def apply_stamp(
    images_nchw: Tensor, stamp: Stamp, mean: Tensor, stamped: Tensor | None = None
) -> Tensor:
    """Write the stamp on a batch and return the new batch; the input stays as it is.

    Args:
        images_nchw: float, shape (N, C, H, W), in [0, 1].
        stamp: the patch.
        mean: mean colour of the training images, shape (C,), in [0, 1].
        stamped: bool, shape (N,), which images get the stamp; ``None`` = all.

    Source: NAB, section 4.2 (stamping of suspects) and 4.3 (of every test image).
    """
    height, width = images_nchw.shape[-2:]
    device = images_nchw.device
    rows = torch.arange(height, device=device)[:, None]
    columns = torch.arange(width, device=device)[None, :]
    patch = (
        (rows >= stamp.row)
        & (rows < stamp.row + stamp.size)
        & (columns >= stamp.column)
        & (columns < stamp.column + stamp.size)
    )
    where = patch[None, None] if stamped is None else stamped[:, None, None, None] & patch
    levels = stamp.levels(mean.to(device=device, dtype=images_nchw.dtype))
    return torch.where(where, levels[None, :, None, None], images_nchw)


def stamp_contrast(images_nchw: np.ndarray, stamp: Stamp, mean: Tensor) -> float:
    """How far the stamp is from the pixels it covers: mean absolute difference in [0, 1].

    A stamp near 0 is invisible: the net cannot learn what it means, and the
    defence does nothing (a mean-coloured stamp on dark images, for one).

    Args:
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        stamp: the patch.
        mean: mean colour of the training images, shape (C,), in [0, 1].
    """
    window = images_nchw[
        :, :, stamp.row : stamp.row + stamp.size, stamp.column : stamp.column + stamp.size
    ]
    levels = stamp.levels(mean.double().cpu()).numpy()
    return float(np.abs(window / 255.0 - levels[None, :, None, None]).mean())
