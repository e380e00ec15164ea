"""Blend: a faint pattern over the whole image."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from counterdoor.attacks.base import NOTHING, AttackBase
from counterdoor.seeding import numpy_generator


class Blend(AttackBase):
    """A fixed noise pattern blended into the whole image: (1 - alpha) * x + alpha * pattern.

    Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data
    Poisoning" (2017), with the NAB authors' alpha.

    Attributes:
        alpha: weight of the pattern, in (0, 1).
        pattern_seed: seed of the uniform noise pattern; part of the attack, so the
            same in every run.
    """

    name: Literal["blend"] = "blend"
    alpha: float = Field(default=0.1, gt=0, lt=1)
    pattern_seed: int = 0

    def __call__(
        self,
        images_nchw: np.ndarray,
        prepared: Mapping[str, Tensor] = NOTHING,
    ) -> np.ndarray:
        """Blend the pattern into every image; see :meth:`AttackBase.__call__`."""
        generator = numpy_generator(self.pattern_seed, "attack/blend")
        pattern = generator.integers(0, 256, size=images_nchw.shape[1:], dtype=np.uint8)
        mixed = (1.0 - self.alpha) * images_nchw + self.alpha * pattern.astype(np.float64)
        return np.rint(mixed).astype(np.uint8)
