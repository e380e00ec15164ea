"""AGPD: in a target class, logits depend on activations in two different ways."""

from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from counterdoor.activations import activation_gradients, layer_names
from counterdoor.detectors.base import DetectorBase, Evidence, Need, check_trusted, present
from counterdoor.engine import DEFAULT, Engine
from counterdoor.training import predict_classes

ROUNDS = 20
"""The poison's direction is looked for in at most so many rounds."""


class AGPD(DetectorBase):
    """Directions of activation gradients: unlike the trusted ones, like the poison's.

    For every layer but the last, g is the gradient of a sample's labelled logit with respect to
    what the layer gives (its mean over places), and only its direction counts. In each
    class the trusted samples' mean gradient is the clean direction, and the sample least like
    it a first guess of the poison's. A sample's closeness to the poison is
    (1 - cos(g, clean)) / ((1 - cos(g, clean)) + (1 - cos(g, poison))). So far the paper.

    The paper takes samples away by it, round by round, until the distribution of the rest
    settles, and only in classes that it flags. Here every sample needs a score that is
    comparable over classes: the poison's direction is refined until it is the mean of
    the untrusted samples that are closer to it than to the clean one, and the
    closeness is weighted with how strange the class is, in one of two ways.

    ``weight`` "dispersion" follows the paper. The class's dispersion is the root mean square of
    cos(g, clean) - cos(g, poison), and one layer is looked at: that in which one class's
    dispersion is most unusual (in units of 1.4826 times the median absolute deviation of
    all classes), or, if none is above ``anomaly``, as when every class is a target, that in
    which most classes' is above ``dispersion``. (The authors' code looks for the latter in three
    late layers alone.) In small nets the dispersion of clean classes differs
    so much that the target class may not stand out.

    "trusted", which is not in the paper, compares a class with itself: one minus the ratio of
    the root mean squares of 1 - cos(g, clean) over trusted and over untrusted samples,
    which is near 0 for a clean class however dispersed it is; and the score is the mean over
    all layers, so that none has to be chosen.

    "sure" is the same, but for three things that let :class:`Strange` tell how many to suspect. A
    trusted sample is compared with the mean gradient of the others, since it is closer to a mean
    that it is part of. The trusted samples' mean square is taken at its upper bound, ``errors``
    standard errors above, so that a class is strange only if its few trusted samples cannot be
    the reason. And closeness counts from 1/2, so that scores above 0 are closer to the poison.

    Attributes:
        weight: what the closeness is weighted with.
        errors: for "sure"; the larger, the less strange a class is.
        anomaly: for "dispersion"; e^2 in the authors' code.
        dispersion: for "dispersion"; 0.3 in the authors' code.

    Source: Yuan et al., "Activation Gradient based Poisoned Sample Detection Against
    Backdoor Attacks" (ICLR 2025), and the authors' code in BackdoorBench.
    """

    name: Literal["agpd"] = "agpd"
    weight: Literal["dispersion", "trusted", "sure"] = "trusted"
    errors: float = Field(default=2.0, ge=0)
    anomaly: float = Field(default=7.389, gt=0)
    dispersion: float = Field(default=0.3, ge=0)

    @property
    def signed(self) -> bool:
        """With the weight "sure"."""
        return self.weight == "sure"

    @property
    def needs(self) -> frozenset[Need]:
        """The net trained as usual."""
        return frozenset({"plain"})

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Refuse a ledger with fewer than two trusted samples in a class."""
        check_trusted(ledger["label"].to_numpy(), ledger["trusted"].to_numpy(), num_classes)

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Weighted closeness to the poison; see :class:`DetectorBase`.

        At least 0, but with the weight "sure", which counts from 1/2.

        Raises:
            ValueError: if the net has fewer than two layers, or a class too few trusted samples.
        """
        net = present(evidence.plain_net, "plain")
        images, labels = evidence.images_nchw, evidence.labels
        check_trusted(labels, evidence.trusted, evidence.num_classes)
        layers = layer_names(net, images, engine)[:-1]
        if not layers:
            raise ValueError("this detector needs a net of two layers or more, but it has one")
        right = predict_classes(net, images, engine=engine) == labels
        # A class at a time: the gradients of all layers and samples take much memory.
        closeness = np.zeros((len(layers), len(labels)))
        weights = np.zeros((len(layers), evidence.num_classes))
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            trusted = evidence.trusted[rows]
            slopes = activation_gradients(net, images[rows], labels[rows], layers, engine)
            for layer, slope in enumerate(slopes):
                directions = unit(slope)
                clean = clean_direction(directions, trusted, right[rows])
                closeness[layer, rows] = poison_closeness(directions, clean, ~trusted)
                weights[layer, label] = self._weight(directions, clean, trusted, right[rows])
        if self.weight == "sure":
            closeness -= 0.5
        scores = closeness * weights[:, labels]
        if self.weight != "dispersion":
            return np.asarray(scores.mean(0))
        return np.asarray(scores[self._layer(weights[:, np.unique(labels)])])

    def _weight(
        self, directions: np.ndarray, clean: np.ndarray, trusted: np.ndarray, right: np.ndarray
    ) -> float:
        """How strange a class is in a layer."""
        if self.weight == "dispersion":
            return dispersion(directions, clean)
        if self.weight == "trusted":
            return strangeness(directions, clean, trusted)
        return sure_strangeness(directions, trusted, right, self.errors)

    def _layer(self, found: np.ndarray) -> int:
        """Index of the layer, given dispersions of shape (layers, classes)."""
        unusual = anomalies(found).max(1)
        if unusual.max() > self.anomaly:
            return int(unusual.argmax())
        flagged = (found > self.dispersion).sum(1)
        return max(range(len(found)), key=lambda row: (flagged[row], found[row].mean()))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, d) at length 1, float64; a zero vector stays."""
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))


def clean_direction(directions: np.ndarray, trusted: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean direction of the trusted samples that the net gets right, or of all if there is none."""
    known = trusted & right if (trusted & right).any() else trusted
    return np.asarray(unit(directions[known].mean(0, keepdims=True))[0])


def dispersion(directions: np.ndarray, clean: np.ndarray) -> float:
    """Root mean square of cos(g, clean) - cos(g, p), with p the sample least like ``clean``.

    Args:
        directions: one class's, shape (n, d), of length 1.
        clean: shape (d,), of length 1.
    """
    like_clean = directions @ clean
    like_poison = directions @ directions[like_clean.argmin()]
    return float(np.sqrt(np.mean((like_clean - like_poison) ** 2)))


def strangeness(directions: np.ndarray, clean: np.ndarray, trusted: np.ndarray) -> float:
    """How much further from ``clean`` untrusted samples are than trusted ones, in [0, 1].

    One minus the ratio of the root mean squares of 1 - cos(g, clean), or 0 if the
    trusted ones are as far.

    Args:
        directions: one class's, shape (n, d), of length 1.
        clean: shape (d,), of length 1.
        trusted: bool, shape (n,), at least one.
    """
    far = (1 - directions @ clean) ** 2
    if trusted.all():
        return 0.0
    ratio = (np.sqrt(far[trusted].mean()) + 1e-3) / (np.sqrt(far[~trusted].mean()) + 1e-3)
    return float(max(0.0, 1 - ratio))


def sure_strangeness(
    directions: np.ndarray, trusted: np.ndarray, right: np.ndarray, errors: float
) -> float:
    """How much further from the clean direction untrusted samples surely are, in [0, 1].

    One minus the ratio of the root mean squares of 1 - cos(g, clean), that of the trusted
    samples at its upper bound, or 0. For a trusted sample the clean direction is without its own.

    Args:
        directions: one class's, shape (n, d), of length 1.
        trusted: bool, shape (n,), at least two.
        right: bool, shape (n,), samples that the net gets right.
        errors: the bound is so many standard errors above the trusted samples' mean square.
    """
    if trusted.all():
        return 0.0
    known = trusted & right if (trusted & right).sum() > 1 else trusted
    total = directions[known].sum(0)
    sums = np.where(known[:, None], total - directions, total)
    far = (1 - (directions * unit(sums)).sum(1)) ** 2
    own, others = far[trusted], far[~trusted].mean()
    bound = own.mean() + errors * own.std(ddof=1) / np.sqrt(len(own))
    return float(max(0.0, 1 - np.sqrt((bound + 1e-6) / (others + 1e-6))))


def anomalies(found: np.ndarray) -> np.ndarray:
    """How far each value is above its row's median, in 1.4826 median absolute deviations."""
    excess = found - np.median(found, axis=1, keepdims=True)
    deviation = 1.4826 * np.median(np.abs(excess), axis=1, keepdims=True)
    return np.asarray(np.maximum(excess, 0) / (deviation + 1e-6))


def poison_closeness(
    directions: np.ndarray, clean: np.ndarray, untrusted: np.ndarray
) -> np.ndarray:
    """(1 - cos(g, clean)) / ((1 - cos(g, clean)) + (1 - cos(g, poison))), in [0, 1].

    The poison's direction begins as that of the untrusted sample least like the clean one,
    and becomes the mean of the untrusted samples above 1/2 until these are the same.

    Args:
        directions: one class's, shape (n, d), of length 1.
        clean: shape (d,), of length 1.
        untrusted: bool, shape (n,).
    """
    from_clean = np.maximum(1 - directions @ clean, 0)
    candidates = np.flatnonzero(untrusted)
    members = candidates[[from_clean[candidates].argmax()]] if len(candidates) else [0]
    closeness = from_clean
    for _ in range(ROUNDS):
        poison = unit(directions[members].mean(0, keepdims=True))[0]
        from_poison = np.maximum(1 - directions @ poison, 0)
        closeness = from_clean / (from_clean + from_poison + 1e-12)
        now = np.flatnonzero(untrusted & (closeness > 0.5))
        if not len(now) or np.array_equal(now, members):
            break
        members = now
    return np.asarray(closeness)
