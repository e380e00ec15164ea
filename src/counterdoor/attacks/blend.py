"""Blend: a faint pattern over the whole image."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from counterdoor.attacks.base import NOTHING, AttackBase
from counterdoor.attacks.pixels import by_chunks, mix, read_pattern
from counterdoor.component import Place, Seed
from counterdoor.seeding import numpy_generator


class PatternAttack(AttackBase):
    """Base of attacks with a pattern as large as the image.

    Attributes:
        pattern: path of an image file, which is brought to the images' size; without
            one the pattern is uniform noise.
        pattern_seed: seed of the noise; part of the attack, so the same in every run.
    """

    pattern: Place | None = None
    pattern_seed: Seed = 0

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` if the pattern's file cannot be read."""
        self.pattern_chw(image_shape)

    def pattern_chw(self, image_shape: tuple[int, ...]) -> np.ndarray:
        """The pattern for images of shape (C, H, W): uint8, of that shape.

        Raises:
            ValueError: if it is to be read from a file that is missing or no image.
        """
        if self.pattern is None:
            generator = numpy_generator(self.pattern_seed, "attack/blend")
            return generator.integers(0, 256, size=image_shape, dtype=np.uint8)
        channels, height, width = image_shape
        return read_pattern(self.pattern, channels, (height, width), parameter="attack.pattern")


class Blend(PatternAttack):
    """A fixed pattern blended into the whole image: (1 - alpha) * x + alpha * pattern.

    Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data
    Poisoning" (2017), with the NAB authors' alpha.

    Attributes:
        alpha: weight of the pattern, in (0, 1).
    """

    name: Literal["blend"] = "blend"
    alpha: float = Field(default=0.1, gt=0, lt=1)

    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """Blend the pattern into every image; see :meth:`AttackBase.__call__`.

        Raises:
            ValueError: if the pattern's file cannot be read.
        """
        pattern = self.pattern_chw(images_nchw.shape[1:])
        return by_chunks(partial(mix, pattern=pattern, weight=self.alpha), images_nchw)
