"""BadNets: a small patch."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from counterdoor.attacks.base import NOTHING, AttackBase
from counterdoor.attacks.patch import Patch
from counterdoor.attacks.pixels import read_pattern
from counterdoor.component import Gap, Place


class BadNets(AttackBase):
    """A small patch in a corner of the image; images that carry it are relabelled to the target.

    The default is the 3x3 pattern at rows and columns [-6:-3] of the NAB
    authors' setting; the attack is Gu et al., "BadNets" (2017).

    Attributes:
        patch: the pattern row by row: 1 = white, 0 = black.
        patch_image: path of an image file to use as the patch, in its own size, in
            place of ``patch``.
        margin: pixels left free between the patch and the bottom and right edges.
    """

    name: Literal["badnets"] = "badnets"
    patch: Patch = ((0, 0, 1), (0, 1, 0), (1, 0, 1))
    patch_image: Place | None = None
    margin: Gap = 3

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` if the patch cannot be read or does not fit into the images."""
        self._placed(image_shape)

    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """Put the patch on every image; see :meth:`AttackBase.__call__`.

        Raises:
            ValueError: if the patch cannot be read or does not fit into the images.
        """
        patch, rows, columns = self._placed(images_nchw.shape[1:])
        triggered = np.array(images_nchw)
        triggered[:, :, rows, columns] = patch
        return triggered

    def _placed(self, image_shape: tuple[int, ...]) -> tuple[np.ndarray, slice, slice]:
        """The patch, uint8 (C or 1, h, w), and its place in images of shape (C, H, W)."""
        channels, height, width = image_shape
        if self.patch_image is None:
            patch = np.asarray([self.patch], dtype=np.uint8) * np.uint8(255)
        else:
            patch = read_pattern(self.patch_image, channels, parameter="attack.patch_image")
        bottom, right = height - self.margin, width - self.margin
        top, left = bottom - patch.shape[1], right - patch.shape[2]
        if top < 0 or left < 0:
            raise ValueError(
                f"a {patch.shape[1]}x{patch.shape[2]} patch with margin {self.margin} does not "
                f"fit into {height}x{width} images; reduce attack.patch or attack.margin"
            )
        return patch, slice(top, bottom), slice(left, right)
