"""What every labeler gives."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import pandas as pd

from counterdoor.component import Component
from counterdoor.engine import DEFAULT, Engine
from counterdoor.stamp import Stamp


class LabelerBase(Component):
    """Gives samples a pseudo-label.

    Attributes:
        needs_features: whether it looks at features learnt without labels.
    """

    needs_features: ClassVar[bool] = False

    @property
    def needs_truth(self) -> bool:
        """Whether it looks at the true labels, so that only an ablation can have it."""
        return False

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Raise ``ValueError`` before any training if the labeler cannot work on this ledger."""

    @abstractmethod
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
        """A pseudo-label for every sample, suspect or not.

        Args:
            images_nchw: uint8, shape (N, C, H, W), in [0, 255].
            ledger: with ``label``, ``trusted`` and ``suspect``.
            num_classes: number of classes K.
            model: the model component of the run.
            stamp: the stamp of the run.
            seed: the run's seed.
            engine: what to run on.
            features: float32, shape (N, D), learnt without labels, for a labeler that
                needs them.
            true_labels: int64, shape (N,), for a labeler with ``needs_truth`` in an
                ablation, ``None`` wherever a defender is at work.

        Returns:
            int64, shape (N,), in 0..K-1, or ``DROPPED`` for a sample that is to
            be left out of the training if it is suspect.
        """
