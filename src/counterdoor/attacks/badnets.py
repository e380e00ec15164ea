"""BadNets: a small black-and-white patch."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from counterdoor.attacks.base import NOTHING, AttackBase


class BadNets(AttackBase):
    """A small patch in a corner of the image; images that carry it are relabelled to the target.

    The default is the 3x3 pattern at rows and columns [-6:-3] of the NAB
    authors' setting; the attack is Gu et al., "BadNets" (2017).

    Attributes:
        patch: the pattern row by row: 1 = white, 0 = black.
        margin: pixels left free between the patch and the bottom and right edges.
    """

    name: Literal["badnets"] = "badnets"
    patch: tuple[tuple[Literal[0, 1], ...], ...] = ((0, 0, 1), (0, 1, 0), (1, 0, 1))
    margin: int = Field(default=3, ge=0)

    @field_validator("patch")
    @classmethod
    def _rectangular(
        cls, patch: tuple[tuple[Literal[0, 1], ...], ...]
    ) -> tuple[tuple[Literal[0, 1], ...], ...]:
        if not patch or not patch[0] or len({len(row) for row in patch}) != 1:
            raise ValueError("the patch needs at least one row, and rows of equal length")
        return patch

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` if the patch does not fit into images of shape (C, H, W)."""
        rows, columns = len(self.patch), len(self.patch[0])
        height, width = image_shape[-2:]
        if rows + self.margin > height or columns + self.margin > width:
            raise ValueError(
                f"a {rows}x{columns} patch with margin {self.margin} does not fit into "
                f"{height}x{width} images; reduce attack.patch or attack.margin"
            )

    def __call__(
        self,
        images_nchw: np.ndarray,
        prepared: Mapping[str, Tensor] = NOTHING,
    ) -> np.ndarray:
        """Put the patch on every image; see :meth:`AttackBase.__call__`.

        Raises:
            ValueError: if the patch does not fit into the images.
        """
        self.check(images_nchw.shape[1:])
        pattern = np.asarray(self.patch, dtype=np.uint8) * np.uint8(255)
        height, width = images_nchw.shape[-2:]
        bottom, right = height - self.margin, width - self.margin
        top, left = bottom - pattern.shape[0], right - pattern.shape[1]
        triggered = np.array(images_nchw)
        triggered[:, :, top:bottom, left:right] = pattern
        return triggered
