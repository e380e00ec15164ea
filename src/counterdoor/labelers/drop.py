"""The obvious alternative: leave the suspects out."""

from typing import Literal

import numpy as np

from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import Case, LabelerBase
from counterdoor.ledger import DROPPED


class Drop(LabelerBase):
    """No pseudo-label at all: suspects are left out of the training, nothing is stamped."""

    name: Literal["drop"] = "drop"

    def __call__(self, case: Case, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """``DROPPED`` for every sample; see :class:`LabelerBase`."""
        return np.full(len(case.ledger), DROPPED, dtype=np.int64)
