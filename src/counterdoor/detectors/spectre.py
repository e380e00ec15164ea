"""SPECTRE: poisoned samples stand out once clean representations are whitened."""

from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from counterdoor.activations import Depth, representations
from counterdoor.detectors.base import DetectorBase, Evidence, Need, check_trusted, present
from counterdoor.engine import DEFAULT, Engine
from counterdoor.robust import inverse_root, principal_axes, trim, within_classes

MOST_COMPONENTS = 100
"""The largest k that is tried, as in the authors' code."""
SAMPLES_PER_COMPONENT = 5
"""So many samples there have to be for every component."""


class SPECTRE(DetectorBase):
    """Robust covariance and quantum entropy score of each class's representations.

    For every class: the representations (what goes into the last layer of the net) in
    their k leading principal components, whitened by a mean and a covariance that poison
    does not sway, give x and their covariance Sigma'. The score is x^T M x with
    M = exp(alpha (Sigma' - I) / (||Sigma'||_2 - 1)) / its trace, a matrix exponential. Of the
    k that are tried the one counts whose scores have the largest mean.

    The paper flags the highest scores of a class that is known to be the target. Here
    all classes are scored: M has trace 1, so that a clean sample's score is 1 on average
    in every class, and a poisoned one's as many times larger as its representation lies
    outside what is usual in its class.

    The robust estimate breaks down where much of a class is poison; where a tenth of all
    samples is sent to one of ten classes, half of it is. ``reference`` "trusted" takes mean
    and covariance from the trusted samples instead: the mean of those of the class, and
    the covariance within classes over all of them. With ``layers`` "late" or "all" a
    sample's score is the largest that any layer gives it: a trigger that changes little in the
    last representation may be plain in an early one, as may be noise that is no trigger.
    Neither is in the paper.

    Attributes:
        layers: "last" looks at what goes into the last layer alone, "late" at what the later
            half of the layers gives as well, "all" at all of them.
        reference: where mean and covariance come from.
        share: of a class that is expected to be poison, epsilon; for "robust", which
            leaves out at most twice as many.
        components: k; ``None`` tries 1, 4, 9, … as far as there are samples for it, up
            to 100.
        alpha: sharpness of the quantum entropy score.

    Source: Hayase et al., "SPECTRE: Defending Against Backdoor Attacks Using Robust
    Statistics" (ICML 2021), algorithms 1 to 3, and the authors' code.
    """

    name: Literal["spectre"] = "spectre"
    layers: Depth = "late"
    reference: Literal["robust", "trusted"] = "trusted"
    share: float = Field(default=0.1, gt=0, lt=0.5)
    components: int | None = Field(default=None, ge=1, le=10**4)
    alpha: float = Field(default=4.0, gt=0, le=100)

    @property
    def needs(self) -> frozenset[Need]:
        """The net trained as usual."""
        return frozenset({"plain"})

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Refuse a ledger with fewer than two trusted samples in a class, if they are needed."""
        if self.reference == "trusted":
            check_trusted(ledger["label"].to_numpy(), ledger["trusted"].to_numpy(), num_classes)

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Quantum entropy scores; see :class:`DetectorBase`.

        Raises:
            ValueError: if the net has no layer, or a class too few trusted samples.
        """
        net = present(evidence.plain_net, "plain")
        labels, trusted = evidence.labels, evidence.trusted
        if self.reference == "trusted":
            check_trusted(labels, trusted, evidence.num_classes)
        looked_at = representations(net, evidence.images_nchw, self.layers, engine)
        found = [self._scores(each, labels, trusted) for each in looked_at]
        return np.asarray(np.max(found, axis=0))

    def _scores(self, points: np.ndarray, labels: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Every sample's score in one layer."""
        spread = within_classes(points[trusted], labels[trusted])
        scores = np.zeros(len(points))
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            scores[rows] = self._class_scores(points[rows], trusted[rows], spread)
        return scores

    def _class_scores(
        self, points: np.ndarray, trusted: np.ndarray, spread: np.ndarray
    ) -> np.ndarray:
        """Scores of one class, of the k that gives the largest mean."""
        n = len(spread) if self.reference == "trusted" else len(points)
        most = self.components or min(MOST_COMPONENTS, n // SAMPLES_PER_COMPONENT)
        axes = principal_axes(points, max(1, most))
        best = np.zeros(len(points))
        if not axes.shape[1] or (self.reference == "trusted" and not spread.any()):
            return best
        for k in [self.components] if self.components else squares(axes.shape[1]):
            whiten = self._trusted if self.reference == "trusted" else self._robust
            basis = axes[:, :k]
            white = whiten(points @ basis, trusted, spread @ basis)
            scores = quantum_entropy_scores(white, self.alpha)
            if scores.mean() > best.mean():
                best = scores
        return best

    def _robust(self, points: np.ndarray, _trusted: np.ndarray, _spread: np.ndarray) -> np.ndarray:
        """Whitened by the mean and covariance of the points that a filter leaves."""
        limit = round(2 * self.share * len(points))
        kept = points[trim(points - points.mean(0), self.share, limit)]
        centre = kept.mean(0)
        covariance = (kept - centre).T @ (kept - centre) / len(kept)
        return np.asarray((points - centre) @ inverse_root(covariance))

    def _trusted(self, points: np.ndarray, trusted: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Whitened by the trusted points' mean and the covariance within classes."""
        from sklearn.covariance import ledoit_wolf

        covariance, _ = ledoit_wolf(spread, assume_centered=True)
        return np.asarray((points - points[trusted].mean(0)) @ inverse_root(covariance))


def quantum_entropy_scores(white: np.ndarray, alpha: float) -> np.ndarray:
    """x^T M x for every row x, with M = exp(alpha (S - I) / (||S||_2 - 1)) / trace.

    Where no direction has more variance than 1, M is I / k.

    Args:
        white: float64, shape (n, k); S is its covariance.
        alpha: the sharpness; M is all but the leading direction for a large one.

    Returns:
        float64, shape (n,), at least 0.

    Source: SPECTRE, algorithm 3 (QUE scores, after Dong, Hopkins and Li, NeurIPS 2019).
    """
    from scipy.linalg import expm

    identity = np.eye(white.shape[1])
    centred = white - white.mean(0)
    excess = centred.T @ centred / len(white) - identity
    widest = np.linalg.norm(excess + identity, 2) - 1
    weights = expm(alpha * excess / widest) if widest > 1e-9 else identity
    return np.asarray(((white @ weights) * white).sum(1) / np.trace(weights))


def squares(most: int) -> list[int]:
    """1, 4, 9, … up to ``most``."""
    return [k * k for k in range(1, int(most**0.5) + 1)]
