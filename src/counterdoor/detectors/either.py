"""Whom any of several detectors suspects, each by a rule of its own."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator

from counterdoor.component import Config
from counterdoor.detectors.agpd import AGPD
from counterdoor.detectors.apart import Apart
from counterdoor.detectors.base import DetectorBase, Evidence, check_scores
from counterdoor.detectors.clustering import ActivationClustering
from counterdoor.detectors.ensemble import Several, scaled_ranks
from counterdoor.detectors.strange import Strange
from counterdoor.detectors.suspects import Reads, UpToCeiling
from counterdoor.engine import DEFAULT, Engine

if TYPE_CHECKING:
    from counterdoor.detectors import Detector, SuspectRatio


class Opinion(Config):
    """One of several detectors, and whom it suspects.

    Attributes:
        detector: gives every sample a score.
        suspect_ratio: how many of the untrusted samples it suspects: a share in (0, 1), or a
            rule, or the name of one.
    """

    detector: "Detector"
    suspect_ratio: "SuspectRatio"

    @model_validator(mode="after")
    def _understood(self) -> Self:
        self.suspect_ratio.check_reads(self.detector)
        return self


def _two_of_one_net() -> tuple[Opinion, ...]:
    return (
        Opinion(detector=ActivationClustering(), suspect_ratio=Apart()),
        Opinion(detector=AGPD(weight="sure"), suspect_ratio=Strange()),
    )


class Either(Several):
    """Several detectors, each with its own rule: whom one suspects lies above all the others.

    Detectors are blind to different attacks: activation clustering to a warp, gradient
    directions to a handful of poisoned samples. Where each has a rule that may answer nobody,
    what one finds need not be confirmed by the others. :class:`Ensemble` instead mixes ranks,
    and leaves how many to one rule for all.

    Attributes:
        members: the detectors and their rules; no detector of them is of this kind. By default
            two that look at the net trained as usual: activation clustering and AGPD.
    """

    decided: ClassVar[bool] = True

    name: Literal["either"] = "either"
    members: tuple[Opinion, ...] = Field(default_factory=_two_of_one_net, min_length=1)

    @field_validator("members")
    @classmethod
    def _flat(cls, members: tuple[Opinion, ...]) -> tuple[Opinion, ...]:
        if any(isinstance(member.detector, Either) for member in members):
            raise ValueError("a member's detector is itself 'either'; list its members instead")
        return members

    @property
    def parts(self) -> tuple[DetectorBase, ...]:
        """The members' detectors."""
        return tuple(member.detector for member in self.members)

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Raise ``ValueError`` if a member or its rule cannot work on this ledger."""
        super().check(ledger, num_classes)
        for member in self.members:
            member.suspect_ratio.at_most(int((~ledger["trusted"]).sum()))

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """The highest of the members' ranks, in (0, 1] if suspected, else in (-1, 0].

        See :class:`DetectorBase`.

        Raises:
            ValueError: as the members, or if a member's score is not a number.
        """
        heard = [self._heard(each, evidence, seed, engine) for each in self.members]
        return np.asarray(np.max(heard, axis=0))

    @staticmethod
    def _heard(member: Opinion, evidence: Evidence, seed: int, engine: Engine) -> np.ndarray:
        scores = member.detector(evidence, seed=seed, engine=engine)
        suspect = member.suspect_ratio(scores, evidence.labels, evidence.trusted)
        # From 1 / N up, so that even a suspect with the lowest score lies above 0.
        n = len(scores)
        ranks = (1 + (n - 1) * scaled_ranks(scores)) / n
        return np.asarray(np.where(suspect, ranks, ranks - 1))


class SuspectedByAny(UpToCeiling):
    """Whom any member of detector either suspects; may be nobody."""

    reads: ClassVar[Reads | None] = "decided"

    name: Literal["either"] = "either"

    @property
    def in_words(self) -> str:
        """Whose suspects."""
        return "either: none, or those of any of its members"

    def __call__(self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Those above 0; see :class:`SuspectRule`."""
        check_scores(scores)
        return self.highest(scores, (scores > 0) & ~trusted, trusted)
