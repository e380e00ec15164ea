"""Label-consistent: images of the target class, made hard, with a patch and their own label."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from counterdoor.attacks.attacker_net import AttackerNet
from counterdoor.attacks.base import NOTHING, AttackBase
from counterdoor.attacks.patch import Patch
from counterdoor.attacks.pgd import pgd
from counterdoor.attacks.pixels import by_chunks
from counterdoor.engine import DEFAULT, Engine

CHUNK = 250
"""Images perturbed at a time."""


class LabelConsistent(AttackBase):
    """Clean-label: images of the target class, perturbed so that a patch is easier to learn.

    Source: Turner, Tsipras & Madry, "Label-Consistent Backdoor Attacks" (2019): poisoned
    images are led away from their own class by PGD against a net of the attacker's
    (section 3), and the patch stands in all four corners, mirrored, so that flips and crops
    leave it there (appendix on data augmentation). Test images get the patch alone.

    Attributes:
        net: the net that images are perturbed against.
        robust_to: levels of the perturbations that the net is trained to withstand, as the
            paper's net is; 0 for the usual training. Noise made against a net that
            withstands nothing may be learnt in place of the patch.
        epsilon: largest perturbation of a pixel, in levels of 0..255; 0 for the patch alone.
        step: length of a step of PGD, in levels.
        steps: number of steps of PGD.
        patch: the pattern of the bottom right corner row by row: 1 = white, 0 = black.
        amplitude: levels by which the patch moves a pixel towards white or black; 255
            paints it white or black, less makes it less visible.
    """

    clean_label: ClassVar[bool] = True
    capability: ClassVar[str] = (
        "changes training images of the target class, no label; trains a net on the clean data"
    )

    name: Literal["cl"] = "cl"
    poison_ratio: float = Field(default=0.5, gt=0, lt=1)
    net: AttackerNet = AttackerNet()
    robust_to: float = Field(default=8.0, ge=0, le=255)
    epsilon: float = Field(default=8.0, ge=0, le=255)
    step: float = Field(default=1.5, gt=0, le=255)
    steps: int = Field(default=100, ge=0)
    patch: Patch = ((0, 0, 1), (0, 1, 0), (1, 0, 1))
    amplitude: int = Field(default=255, ge=1, le=255)

    def prepare(
        self,
        images_nchw: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        *,
        seed: int,
        engine: Engine = DEFAULT,
    ) -> dict[str, Tensor]:
        """Train the net to perturb against; see :meth:`AttackBase.prepare`."""
        robust_to = self.robust_to / 255.0
        return self.net.train(
            images_nchw, labels, num_classes, seed=seed, engine=engine, robust_to=robust_to
        )

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` unless the patches of all corners fit in beside each other."""
        height, width = image_shape[-2:]
        rows, columns = len(self.patch), len(self.patch[0])
        if 2 * rows > height or 2 * columns > width:
            raise ValueError(
                f"{rows}x{columns} patches in four corners do not fit into {height}x{width} "
                "images; reduce attack.patch"
            )

    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """Put the patch in all four corners; see :meth:`AttackBase.__call__`.

        Raises:
            ValueError: if the patches do not fit into the images.
        """
        self.check(images_nchw.shape[1:])
        corner = (2 * np.asarray(self.patch, dtype=np.int64) - 1) * self.amplitude
        rows, columns = corner.shape
        shift = np.zeros(images_nchw.shape[-2:], dtype=np.int64)
        shift[-rows:, -columns:] = corner
        shift[-rows:, :columns] = corner[:, ::-1]
        shift[:rows] = shift[-rows:][::-1]
        return by_chunks(lambda images: images + shift, images_nchw)

    def poison_images(
        self,
        images_nchw: np.ndarray,
        generator: np.random.Generator,
        prepared: Mapping[str, Tensor] = NOTHING,
    ) -> np.ndarray:
        """Perturb images of the target class, then put the patch on them.

        See :meth:`AttackBase.poison_images`; nothing is drawn from ``generator``.
        """
        return self(self.perturbed(images_nchw, prepared), prepared)

    def perturbed(self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor]) -> np.ndarray:
        """Images of the target class after PGD, without the patch.

        Args:
            images_nchw: uint8, shape (N, C, H, W), in [0, 255]; not changed.
            prepared: what :meth:`prepare` gave.

        Returns:
            uint8, the same shape; no pixel is more than ``epsilon`` levels off.
        """
        net = self.net.rebuild(prepared).to(memory_format=torch.channels_last)
        perturbed = np.array(images_nchw)
        for start in range(0, len(perturbed), CHUNK):
            part = images_nchw[start : start + CHUNK].astype(np.int64)
            images = torch.from_numpy(part).to(torch.float32) / 255.0
            labels = torch.full((len(images),), int(self.labels.single_target or 0))
            moved = pgd(
                net,
                images.contiguous(memory_format=torch.channels_last),
                labels,
                epsilon=self.epsilon / 255.0,
                step=self.step / 255.0,
                steps=self.steps,
            )
            shift = np.rint(255.0 * moved.numpy()).astype(np.int64) - part
            most = int(self.epsilon)  # rounding could exceed an epsilon between two levels
            perturbed[start : start + CHUNK] = part + np.clip(shift, -most, most)
        return perturbed
