"""As many suspects as stand out, which may be nobody."""

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from counterdoor.detectors.base import check_scores, flag_highest
from counterdoor.detectors.suspects import SuspectRule

TOP, VERY_TOP = 0.01, 0.0005
"""Shares of the other classes' samples between which a class is looked at for a plateau."""
LEAST_SLOPE = 0.2
"""How fast a clean class thins out there at least: its share falls as (0.0005 / 0.01) ** 0.2."""


class Adaptive(SuspectRule):
    """The samples that stand out from the trusted ones and from other classes; may be nobody.

    Only the order of scores counts, not their scale. Each class (by the label that its
    samples came with) is tested in two ways, and it stands out if either test says so at
    ``level``, divided by the number of classes and one:

    - *Trusted samples.* In clean data they are exchangeable with the others of their class.
      Of the untrusted samples, k score higher than the r-th highest trusted one; the
      chance of so many has a hypergeometric tail. r is 1, 2, 4, …, with Bonferroni's
      correction.
    - *Plateau.* Where a clean class scores high, it still thins out towards the very top,
      as all classes do. If nearly all of its samples among the top 1 % of the other
      classes' lie above the top 0.05 %, by a binomial test, a part of it is apart. The
      trusted samples have to agree: of them, at most half the share may lie there.

    The suspects of a class that stands out lie above the threshold that sets it apart most:
    the largest difference of the share of its untrusted samples above it and that of its
    trusted samples or of the other classes, whichever is larger. If no class stands out,
    all samples are tested against all trusted ones, as an attack with several target
    classes would leave them.

    A detector that scores trusted samples otherwise than it would have, had they been
    untrusted, makes the first test void.

    Attributes:
        floor: a smaller share of the untrusted samples than this is nobody, in [0, 1).
        ceiling: at most this share is suspected, the highest scores, in (0, 1).
        level: chance to suspect somebody in clean data, by the first test, in (0, 1).
    """

    name: Literal["adaptive"] = "adaptive"
    floor: float = Field(default=0.002, ge=0, lt=1)
    ceiling: float = Field(default=0.3, gt=0, lt=1)
    level: float = Field(default=0.01, gt=0, lt=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.floor > self.ceiling:
            raise ValueError(f"floor {self.floor} is above ceiling {self.ceiling}; lower it")
        return self

    @property
    def in_words(self) -> str:
        """Floor and ceiling."""
        return f"adaptive: none, or {self.floor:g} to {self.ceiling:g}"

    def at_most(self, eligible: int) -> int:
        """The ceiling; ``ValueError`` if every sample is trusted."""
        if not eligible:
            raise ValueError(
                "every sample is trusted: there is nobody to suspect; lower trusted_share"
            )
        return int(self.ceiling * eligible + 1e-9)

    def __call__(self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Those that stand out; see :class:`SuspectRule`."""
        check_scores(scores)
        eligible, classes = ~trusted, np.unique(labels)
        level = self.level / (len(classes) + 1)
        suspect = np.zeros(len(scores), dtype=bool)
        for label in classes:
            own = labels == label
            threshold = _class_threshold(
                scores[own & eligible], scores[own & trusted], scores[~own], level
            )
            suspect |= own & eligible & (scores >= threshold)
        if not suspect.any() and _chance(scores[eligible], scores[trusted]) < level:
            suspect = eligible & (scores >= _threshold(scores[eligible], scores[trusted]))
        if suspect.sum() < self.floor * eligible.sum():
            return np.zeros(len(scores), dtype=bool)
        most = min(int(suspect.sum()), self.at_most(int(eligible.sum())))
        return flag_highest(scores, suspect, most)


def _class_threshold(
    untrusted: np.ndarray, trusted: np.ndarray, others: np.ndarray, level: float
) -> float:
    """Lowest score of a suspect of a class; infinite if the class does not stand out."""
    if not len(untrusted) or not len(others):
        return np.inf
    threshold = _threshold(untrusted, trusted, others)
    if _chance(untrusted, trusted) < level:
        return threshold
    agree = not len(trusted) or _share(trusted, threshold) <= _share(untrusted, threshold) / 2
    return threshold if agree and _plateau_chance(untrusted, others) < level else np.inf


def _share(scores: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """Share of the scores that are at least each threshold; 0 of none."""
    below = np.searchsorted(np.sort(scores), threshold, side="left")
    return np.asarray((len(scores) - below) / max(len(scores), 1))


def _threshold(untrusted: np.ndarray, *references: np.ndarray) -> float:
    """The score above which the untrusted exceed the largest reference's share most."""
    candidates = np.unique(untrusted)
    known = np.max([_share(reference, candidates) for reference in references], axis=0)
    # The first of equal differences from the top, so that a gap below is left out.
    excess = (_share(untrusted, candidates) - known)[::-1]
    return float(candidates[::-1][np.argmax(excess)])


def _chance(untrusted: np.ndarray, trusted: np.ndarray) -> float:
    """Chance, at most, that so many exchangeable samples score above the highest trusted."""
    from scipy.stats import hypergeom

    n, m = len(untrusted), len(trusted)
    if not n or not m:
        return 1.0
    ranks = 2 ** np.arange(int(np.log2(m)) + 1)
    limits = np.sort(trusted)[::-1][ranks - 1]
    above = n - np.searchsorted(np.sort(untrusted), limits, side="right")
    tails = hypergeom.cdf(ranks - 1, n + m, m, above + ranks - 1)
    return float(min(1.0, tails.min() * len(ranks)))


def _plateau_chance(untrusted: np.ndarray, others: np.ndarray) -> float:
    """Chance that a class that thins out as slowly as a clean one can is so much at the top."""
    from scipy.stats import binom

    ranked = np.sort(others)[::-1]
    top, very_top = (max(1, round(share * len(others))) for share in (TOP, VERY_TOP))
    if top == very_top:
        return 1.0  # too few samples to tell
    high = int((untrusted > ranked[top - 1]).sum())
    highest = int((untrusted > ranked[very_top - 1]).sum())
    return float(binom.sf(highest - 1, high, (very_top / top) ** LEAST_SLOPE))
