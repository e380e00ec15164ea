"""Chance level, as a control."""

from typing import Literal

import numpy as np
from torch import nn

from counterdoor.detectors.base import DetectorBase
from counterdoor.engine import DEFAULT, Engine
from counterdoor.seeding import numpy_generator


class Random(DetectorBase):
    """Suspects drawn at random: the control that shows what detection contributes."""

    name: Literal["random"] = "random"

    def __call__(
        self,
        net: nn.Module,
        images_nchw: np.ndarray,
        labels: np.ndarray,
        *,
        seed: int,
        engine: Engine = DEFAULT,
    ) -> np.ndarray:
        """Uniform random numbers in [0, 1); see :class:`DetectorBase`."""
        return numpy_generator(seed, "detect/random").random(len(labels))
