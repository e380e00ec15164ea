"""Everybody who is closer to the poison than trusted samples are, in a class that is strange."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from counterdoor.detectors.base import check_scores
from counterdoor.detectors.parts import separation
from counterdoor.detectors.suspects import Reads, UpToCeiling, rare_among_trusted

LEAST = 5
"""Fewer scores above 0 in a class are outliers: a poison's direction begins as one of them."""


class Strange(UpToCeiling):
    """The scores above 0 in every class where they stand out and are not the trusted's; or nobody.

    For scores that are closeness to a poison times how surely strange the class is, such as
    those of AGPD with the weight "sure". A few odd samples make a class of honest ones strange
    too; but then trusted samples lie above 0 about as often as the others.

    Attributes:
        gap: in a strange class the mean of the scores above 0 and that of the others are at least
            so far apart, in (0, 1). On CIFAR-10, with 48 trusted samples a class, classes without
            poison had 0.008 at most, on digits, with 20, 0.012 in a clean set.
        trusted: and its trusted samples lie above 0 at most so many times as often as the
            untrusted, in [0, 1]. 1 is about what is to be expected without poison.
    """

    reads: ClassVar[Reads | None] = "signed"

    name: Literal["strange"] = "strange"
    gap: float = Field(default=0.015, gt=0, lt=1)
    trusted: float = Field(default=0.5, ge=0, le=1)

    @property
    def in_words(self) -> str:
        """The gap."""
        return f"strange: none, or those of classes with a gap of {self.gap:g}"

    def __call__(self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Those of such classes; see :class:`SuspectRule`."""
        check_scores(scores)
        strange = [
            label
            for label in np.unique(labels)
            if self._is_strange(scores[labels == label], trusted[labels == label])
        ]
        suspect = np.isin(labels, strange) & (scores > 0) & ~trusted
        return self.highest(scores, suspect, trusted)

    def _is_strange(self, scores: np.ndarray, trusted: np.ndarray) -> bool:
        """Whether the scores of a class say that a part of it is poisoned."""
        above, free = scores > 0, ~trusted
        if above[free].sum() < LEAST or separation(scores[free]) < self.gap:
            return False
        return rare_among_trusted(above, trusted, self.trusted)
