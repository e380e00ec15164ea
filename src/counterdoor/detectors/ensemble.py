"""Several detectors taken together."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from counterdoor.detectors.base import DetectorBase, Evidence, Need, check_scores
from counterdoor.engine import DEFAULT, Engine

if TYPE_CHECKING:
    from counterdoor.detectors import Detector


class Several(DetectorBase):
    """What detectors made of others have in common."""

    @property
    @abstractmethod
    def parts(self) -> tuple[DetectorBase, ...]:
        """The others."""

    @property
    def needs(self) -> frozenset[Need]:
        """What any of them needs."""
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def needs_truth(self) -> bool:
        """Whether one of them does."""
        return any(part.needs_truth for part in self.parts)

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Raise ``ValueError`` if one of them cannot work on this ledger."""
        for part in self.parts:
            part.check(ledger, num_classes)


class Ensemble(Several):
    """Several detectors: the mean, or the maximum, of each sample's rank by each of them.

    Ranks, because the scales of scores differ from detector to detector.

    Attributes:
        members: the detectors, none of them an ensemble.
        combine: ``mean`` asks for agreement; with ``max`` one detector is enough.
    """

    name: Literal["ensemble"] = "ensemble"
    members: tuple["Detector", ...] = Field(min_length=1)
    combine: Literal["mean", "max"] = "mean"

    @field_validator("members")
    @classmethod
    def _no_ensemble(cls, members: tuple[DetectorBase, ...]) -> tuple[DetectorBase, ...]:
        if any(isinstance(member, Ensemble) for member in members):
            raise ValueError("a member is itself an ensemble; list its members in its place")
        return members

    @property
    def parts(self) -> tuple[DetectorBase, ...]:
        """The members."""
        return self.members

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Combined ranks in [0, 1]; see :class:`DetectorBase`.

        Raises:
            ValueError: as the members, or if a member's score is not a number.
        """
        ranks = np.stack(
            [scaled_ranks(member(evidence, seed=seed, engine=engine)) for member in self.members]
        )
        combined: np.ndarray = ranks.mean(0) if self.combine == "mean" else ranks.max(0)
        return combined


def scaled_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 0 (lowest) to 1 (highest), float64; equal scores have their mean rank.

    Args:
        scores: float64, shape (N,).

    Raises:
        ValueError: if a score is not a number.
    """
    from scipy.stats import rankdata

    check_scores(scores)
    ranks: np.ndarray = (rankdata(scores) - 1) / max(len(scores) - 1, 1)
    return ranks
