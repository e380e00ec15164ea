"""Everybody in a part of a class that lies apart from the rest of it."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from counterdoor.detectors.base import check_scores
from counterdoor.detectors.parts import valley
from counterdoor.detectors.suspects import Reads, UpToCeiling


class Apart(UpToCeiling):
    """The suspicious part of every class that falls into two with a gap between; may be nobody.

    For scores that say where in its class's two parts a sample lies, above 0 in the suspicious
    one; see :class:`ActivationClustering`. Between the halves of a
    clean class there is no gap: of ten classes of digits and ten of CIFAR-10, in nets of several
    poisoned and clean sets, none had a :func:`valley` below 0.17; one of digits has had 0.119
    since (docs/detection.md).

    Attributes:
        valley: the classes whose valley is at most this fall into two parts, in (0, 1).
    """

    reads: ClassVar[Reads | None] = "in_parts"

    name: Literal["apart"] = "apart"
    valley: float = Field(default=0.12, gt=0, lt=1)

    @property
    def in_words(self) -> str:
        """Limit and ceiling."""
        return f"apart: none, or the parts behind a valley of {self.valley:g}"

    def valleys(self, scores: np.ndarray, labels: np.ndarray) -> dict[int, float]:
        """How empty it is between the two parts of each class; see :func:`valley`.

        Arguments as those of :class:`SuspectRule`.
        """
        check_scores(scores)
        return {int(label): valley(scores[labels == label]) for label in np.unique(labels)}

    def __call__(self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Those in such a part; see :class:`SuspectRule`."""
        found = self.valleys(scores, labels)
        out = [label for label, depth in found.items() if depth <= self.valley]
        suspect = np.isin(labels, out) & (scores > 0) & ~trusted
        return self.highest(scores, suspect, trusted)
