"""Adap-Blend and Adap-Patch: weak triggers in training, cover samples, strong ones at test."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from counterdoor.attacks.base import NOTHING, AttackBase
from counterdoor.attacks.blend import PatternAttack
from counterdoor.attacks.pixels import by_chunks, mix
from counterdoor.component import Seed, Side
from counterdoor.seeding import numpy_generator


class AdapBlend(PatternAttack):
    """A faint pattern cut into pieces, half of them missing in every training image; with covers.

    Qi et al., "Revisiting the Assumption of Latent Separability for Backdoor Defenses"
    (ICLR 2023), section 4; the weights are those of the authors' code.

    Attributes:
        pieces: into how many equal rectangles the pattern is cut, a square number.
        masked: share of the pieces that each training image lacks, in [0, 1).
        alpha: weight of the pattern in training images, in (0, 1).
        test_alpha: weight of the whole pattern in test images, in (0, 1).
    """

    name: Literal["adap_blend"] = "adap_blend"
    poison_ratio: float = Field(default=0.003, gt=0, lt=1)
    cover_ratio: float = Field(default=0.003, ge=0, lt=1)
    pieces: int = Field(default=16, ge=1, le=10**4)
    masked: float = Field(default=0.5, ge=0, lt=1)
    alpha: float = Field(default=0.15, gt=0, lt=1)
    test_alpha: float = Field(default=0.2, gt=0, lt=1)

    @field_validator("pieces")
    @classmethod
    def _square(cls, pieces: int) -> int:
        if math.isqrt(pieces) ** 2 != pieces:
            raise ValueError(f"{pieces} is no square number; take {math.isqrt(pieces) ** 2}")
        return pieces

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` if the pattern cannot be read or has less pixels than pieces."""
        super().check(image_shape)
        side = math.isqrt(self.pieces)
        if min(image_shape[-2:]) < side:
            raise ValueError(
                f"images of {image_shape[-2]}x{image_shape[-1]} cannot be cut into {side}x{side} "
                "pieces; reduce attack.pieces"
            )

    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """Blend the whole pattern into every image; see :meth:`AttackBase.__call__`."""
        pattern = self.pattern_chw(images_nchw.shape[1:])
        return by_chunks(partial(mix, pattern=pattern, weight=self.test_alpha), images_nchw)

    def poison_images(
        self,
        images_nchw: np.ndarray,
        generator: np.random.Generator,
        prepared: Mapping[str, Tensor] = NOTHING,
    ) -> np.ndarray:
        """Blend some pieces into every image; see :meth:`AttackBase.poison_images`."""
        height, width = images_nchw.shape[-2:]
        pattern = self.pattern_chw(images_nchw.shape[1:])
        side = math.isqrt(self.pieces)
        rows, columns = (np.arange(size) * side // size for size in (height, width))
        piece = rows[:, None] * side + columns
        order = generator.random((len(images_nchw), self.pieces)).argsort(axis=1)
        shown = order >= round(self.masked * self.pieces)  # a permutation, so exactly the rest

        def blend(images: np.ndarray, shown: np.ndarray) -> np.ndarray:
            return mix(images, pattern, self.alpha * shown[:, None, piece])

        return by_chunks(blend, images_nchw, shown)


class AdapPatch(AttackBase):
    """Several small patches, one of them, faint, in every training image; with covers.

    Qi et al., "Revisiting the Assumption of Latent Separability for Backdoor Defenses"
    (ICLR 2023), section 4. Number and opacities are those of the authors' code; their
    patches are pictures, ours uniform noise, each in its own part of the image.

    Attributes:
        opacities: of each patch in training images, in (0, 1]; as many as there are
            patches.
        test_patches: indices of the patches that test images carry, two or more.
        test_opacity: of these patches in test images, in (0, 1].
        patch_size: side of a patch in pixels.
        patch_seed: seed of the patches and their places; part of the attack, so the same
            in every run.
    """

    name: Literal["adap_patch"] = "adap_patch"
    poison_ratio: float = Field(default=0.003, gt=0, lt=1)
    cover_ratio: float = Field(default=0.006, ge=0, lt=1)
    opacities: tuple[float, ...] = Field(default=(0.5, 0.2, 0.5, 0.3), min_length=2)
    test_patches: tuple[int, ...] = Field(default=(0, 2), min_length=2)
    test_opacity: float = Field(default=1.0, gt=0, le=1)
    patch_size: Side = 5
    patch_seed: Seed = 0

    @model_validator(mode="after")
    def _known_patches(self) -> Self:
        if not all(0 < opacity <= 1 for opacity in self.opacities):
            raise ValueError(f"opacities are {self.opacities}; each must be in (0, 1]")
        if len(set(self.test_patches)) < len(self.test_patches) or not set(
            self.test_patches
        ) <= set(range(len(self.opacities))):
            raise ValueError(
                f"test_patches are {self.test_patches}; they must be different indices from 0 to "
                f"{len(self.opacities) - 1}"
            )
        return self

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` if the images have no room for the patches."""
        self.patches(image_shape)

    def patches(self, image_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Each patch on an image of its own, and where it is.

        Args:
            image_shape: (C, H, W).

        Returns:
            Levels, uint8, shape (P, C, H, W), and masks, bool, shape (P, 1, H, W).

        Raises:
            ValueError: if the images have no room for the patches.
        """
        channels, height, width = image_shape
        count, size = len(self.opacities), self.patch_size
        side = math.ceil(math.sqrt(count))
        if min(height, width) // side < size:
            raise ValueError(
                f"images of {height}x{width} have no room for {count} patches of {size}x{size} "
                "side by side; reduce attack.patch_size"
            )
        generator = numpy_generator(self.patch_seed, "attack/adap_patch")
        levels = np.zeros((count, channels, height, width), dtype=np.uint8)
        masks = np.zeros((count, 1, height, width), dtype=bool)
        for index in range(count):
            cell = height // side, width // side
            top, left = (
                place * extent + generator.integers(0, extent - size + 1)
                for place, extent in zip(divmod(index, side), cell, strict=True)
            )
            rows, columns = slice(top, top + size), slice(left, left + size)
            levels[index, :, rows, columns] = generator.integers(0, 256, (channels, size, size))
            masks[index, :, rows, columns] = True
        return levels, masks

    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """Put the test patches on every image; see :meth:`AttackBase.__call__`.

        Raises:
            ValueError: if the images have no room for the patches.
        """
        levels, masks = self.patches(images_nchw.shape[1:])
        chosen = list(self.test_patches)
        pattern = levels[chosen].sum(axis=0)  # patches do not overlap
        weight = self.test_opacity * masks[chosen].any(axis=0)
        return by_chunks(partial(mix, pattern=pattern, weight=weight), images_nchw)

    def poison_images(
        self,
        images_nchw: np.ndarray,
        generator: np.random.Generator,
        prepared: Mapping[str, Tensor] = NOTHING,
    ) -> np.ndarray:
        """Put one patch at random on every image; see :meth:`AttackBase.poison_images`.

        Raises:
            ValueError: if the images have no room for the patches.
        """
        levels, masks = self.patches(images_nchw.shape[1:])
        weights = masks * np.array(self.opacities)[:, None, None, None]
        drawn = generator.integers(0, len(levels), size=len(images_nchw))

        def patch(images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
            return mix(images, levels[drawn], weights[drawn])

        return by_chunks(patch, images_nchw, drawn)
