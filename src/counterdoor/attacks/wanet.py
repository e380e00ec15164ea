"""WaNet: the image slightly warped."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from counterdoor.attacks.base import NOTHING, AttackBase
from counterdoor.attacks.pixels import by_chunks
from counterdoor.component import SIDE, Seed
from counterdoor.seeding import torch_generator


class WaNet(AttackBase):
    """A smooth warp of the whole image, the same for all; covers are warped at random besides.

    Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack" (ICLR 2021),
    section 3.2. Noise uniform in [-1, 1] on a k x k grid of control points, divided by its
    mean absolute value, is scaled up bicubically to a displacement d, and images are read
    bilinearly at clamp(identity + s * d / size, -1, 1), in coordinates from -1 to 1.
    In covers (the paper's noise mode) every pixel's place is moved by noise uniform in
    [-1, 1] / size as well. The paper's attacker controls the training; this is the form
    that poisons data alone, once.

    Attributes:
        control_points: k, control points a side.
        strength: s.
        grid_seed: seed of the control points' noise; part of the attack, so the same in
            every run.
    """

    capability: ClassVar[str] = (
        "changes training images and their labels; the paper's attacker also controls the training"
    )

    name: Literal["wanet"] = "wanet"
    cover_ratio: float = Field(default=0.2, ge=0, lt=1)
    control_points: int = Field(default=4, ge=2, le=SIDE)
    strength: float = Field(default=0.5, gt=0, le=SIDE)
    grid_seed: Seed = 0

    def grid(self, height: int, width: int) -> Tensor:
        """Where each pixel is read: float32, shape (H, W, 2), (x, y) in [-1, 1]."""
        k = self.control_points
        noise = torch.rand(1, 2, k, k, generator=torch_generator(self.grid_seed, "attack/wanet"))
        noise = 2 * noise - 1
        displacement = F.interpolate(
            noise / noise.abs().mean(), size=(height, width), mode="bicubic", align_corners=True
        )
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
        )
        moved = self.strength * displacement[0].permute(1, 2, 0) / torch.tensor([width, height])
        return (torch.stack([x, y], dim=-1) + moved).clamp(-1, 1)

    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """Warp every image; see :meth:`AttackBase.__call__`."""
        grid = self.grid(*images_nchw.shape[-2:])
        return by_chunks(
            lambda images: _warp(images, grid.expand(len(images), -1, -1, -1)), images_nchw
        )

    def cover_images(
        self,
        images_nchw: np.ndarray,
        generator: np.random.Generator,
        prepared: Mapping[str, Tensor] = NOTHING,
    ) -> np.ndarray:
        """Warp every image, each with noise of its own; see :meth:`AttackBase.cover_images`."""
        height, width = images_nchw.shape[-2:]
        grid = self.grid(height, width)

        def warp_noisily(images: np.ndarray) -> np.ndarray:
            noise = generator.uniform(-1, 1, size=(len(images), height, width, 2))
            moved = torch.from_numpy(noise).float() / torch.tensor([width, height])
            return _warp(images, (grid + moved).clamp(-1, 1))

        return by_chunks(warp_noisily, images_nchw)


def _warp(images_nchw: np.ndarray, grid: Tensor) -> np.ndarray:
    """Levels read at the grid's places, float32; the grid is (N, H, W, 2)."""
    images = torch.from_numpy(images_nchw.astype(np.float32))
    warped: np.ndarray = F.grid_sample(images, grid, align_corners=True).numpy()
    return warped
