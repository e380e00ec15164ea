"""AGPD: in a target class, logits depend on activations in two different ways."""

from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from counterdoor.detectors.activations import activation_gradients, layer_names
from counterdoor.detectors.base import DetectorBase, Evidence, Need, check_trusted, present
from counterdoor.engine import DEFAULT, Engine
from counterdoor.training import predict_classes

ROUNDS = 20
"""The poison's direction is looked for in at most so many rounds."""


class AGPD(DetectorBase):
    """Directions of activation gradients: unlike the trusted ones, like the poison's.

    For every layer but the last, g is the gradient of a sample's labelled logit with respect to
    what the layer gives (its mean over places), and only its direction counts. In each class the
    trusted samples' mean gradient is the clean direction, and the sample least like it a
    first guess of the poison's. The class's dispersion is the root mean square of
    cos(g, clean) - cos(g, poison): near 0 where all gradients point one way, large where there
    are two ways. The layer is that in which one class's dispersion is most unusual (in units of
    1.4826 times the median absolute deviation of all classes); if none is above
    ``anomaly``, as when every class is a target, that in which most classes' is above
    ``dispersion``. So far the paper, but that it looks for the latter in three of the late
    layers alone.

    The paper then flags classes, and in each takes samples away by a closeness
    (1 - cos(g, poison)) / ((1 - cos(g, poison)) + (1 - cos(g, clean))), round by round,
    until the distribution of the rest settles. Here every sample needs a score that is
    comparable over classes. The poison's direction is refined until it is the mean of
    the untrusted samples that are closer to it than to the clean one, and the score is
    the class's dispersion times one minus the closeness.

    Attributes:
        anomaly: e^2 in the paper.
        dispersion: 0.3 in the authors' code.

    Source: Yuan et al., "Activation Gradient based Poisoned Sample Detection Against
    Backdoor Attacks" (ICLR 2025), section 4, and the authors' code in BackdoorBench.
    """

    name: Literal["agpd"] = "agpd"
    anomaly: float = Field(default=7.389, gt=0)
    dispersion: float = Field(default=0.3, ge=0)

    @property
    def needs(self) -> frozenset[Need]:
        """The net trained as usual."""
        return frozenset({"plain"})

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Refuse a ledger with a class of which no sample is trusted."""
        labels, trusted = ledger["label"].to_numpy(), ledger["trusted"].to_numpy()
        check_trusted(labels, trusted, num_classes, least=1)

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Dispersion times closeness to the poison; see :class:`DetectorBase`.

        Raises:
            ValueError: if the net has fewer than two layers, or a class no trusted sample.
        """
        net = present(evidence.plain_net, "plain")
        images, labels = evidence.images_nchw, evidence.labels
        check_trusted(labels, evidence.trusted, evidence.num_classes, least=1)
        layers = layer_names(net, images, engine)[:-1]
        if not layers:
            raise ValueError("this detector needs a net of two layers or more, but it has one")
        right = predict_classes(net, images, engine=engine) == labels
        classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]

        def directions(rows: np.ndarray, names: list[str]) -> list[np.ndarray]:
            slopes = activation_gradients(net, images[rows], labels[rows], names, engine)
            return [unit(each) for each in slopes]

        found = np.zeros((len(layers), len(classes)))
        for column, rows in enumerate(classes):
            for row, each in enumerate(directions(rows, layers)):
                clean = clean_direction(each, evidence.trusted[rows], right[rows])
                found[row, column] = dispersion(each, clean)
        chosen = self._layer(found)
        scores = np.zeros(len(labels))
        for column, rows in enumerate(classes):
            (each,) = directions(rows, [layers[chosen]])
            trusted = evidence.trusted[rows]
            clean = clean_direction(each, trusted, right[rows])
            scores[rows] = found[chosen, column] * poison_closeness(each, clean, ~trusted)
        return scores

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
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def clean_direction(directions: np.ndarray, trusted: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean direction of the trusted samples that the net gets right, or of all if there is none."""
    known = trusted & right if (trusted & right).any() else trusted
    return unit(directions[known].mean(0, keepdims=True))[0]


def dispersion(directions: np.ndarray, clean: np.ndarray) -> float:
    """Root mean square of cos(g, clean) - cos(g, p), with p the sample least like ``clean``.

    Args:
        directions: one class's, shape (n, d), of length 1.
        clean: shape (d,), of length 1.
    """
    like_clean = directions @ clean
    like_poison = directions @ directions[like_clean.argmin()]
    return float(np.sqrt(np.mean((like_clean - like_poison) ** 2)))


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
    return closeness
