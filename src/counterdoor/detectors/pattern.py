"""Who carries a pattern that a group has in common and hardly anybody else has a part of."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from counterdoor.detectors.base import DetectorBase, Evidence, Need, check_scores, present
from counterdoor.detectors.suspects import Reads, UpToCeiling, rare_among_trusted
from counterdoor.engine import DEFAULT, Engine
from counterdoor.training import predict_classes

STEPS = 30
"""A group is refined at most so many times."""

FIRST = 0.03
"""Share of the samples, those with the most of it, that a pattern is first told from."""

LEAST = 5
"""Fewer carriers are a coincidence."""

_AT_A_TIME = 1000


class Carriers(UpToCeiling):
    """Those who carry more than half of a pattern, if that is clear; or nobody.

    It is clear if they are a minority, next to nobody carries about half, and the trusted samples,
    which nobody has poisoned, do not carry it.

    Attributes:
        between: so many at most, for each who carries it, carry from a quarter to three quarters
            of it, in (0, 1). On 10,000 images of CIFAR-10 there were 0 to 0.15 around a trigger,
            and 0.6 without one, where half of the samples carry half of something.
        trusted: trusted samples carry it at most so many times as often as the others, in [0, 1].
    """

    reads: ClassVar[Reads | None] = "carried"

    name: Literal["carriers"] = "carriers"
    between: float = Field(default=0.25, gt=0, lt=1)
    trusted: float = Field(default=0.1, ge=0, le=1)

    @property
    def in_words(self) -> str:
        """The rule."""
        return "carriers: none, or those of a pattern shared in full"

    def is_clear(self, carried: np.ndarray, trusted: np.ndarray) -> bool:
        """Whether there is a pattern; ``carried`` float64 and ``trusted`` bool, shape (N,)."""
        carriers, free = carried > 0.5, ~trusted
        if carriers[free].sum() < LEAST or carriers[free].mean() > 0.5:
            return False
        if between(carried[free]) > self.between:
            return False
        return rare_among_trusted(carriers, trusted, self.trusted)

    def __call__(self, scores: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Those above 0.5; see :class:`SuspectRule`."""
        check_scores(scores)
        found = (scores > 0.5) & ~trusted & self.is_clear(scores, trusted)
        return self.highest(scores, found, trusted)


class SharedPattern(DetectorBase):
    """How much of a group's common pattern an image carries: 1 who has it, 0 who has not.

    A patch, a blended picture or stripes add the same pattern to all poisoned images. The mean
    image of a group in which some are poisoned differs from that of all others by a part of
    the pattern, and by what the group's natural images look like. Natural images are smooth:
    between neighbouring pixels hardly anything of the latter is left. So a pattern d is measured
    in differences G of neighbours: an image x carries <G(x - m), G d> / <G d, G d> of it, with m
    the mean image of those outside the group. The group then becomes those that carry more than
    half of what its carriers do on average, and so on until it stays. Around a trigger it
    closes: all who carry it, nobody else, and nobody in between. In clean images it does not.

    It starts from every class, in which an all-to-one attacker's samples are dense, and from the
    samples that a net trained as usual gets wrong: it contradicts the labels of poisoned
    samples whose trigger it has not learnt, as all-to-all's at a small ratio. Of the groups that
    are clear to :class:`Carriers`, with its defaults, all are scored, else the one with the
    fewest in between.

    Blind to triggers that differ from image to image: a warp, input-aware ones.

    Source: ours.
    """

    carried: ClassVar[bool] = True

    name: Literal["pattern"] = "pattern"

    @property
    def needs(self) -> frozenset[Need]:
        """The net trained as usual."""
        return frozenset({"plain"})

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """How much of the pattern each image carries; see :class:`DetectorBase`.

        About 1 for who carries it and 0 for who does not, if there is one; else anything.
        """
        net = present(evidence.plain_net, "plain")
        images, labels, trusted = evidence.images_nchw, evidence.labels, evidence.trusted
        starts = [labels == label for label in np.unique(labels)]
        starts.append(predict_classes(net, images, engine=engine) != labels)
        groups = [start & ~trusted for start in starts]
        groups = [group for group in groups if 0 < group.sum() < len(group)]
        if not groups:
            return np.zeros(len(labels))
        carried = refined(images, np.stack(groups), trusted)
        clear = [Carriers().is_clear(each, trusted) for each in carried]
        if any(clear):
            return np.asarray(carried[clear].max(0))
        return np.asarray(carried[np.argmin([between(each[~trusted]) for each in carried])])


def between(carried: np.ndarray) -> float:
    """How many carry about half of a pattern, for each who carries it; infinite if nobody does."""
    carriers = (carried > 0.5).sum()
    return float(((carried > 0.25) & (carried < 0.75)).sum() / carriers) if carriers else np.inf


def refined(images_nchw: np.ndarray, groups: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """How much of each group's pattern every image carries once the group does not change any more.

    Args:
        images_nchw: uint8, shape (N, C, H, W).
        groups: bool, shape (G, N), where each starts; neither empty nor everybody.
        trusted: bool, shape (N,), who never belongs to a group.

    Returns:
        float64, shape (G, N), 1 on average over the untrusted who carry more than half.
    """
    total = _sums(images_nchw, np.ones((1, len(images_nchw)), dtype=bool))
    carried = np.zeros(groups.shape)
    moving = np.arange(len(groups))
    for step in range(STEPS):
        found = _carried(images_nchw, groups[moving], total)
        for row, each in zip(moving, found, strict=True):
            start = max(0.5, float(np.quantile(each, 1 - FIRST))) if step == 0 else 0.5
            carried[row] = _in_units_of_carriers(each, start, trusted)
        before, groups = groups, (carried > 0.5) & ~trusted
        moving = np.flatnonzero((groups != before).any(1) & groups.any(1))
        if not len(moving):
            break
    return carried


def _in_units_of_carriers(carried: np.ndarray, start: float, trusted: np.ndarray) -> np.ndarray:
    """In units of the mean of those above half of that mean, found from those above ``start``."""
    free = carried[~trusted]
    above = free > start
    for _ in range(STEPS):
        if not above.any():
            return np.zeros_like(carried)
        middle = float(free[above].mean()) / 2
        again = free > middle
        if (again == above).all():
            break
        above = again
    return np.asarray(carried / (2 * middle))


def _carried(images_nchw: np.ndarray, groups: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Of each group's pattern, in units of the group's mean; float64, shape (G, N)."""
    n, counts = len(images_nchw), groups.sum(1)[:, None]
    sums = _sums(images_nchw, groups)
    others = (total - sums) / (n - counts)
    pattern = (sums / counts - others).reshape(len(groups), *images_nchw.shape[1:])
    weights = neighbour_differences(pattern).reshape(len(groups), -1)
    length = (weights * pattern.reshape(len(groups), -1)).sum(1)
    length = np.where(length > 0, length, np.inf)
    found = np.empty(groups.shape)
    for start in range(0, n, _AT_A_TIME):
        part = images_nchw[start : start + _AT_A_TIME].reshape(-1, weights.shape[1])
        found[:, start : start + _AT_A_TIME] = weights @ part.T.astype(np.float64)
    return np.asarray((found - (weights * others).sum(1)[:, None]) / length[:, None])


def _sums(images_nchw: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The sum of each group's images, float64, shape (G, C * H * W)."""
    pixels = int(np.prod(images_nchw.shape[1:]))
    sums = np.zeros((len(groups), pixels))
    for start in range(0, len(images_nchw), _AT_A_TIME):
        rows = slice(start, start + _AT_A_TIME)
        part = images_nchw[rows].reshape(-1, pixels).astype(np.float64)
        sums += groups[:, rows].astype(np.float64) @ part
    return sums


def neighbour_differences(patterns: np.ndarray) -> np.ndarray:
    """G'G of patterns (n, C, H, W): each pixel's differences from its neighbours, added up."""
    edged = np.pad(patterns, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    around = edged[..., :-2, 1:-1] + edged[..., 2:, 1:-1] + edged[..., 1:-1, :-2]
    return np.asarray(4 * patterns - around - edged[..., 1:-1, 2:])
