"""SCAn: a class whose representations are better described as two groups."""

from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from counterdoor.activations import Depth, representations
from counterdoor.detectors.base import DetectorBase, Evidence, Need, check_trusted, present
from counterdoor.engine import DEFAULT, Engine
from counterdoor.robust import inverse_root, principal_axes, within_classes

ROUNDS = 50
"""The two groups settle in at most so many rounds."""


class SCAn(DetectorBase):
    """Two groups in a class: how much more likely a sample is of the one that trusted ones shun.

    A representation (in its leading principal components) is a mean plus a variation
    that is the same in all classes, normal with covariance S, which the trusted samples
    show. Each class's samples are parted into two groups of that kind, with means m_0 and
    m_1, by turns assigning samples and taking means; m_0 begins as the trusted samples'
    mean, and they stay with it. The score is the log-likelihood ratio
    (d(m_0) - d(m_1)) / 2, where d(m) = (x - m)^T S^-1 (x - m). It is large only where the
    groups lie far apart, measured by S, so that it is comparable over classes and layers;
    a class without poison is parted as well, but its halves lie close together. It is
    also so where most of a class is poison, or where every class is a target.

    With ``layers`` "late" or "all" a sample's score is the largest that any layer gives it:
    a trigger that changes little in the last representation, or that the net has not made
    a backdoor of, may be plain in an early one. So may be noise that is no trigger, such as
    that of WaNet's cover samples. That is not in the paper, nor is a score for a sample; its
    test flags target classes by the gain in likelihood. It estimates S on a clean set by
    expectation maximisation; here it is the shrunk covariance within classes of the
    trusted samples. (Deviations of the last representation's Gram matrix, as in Beatrix, Ma
    et al., NDSS 2023, found less of every attack on the same nets.)

    Attributes:
        layers: "last" looks at what goes into the last layer alone, "late" at what the later
            half of the layers gives as well, "all" at all of them.
        components: how many principal components at most; fewer if there are not
            twice as many trusted samples.

    Source: Tang et al., "Demon in the Variant: Statistical Analysis of DNNs for Robust
    Backdoor Contamination Detection" (USENIX Security 2021), section 4.
    """

    name: Literal["scan"] = "scan"
    layers: Depth = "late"
    components: int = Field(default=32, ge=1, le=10**4)

    @property
    def needs(self) -> frozenset[Need]:
        """The net trained as usual."""
        return frozenset({"plain"})

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Refuse a ledger with fewer than two trusted samples in a class."""
        check_trusted(ledger["label"].to_numpy(), ledger["trusted"].to_numpy(), num_classes)

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Log-likelihood ratios, in nats; see :class:`DetectorBase`.

        Raises:
            ValueError: if the net has no layer, or a class too few trusted samples.
        """
        net = present(evidence.plain_net, "plain")
        labels, trusted = evidence.labels, evidence.trusted
        check_trusted(labels, trusted, evidence.num_classes)
        looked_at = representations(net, evidence.images_nchw, self.layers, engine)
        found = [self._ratios(each, labels, trusted) for each in looked_at]
        return np.asarray(np.max(found, axis=0))

    def _ratios(self, points: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Every sample's ratio in one layer."""
        from sklearn.covariance import ledoit_wolf

        most = max(1, min(self.components, int(trusted.sum()) // 2))
        points = points @ principal_axes(points, most)
        spread = within_classes(points[trusted], labels[trusted])
        ratios = np.zeros(len(points))
        if not spread.any():
            return ratios
        covariance, _ = ledoit_wolf(spread, assume_centered=True)
        white = points @ inverse_root(covariance)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            ratios[rows] = two_groups(white[rows], trusted[rows])
        return ratios


def two_groups(white: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """Log-likelihood ratio of the second of two groups against the first.

    Args:
        white: one class's points, shape (n, k), whose variation in a group is standard normal.
        trusted: bool, shape (n,), those that are of the first group for certain; at least one.

    Returns:
        float64, shape (n,), in nats.
    """
    first = white[trusted].mean(0)
    # Away from the trusted mean in the direction in which the others vary most about it.
    away = white - first
    _, axes = np.linalg.eigh(away.T @ away)
    along = away @ axes[:, -1]
    second = np.zeros(len(white), dtype=bool)
    second[~trusted] = np.abs(along[~trusted]) > np.median(np.abs(along))
    if along[second].sum() < 0:
        along = -along
    second &= along > 0
    ratio = np.zeros(len(white))
    for _ in range(ROUNDS):
        if not second.any():
            break
        means = white[~second].mean(0), white[second].mean(0)
        distances = [((white - mean) ** 2).sum(1) for mean in means]
        ratio = (distances[0] - distances[1]) / 2
        now = (ratio > 0) & ~trusted
        if np.array_equal(now, second):
            break
        second = now
    return ratio
