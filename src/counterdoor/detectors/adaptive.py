"""As many suspects as stand out, which may be nobody."""

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from counterdoor.detectors.base import check_scores
from counterdoor.detectors.suspects import UpToCeiling

TOP, VERY_TOP = 0.01, 0.0005
"""Shares of the other classes' samples between which a class is looked at for a plateau."""
LEAST_SLOPE = 0.2
"""How fast a clean class thins out there at least: its share falls as (0.0005 / 0.01) ** 0.2."""


class Adaptive(UpToCeiling):
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
      trusted samples have to agree: of them, at most a quarter of the share may lie there.

    The suspects of a class that stands out lie above the threshold that sets it apart
    most: the divergence, from Bernoulli(q) to Bernoulli(p), of the share p of its untrusted
    samples above it from that of its trusted samples or of the other classes, whichever q is
    larger (Berk and Jones, 1979). The classes that do not stand out are then tested together,
    against their trusted samples: an attack with several target classes is too thin in each.

    A detector that scores trusted samples otherwise than it would have, had they been
    untrusted, makes the first test void.

    Attributes:
        floor: a smaller share of the untrusted samples than this is nobody, in [0, 1).
        level: chance to suspect somebody in clean data, by the first test, in (0, 1).
    """

    name: Literal["adaptive"] = "adaptive"
    floor: float = Field(default=0.002, ge=0, lt=1)
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

    def chances(
        self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray
    ) -> dict[int, float]:
        """For each class the chance that a clean one stands out as much, by the stronger test.

        Arguments as those of :class:`SuspectRule`. Not corrected for the number of classes.
        """
        check_scores(scores)
        return {
            int(label): self._stands_out(scores, labels == label, trusted)
            for label in np.unique(labels)
        }

    def best_chances(
        self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray, share: float
    ) -> dict[int, float]:
        """As :meth:`chances`, had a part of each class stood out as clearly as it can.

        What is large here cannot be told from these samples: they are too few. One class at
        a time has the highest untrusted scores, so many as ``share`` of the class, put above
        all others.
        """
        check_scores(scores)
        told = {}
        for label in np.unique(labels):
            own, raised = labels == label, scores.astype(np.float64)
            untrusted = np.flatnonzero(own & ~trusted)
            part = untrusted[np.argsort(scores[untrusted])[::-1][: int(share * own.sum())]]
            raised[part] += 1.0 + np.ptp(scores)
            told[int(label)] = self._stands_out(raised, own, trusted)
        return told

    def _stands_out(self, scores: np.ndarray, own: np.ndarray, trusted: np.ndarray) -> float:
        parts = scores[own & ~trusted], scores[own & trusted], scores[~own]
        return min(_chance(*parts[:2]), _plateau(*parts))

    def __call__(self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Those that stand out; see :class:`SuspectRule`."""
        eligible, chances = ~trusted, self.chances(scores, labels, trusted)
        level = self.level / (len(chances) + 1)
        rest, suspect = np.ones((2, len(scores)), dtype=bool)
        suspect[:] = False
        for label, chance in chances.items():
            if chance < level:
                own = labels == label
                untrusted, known = scores[own & eligible], scores[own & trusted]
                limit = _threshold(untrusted, known, scores[~own])
                suspect |= own & eligible & (scores >= limit)
                rest &= ~own
        untrusted, known = scores[rest & eligible], scores[rest & trusted]
        if _chance(untrusted, known) < level:
            suspect |= rest & eligible & (scores >= _threshold(untrusted, known))
        if suspect.sum() < self.floor * eligible.sum():
            return np.zeros(len(scores), dtype=bool)
        return self.highest(scores, suspect, trusted)


def _plateau(untrusted: np.ndarray, trusted: np.ndarray, others: np.ndarray) -> float:
    """The chance of the second test; 1 if the trusted samples do not agree."""
    top, very_top = (max(1, round(share * len(others))) for share in (TOP, VERY_TOP))
    if top == very_top:
        return 1.0  # too few samples to tell a plateau
    limits = np.sort(others)[[-top, -very_top]]
    high, highest = ((untrusted > limit).sum() for limit in limits)
    agree = _rate(trusted > limits[1]) <= _rate(untrusted > limits[1]) / 4
    return _plateau_chance(high, highest, very_top / top) if agree else 1.0


def _rate(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else 0.0


def _threshold(untrusted: np.ndarray, *references: np.ndarray) -> float:
    """The score that sets the untrusted apart most from all references."""
    from scipy.special import rel_entr

    candidates = np.unique(untrusted)[::-1]  # of equals, the highest is the first
    shares = [_shares(reference, candidates) for reference in references]
    own, known = _shares(untrusted, candidates), np.max(shares, axis=0)
    known = np.maximum(known, 0.5 / (max(map(len, references)) + 1))
    divergence = np.where(own > known, rel_entr(own, known) + rel_entr(1 - own, 1 - known), -1)
    return float(candidates[np.argmax(divergence)])


def _shares(scores: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Share of the scores that are at least each limit; 0 of none."""
    above = len(scores) - np.searchsorted(np.sort(scores), limits, side="left")
    return np.asarray(above / max(len(scores), 1))


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


def _plateau_chance(high: int, highest: int, ratio: float) -> float:
    """Chance that of so many at the top so many are at the very top, a ratio of it in others.

    Of a class that thins out as slowly as a clean one can.
    """
    from scipy.stats import binom

    return float(binom.sf(highest - 1, high, ratio**LEAST_SLOPE))
