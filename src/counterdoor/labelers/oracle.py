"""The truth, for ablations."""

from typing import ClassVar, Literal

import numpy as np

from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import Case, LabelerBase


class Oracle(LabelerBase):
    """The true labels: what a perfect labeler would contribute; in an ablation only."""

    needs_truth: ClassVar[bool] = True

    name: Literal["oracle"] = "oracle"

    def __call__(self, case: Case, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """The true label of every sample; see :class:`LabelerBase`.

        Raises:
            ValueError: if the truth is withheld, as from every defender.
        """
        if case.true_labels is None:
            raise ValueError("labeler 'oracle' looks at the true labels, which it is not given")
        return np.array(case.true_labels, dtype=np.int64)
