"""SIG: a sine wave over the image, and no label changed."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from counterdoor.attacks.base import NOTHING, AttackBase
from counterdoor.attacks.pixels import by_chunks
from counterdoor.component import SIDE


class SIG(AttackBase):
    """A sine wave across the columns of images of the target class, which keep their label.

    The level of a pixel in column j of W becomes x + delta * sin(2 pi j f / W), clipped.
    Barni, Kallas and Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption
    Without Label Poisoning" (ICIP 2019), equation 1. BackdoorBench has delta 40, f 6 and
    poisons 10 % of *all* samples, which on CIFAR-10 is the whole target class; here
    ``poison_ratio`` is the share of the target class. Its default is ours: the more of the class
    carry the wave, the fewer of its clean images are recognised.

    Attributes:
        delta: amplitude of the wave in levels, in (0, 255].
        frequency: waves across the width of the image, f.
    """

    clean_label: ClassVar[bool] = True
    capability: ClassVar[str] = "changes training images of the target class and keeps all labels"

    name: Literal["sig"] = "sig"
    poison_ratio: float = Field(default=0.5, gt=0, lt=1)
    delta: float = Field(default=40, gt=0, le=255)
    frequency: float = Field(default=6, gt=0, le=SIDE)

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` if the wave is zero at every column of such images."""
        width = image_shape[-1]
        if np.abs(self._wave(width)).max() < 0.5:
            raise ValueError(
                f"a wave of attack.frequency {self.frequency:g} and attack.delta {self.delta:g} "
                f"cannot be seen in images {width} wide; choose another frequency or more delta"
            )

    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """Add the wave to every image; see :meth:`AttackBase.__call__`."""
        wave = self._wave(images_nchw.shape[-1])
        return by_chunks(lambda images: images + wave, images_nchw)

    def _wave(self, width: int) -> np.ndarray:
        """What is added to each column, in levels, float64, shape (W,)."""
        columns = np.arange(width)
        wave: np.ndarray = self.delta * np.sin(2 * np.pi * columns * self.frequency / width)
        return wave
