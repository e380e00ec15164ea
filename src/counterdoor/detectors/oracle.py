"""The truth, for ablations."""

from typing import Literal

import numpy as np

from counterdoor.detectors.base import DetectorBase, Evidence, Need
from counterdoor.engine import DEFAULT, Engine


class Oracle(DetectorBase):
    """The true poison flags: what a perfect detector would contribute; in an ablation only."""

    name: Literal["oracle"] = "oracle"

    @property
    def needs(self) -> frozenset[Need]:
        """No net."""
        return frozenset()

    @property
    def needs_truth(self) -> bool:
        """Nothing else."""
        return True

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """1 for a poisoned sample, else 0; see :class:`DetectorBase`.

        Raises:
            ValueError: if the truth is withheld, as from every defender.
        """
        if evidence.is_poisoned is None:
            raise ValueError("detector 'oracle' looks at the poison flags, which it is not given")
        return evidence.is_poisoned.astype(np.float64)
