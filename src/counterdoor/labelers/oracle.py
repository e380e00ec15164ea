"""The truth, for ablations."""

from typing import Literal

import numpy as np
import pandas as pd

from counterdoor.component import Component
from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import LabelerBase
from counterdoor.stamp import Stamp


class Oracle(LabelerBase):
    """The true labels: what a perfect labeler would contribute; in an ablation only."""

    name: Literal["oracle"] = "oracle"

    @property
    def needs_truth(self) -> bool:
        """Nothing else."""
        return True

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
        """The true label of every sample; see :class:`LabelerBase`.

        Raises:
            ValueError: if the truth is withheld, as from every defender.
        """
        if true_labels is None:
            raise ValueError("labeler 'oracle' looks at the true labels, which it is not given")
        return np.array(true_labels, dtype=np.int64)
