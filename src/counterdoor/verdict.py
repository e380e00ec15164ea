"""Is there evidence of poisoning? An answer with its reasons, from the scores alone."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from counterdoor.component import Config
from counterdoor.detectors import Adaptive, Apart
from counterdoor.duplicates import Duplicates
from counterdoor.names import shown

Answer = Literal["evidence", "undecided", "no evidence"]

WORDS: dict[Answer, str] = {
    "evidence": "There is evidence of poisoning.",
    "undecided": "Undecided whether there is poisoning.",
    "no evidence": "There is no evidence of poisoning.",
}


TOLD = 3
"""Of pictures that are there under two labels, so many are named in the reasons."""


class Judge(Config):
    """When a data set counts as poisoned: if a class stands out, whatever rule chose the suspects.

    Scores that tell where samples lie in the two parts of their class are judged by the gap
    between these, as by :class:`~counterdoor.detectors.Apart`; the emptiest decides. Of other
    scores the classes are tested as by :class:`~counterdoor.detectors.Adaptive`; the smallest
    chance, times the number of classes, decides.

    Attributes:
        gap_below: a valley at most so high is evidence of poisoning, in (0, 1).
        no_gap_above: a higher one is no evidence; what lies between is undecided.
        class_size: smaller classes cannot show a gap.
        evidence_below: a smaller chance is evidence of poisoning, in (0, 1).
        none_above: a larger chance is no evidence, in [0, 1]; what lies between is undecided.
        share: of a class, in (0, 1]. If so large a part of it stood out as clearly as it can
            and that would still be no evidence, the class has too few samples. Once most
            samples are of such classes, their silence is no answer: undecided.
    """

    gap_below: float = Field(default=0.12, gt=0, lt=1)
    no_gap_above: float = Field(default=0.15, gt=0, le=1)
    class_size: int = Field(default=200, ge=1)
    evidence_below: float = Field(default=0.01, gt=0, lt=1)
    none_above: float = Field(default=0.05, ge=0, le=1)
    share: float = Field(default=0.2, gt=0, le=1)

    def __call__(
        self, ledger: pd.DataFrame, class_names: Sequence[str], *, in_parts: bool = False
    ) -> "Verdict":
        """The verdict on a scored ledger.

        Args:
            ledger: with ``label``, ``trusted``, ``score`` and ``suspect``.
            class_names: one name a class.
            in_parts: whether scores tell where samples lie in the parts of their class.
        """
        if ledger["score"].nunique() < 2:
            return unjudged("Nobody was scored, so nobody can stand out.")
        if in_parts:
            return self._of_gaps(ledger, class_names)
        score, label, trusted = (ledger[name].to_numpy() for name in ("score", "label", "trusted"))
        chances = Adaptive().chances(score, label, trusted)
        corrected = {each: min(1.0, chance * len(chances)) for each, chance in chances.items()}
        worst = min(corrected, key=lambda each: corrected[each])
        chance = corrected[worst]
        answer: Answer = "no evidence"
        if chance < self.evidence_below:
            answer = "evidence"
        elif chance <= self.none_above:
            answer = "undecided"
        suspected = ledger.loc[ledger["suspect"], "label"].value_counts().to_dict()
        sizes = ledger["label"].value_counts().to_dict()
        best = Adaptive().best_chances(score, label, trusted, self.share)
        small = [each for each in best if best[each] * len(best) >= self.evidence_below]
        blind = sum(sizes[each] for each in small) > len(ledger) / 2
        if blind and answer == "no evidence":
            answer = "undecided"
        out = sorted(each for each, value in corrected.items() if value < self.evidence_below)
        reasons = [
            f"In class {class_names[each]!r} a part of the samples is learnt apart from the rest: "
            f"that a clean class looks so has a chance of {corrected[each]:.1g}. "
            f"{suspected.get(each, 0)} of its {sizes[each]} samples are suspected."
            for each in out
        ]
        if not out:
            reasons = [
                "No class stands out more than a clean one may: the one that does most is "
                f"{class_names[worst]!r}, with a chance of {chance:.1g}."
            ]
        if small and not out:
            reasons.append(_too_few(small, len(best), class_names))
        suspects = int(ledger["suspect"].sum())
        if suspects and out:
            own = sum(suspected.get(each, 0) for each in out)
            reasons.append(
                f"{own / suspects:.0%} of the {suspects} suspects carry the label of such a class."
            )
        return Verdict(answer=answer, chance=chance, suspects=suspects, reasons=reasons)

    def _of_gaps(self, ledger: pd.DataFrame, class_names: Sequence[str]) -> "Verdict":
        score, label = ledger["score"].to_numpy(), ledger["label"].to_numpy()
        valleys = Apart().valleys(score, label)
        lowest = min(valleys, key=lambda each: valleys[each])
        answer: Answer = "no evidence"
        if valleys[lowest] <= self.gap_below:
            answer = "evidence"
        elif valleys[lowest] <= self.no_gap_above:
            answer = "undecided"
        sizes = ledger["label"].value_counts().to_dict()
        small = [each for each in valleys if sizes[each] < self.class_size]
        if answer == "no evidence" and sum(sizes[each] for each in small) > len(ledger) / 2:
            answer = "undecided"
        suspected = ledger.loc[ledger["suspect"], "label"].value_counts().to_dict()
        reasons = [
            f"Class {class_names[each]!r} falls into two parts in what the net makes of it: "
            f"between them lie {depth:.1%} as many samples as in the smaller one (clean classes: "
            f"17% or more). {suspected.get(each, 0)} of its {sizes[each]} samples are suspected."
            for each, depth in sorted(valleys.items(), key=lambda each: each[1])
            if depth <= self.no_gap_above
        ]
        if not reasons:
            reasons = [
                "No class falls into two parts with a gap between: the one that does most is "
                f"{class_names[lowest]!r}, and between its halves lie {valleys[lowest]:.0%} as "
                "many samples as in the smaller one."
            ]
            if valleys[lowest] == float("inf"):
                reasons = ["No class has two parts of which each has enough samples."]
            if small:
                reasons.append(_too_few(small, len(valleys), class_names))
        return Verdict(
            answer=answer,
            chance=None,
            valley=None if valleys[lowest] == float("inf") else valleys[lowest],
            suspects=int(ledger["suspect"].sum()),
            reasons=reasons,
        )


def _too_few(small: Sequence[int], classes: int, class_names: Sequence[str]) -> str:
    names = ", ".join(repr(class_names[each]) for each in small[:5]) + ", …" * (len(small) > 5)
    return (
        f"Too few samples in {len(small)} of {classes} classes ({names}): that a part of one stood "
        "out could still be chance."
    )


class Verdict(Config):
    """An answer with its reasons.

    Attributes:
        answer: ``evidence``, ``undecided`` or ``no evidence``.
        chance: that clean data looks so at least, in [0, 1], if the tests' assumptions hold;
            ``None`` where gaps were judged, or nothing could be tested.
        valley: of the class that falls into two parts most clearly, as many samples between
            them as a share of the smaller; ``None`` where gaps were not judged.
        suspects: how many samples are suspected.
        reasons: in words and numbers.
        changed_suspects: share of the suspects whose class is another one under the stamp, in
            [0, 1]; ``None`` if there is none, or the net has no stamp.
        changed_others: the same of all others.
        conflicts: how many pictures are there under more than one label; the answer does not
            depend on it.
        repeats: how many are there more than once under one.
    """

    answer: Answer
    chance: float | None
    suspects: int = Field(ge=0, le=2**53)
    reasons: list[str]
    valley: float | None = None
    changed_suspects: float | None = None
    changed_others: float | None = None
    conflicts: int = 0
    repeats: int = 0

    def under_the_stamp(
        self, *, changed_suspects: float | None = None, changed_others: float | None = None
    ) -> "Verdict":
        """The same with what the stamp changes, in numbers and as one more reason.

        The answer does not depend on it. Without a share there is nothing to tell.
        """
        told = [
            f"{share:.1%} of {whom}"
            for share, whom in ((changed_suspects, "the suspects"), (changed_others, "the others"))
            if share is not None
        ]
        if not told:
            return self
        reason = f"Under the stamp the hardened net takes {' and '.join(told)} for another class."
        changed = {"changed_suspects": changed_suspects, "changed_others": changed_others}
        return self.model_copy(update={"reasons": [*self.reasons, reason], **changed})

    def with_duplicates(
        self,
        found: Duplicates,
        files: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
    ) -> "Verdict":
        """The same with the pictures that are there more than once, counted and as reasons.

        Args:
            found: which these are.
            files: of each row what it was read from.
            labels: of each row.
            class_names: one name a class.
        """
        told = []
        if found.conflicts:
            named = "; ".join(
                " and ".join(
                    f"{shown(files[row])} ({class_names[labels[row]]!r})" for row in rows[:3]
                )
                for rows in found.conflicts[:TOLD]
            )
            several = len(found.conflicts) > 1
            told.append(
                f"{len(found.conflicts)} picture{'s are' if several else ' is'} there under more "
                f"than one label, pixel for pixel, so that labels are wrong: {named}"
                f"{'; …' if len(found.conflicts) > TOLD else ''}. The page of suspects shows them."
            )
        if found.repeats:
            several = len(found.repeats) > 1
            told.append(
                f"{len(found.repeats)} picture{'s are' if several else ' is'} there more than once "
                "under the same label."
            )
        counts = {"conflicts": len(found.conflicts), "repeats": len(found.repeats)}
        return self.model_copy(update={"reasons": [*self.reasons, *told], **counts})

    @property
    def words(self) -> str:
        """The answer as a sentence."""
        return WORDS[self.answer]


def unjudged(reason: str, suspects: int = 0) -> Verdict:
    """Undecided, since nothing could be tested."""
    return Verdict(answer="undecided", chance=None, suspects=suspects, reasons=[reason])
