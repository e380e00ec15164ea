"""The obvious alternative: leave the suspects out."""

from typing import Literal

import numpy as np
import pandas as pd

from counterdoor.component import Component
from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import LabelerBase
from counterdoor.ledger import DROPPED
from counterdoor.stamp import Stamp


class Drop(LabelerBase):
    """No pseudo-label at all: suspects are left out of the training, nothing is stamped."""

    name: Literal["drop"] = "drop"

    def __call__(
        self,
        images_nchw: np.ndarray,
        ledger: pd.DataFrame,
        num_classes: int,
        *,
        model: Component,
        stamp: Stamp,
        seed: int,
        engine: Engine = DEFAULT,
        features: np.ndarray | None = None,
        true_labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """``DROPPED`` for every sample; see :class:`LabelerBase`."""
        return np.full(len(ledger), DROPPED, dtype=np.int64)
