"""Chance level, as a control."""

from typing import Literal

import numpy as np

from counterdoor.detectors.base import DetectorBase, Evidence, Need
from counterdoor.engine import DEFAULT, Engine
from counterdoor.seeding import numpy_generator


class Random(DetectorBase):
    """Suspects drawn at random: the control that shows what detection contributes."""

    name: Literal["random"] = "random"

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing."""
        return frozenset()

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Uniform random numbers in [0, 1); see :class:`DetectorBase`."""
        return numpy_generator(seed, "detect/random").random(len(evidence.labels))
