"""Everybody who is closer to the poison in a class that is surely strange."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from counterdoor.detectors.base import check_scores, flag_highest
from counterdoor.detectors.parts import separation
from counterdoor.detectors.suspects import Reads, SuspectRule, ceiling_count


class Strange(SuspectRule):
    """The scores above 0 in every class in which they lie well above the others; may be nobody.

    For scores that are closeness to a poison times how surely strange the class is, such as
    those of AGPD with the weight "sure".

    Attributes:
        gap: in a strange class the mean of the scores above 0 and that of the others are at least
            so far apart, in (0, 1). On CIFAR-10 classes without poison had 0.003 at most, on
            digits, where 20 samples of a class were trusted, 0.012 in a clean set.
        ceiling: at most this share of the untrusted samples is suspected, the highest scores, in
            (0, 1).
    """

    reads: ClassVar[Reads | None] = "signed"

    name: Literal["strange"] = "strange"
    gap: float = Field(default=0.015, gt=0, lt=1)
    ceiling: float = Field(default=0.3, gt=0, lt=1)

    @property
    def in_words(self) -> str:
        """The gap."""
        return f"strange: none, or those of classes with a gap of {self.gap:g}"

    def at_most(self, eligible: int) -> int:
        """The ceiling; ``ValueError`` if every sample is trusted."""
        return ceiling_count(eligible, self.ceiling)

    def __call__(self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Those of such classes; see :class:`SuspectRule`."""
        check_scores(scores)
        gaps = {
            int(label): separation(scores[(labels == label) & ~trusted])
            for label in np.unique(labels)
        }
        strange = [label for label, gap in gaps.items() if gap >= self.gap]
        suspect = np.isin(labels, strange) & (scores > 0) & ~trusted
        return flag_highest(
            scores, suspect, min(int(suspect.sum()), self.at_most((~trusted).sum()))
        )
