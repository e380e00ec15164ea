"""How many of the most suspicious samples are suspected."""

from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from counterdoor.component import Component
from counterdoor.detectors.base import (
    DetectorBase,
    flag_highest,
    select_suspects,
    suspect_count,
)

Reads = Literal["in_parts", "signed", "decided", "carried"]
"""Attributes of a detector that say what its scores tell besides an order."""

TELLERS: dict[Reads, tuple[str, str]] = {
    "in_parts": ("where samples lie in the two parts of their class", "detector ac"),
    "signed": ("how much closer to a poison samples are", 'detector agpd with weight "sure"'),
    "decided": ("whom several detectors suspect", "detector either"),
    "carried": ("how much of a pattern samples carry", "detector pattern"),
}
"""What each of them is, and which detector tells it."""


class SuspectRule(Component):
    """Turns scores into suspects.

    Attributes:
        reads: what has to be true of a detector for the rule to understand its scores.
    """

    reads: ClassVar[Reads | None] = None

    def check_reads(self, detector: DetectorBase) -> None:
        """Raise ``ValueError`` if the rule reads off scores what this detector does not tell."""
        if self.reads and not getattr(detector, self.reads):
            told, remedy = TELLERS[self.reads]
            raise ValueError(
                f"suspect_ratio {self.name!r} reads {told}, which detector {detector.name!r} "
                f"does not tell: choose {remedy}, or suspect_ratio adaptive, or a share"
            )

    @property
    @abstractmethod
    def in_words(self) -> str:
        """The rule in a few words."""

    @abstractmethod
    def at_most(self, eligible: int) -> int:
        """How many of so many untrusted samples can become suspects.

        Raises:
            ValueError: if the rule cannot work with so few.
        """

    @abstractmethod
    def __call__(self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Flag the suspects.

        Args:
            scores: float64, shape (N,), higher = more suspicious.
            labels: int64, shape (N,), the labels that the defender was given.
            trusted: bool, shape (N,), verified samples; never suspected.

        Returns:
            bool, shape (N,).

        Raises:
            ValueError: if a score is not a number.
        """


class UpToCeiling(SuspectRule):
    """A rule that looks at the scores, and may answer nobody.

    Attributes:
        ceiling: at most this share of the untrusted samples is suspected, the highest scores, in
            (0, 1).
    """

    ceiling: float = Field(default=0.3, gt=0, lt=1)

    def at_most(self, eligible: int) -> int:
        """The ceiling; ``ValueError`` if every sample is trusted."""
        if not eligible:
            raise ValueError(
                "every sample is trusted: there is nobody to suspect; lower trusted_share"
            )
        return int(self.ceiling * eligible + 1e-9)

    def highest(self, scores: np.ndarray, found: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Flags of those found, or of the highest scores among them if they are too many."""
        most = int(self.ceiling * (~trusted).sum() + 1e-9)
        return flag_highest(scores, found, min(int(found.sum()), most))


def rare_among_trusted(flagged: np.ndarray, trusted: np.ndarray, most: float) -> bool:
    """Whether trusted samples are flagged at most ``most`` times as often as the others.

    Args:
        flagged: bool, shape (N,).
        trusted: bool, shape (N,); if nobody is, the answer is yes.
        most: of the others' share, in [0, 1].
    """
    known = flagged[trusted].mean() if trusted.any() else 0.0
    return bool(known <= most * flagged[~trusted].mean())


class Fixed(SuspectRule):
    """A fixed share of the untrusted samples, the most suspicious ones.

    Source: NAB, section 4.1 (5 % of the training set).

    Attributes:
        ratio: the share, in (0, 1).
    """

    name: Literal["fixed"] = "fixed"
    ratio: float = Field(default=0.05, gt=0, lt=1)

    @property
    def in_words(self) -> str:
        """The share."""
        return f"{self.ratio:g}"

    def at_most(self, eligible: int) -> int:
        """Exactly so many; ``ValueError`` if that is nobody."""
        return suspect_count(eligible, self.ratio)

    def __call__(self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """The highest scores; ``ValueError`` if nobody is selected; see :class:`SuspectRule`."""
        return select_suspects(scores, ~trusted, self.ratio)
