"""Activation clustering: a class that falls into two parts in what a layer gives."""

from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from counterdoor.activations import Depth, representations
from counterdoor.detectors.base import DetectorBase, Evidence, Need, check_trusted, present
from counterdoor.detectors.parts import parted, valley
from counterdoor.engine import DEFAULT, Engine
from counterdoor.robust import inverse_root, principal_axes, within_classes

GAP = 0.1
"""A valley with so many samples halves the scores of its class."""
ALIKE = 0.15
"""If the shares of two parts that look honest by their features differ by less, none is told."""
FAR = 1.6
"""A part so many times as remote as the other is not honest, whatever its features look like."""
NEIGHBOURS = 5
"""Samples of other classes whose mean distance says how remote a sample is."""


class ActivationClustering(DetectorBase):
    """Where in its class's two parts a sample lies, in the layer where it is emptiest between them.

    What a layer gives (in its leading principal components) is whitened by the covariance
    within classes, so that a class is about as wide as any other in all directions. Each class
    is parted by 2-means. Along the line between the two means, a sample's score is its distance
    from the middle, in standard deviations within the parts, towards the part that is not
    honest; the more samples lie about the middle, the less it counts. The two halves of a clean
    class touch, with means 3 to 5 deviations apart; a trigger that the net has learnt leaves a
    gap. So scores are comparable over classes and layers, need no trusted sample, and
    :class:`Apart` can tell how many to suspect.

    Which part is honest has to come from elsewhere: with all-to-one poison of 10 % the
    poisoned part of one of ten classes is the larger one. Features tell where labels are wrong,
    unless they show the trigger themselves, as a pattern over the whole image: then the poisoned
    look alike and their class's centre is theirs. Where labels are right, both parts look honest.
    In both cases the honest part is the one less remote from other classes: a trigger leads to
    where no other class is. So a much more remote part is not honest, and else features tell, as
    far as they can.

    The paper clusters the last layer's inputs, reduced by independent components, without
    whitening, and takes the smaller part of a class for poison if it is small or well apart.

    Attributes:
        net: whose layers are looked at: the warm-up's, or one trained as usual.
        layers: "last" looks at what goes into the last layer alone, "late" at what the later
            half of the layers gives as well, "all" at all of them.
        honest: what tells which part is: "trusted", more of the trusted samples lie in it;
            "features", it is less remote, or more of it is nearest to its class's centre in
            features learnt without labels; "larger", it is larger.
        components: how many principal components at most.
        least: smallest share of a class that counts as a part, in (0, 0.5); a few stragglers
            are none.

    Source: Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation
    Clustering" (SafeAI at AAAI 2019); the common covariance is that of SCAn (Tang et al.,
    USENIX Security 2021).
    """

    in_parts: ClassVar[bool] = True

    name: Literal["ac"] = "ac"
    net: Literal["warmup", "plain"] = "plain"
    layers: Depth = "late"
    honest: Literal["trusted", "features", "larger"] = "trusted"
    components: int = Field(default=32, ge=1, le=10**4)
    least: float = Field(default=0.02, gt=0, lt=0.5)

    @property
    def needs(self) -> frozenset[Need]:
        """The net that is looked at, and features if they tell who is honest."""
        return frozenset({self.net, "features"} if self.honest == "features" else {self.net})

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Refuse a ledger with fewer than two trusted samples in a class, if they are needed."""
        if self.honest == "trusted":
            check_trusted(ledger["label"].to_numpy(), ledger["trusted"].to_numpy(), num_classes)

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Signed, weighted distances in standard deviations; see :class:`DetectorBase`.

        Raises:
            ValueError: if the net has no layer, or there are too few trusted samples or no
                features though they are needed.
        """
        own = evidence.warmup_net if self.net == "warmup" else evidence.plain_net
        labels = evidence.labels
        if self.honest == "trusted":
            check_trusted(labels, evidence.trusted, evidence.num_classes)
        looked_at = representations(
            present(own, self.net), evidence.images_nchw, self.layers, engine
        )
        whitened = [whiten(each, labels, self.components) for each in looked_at]
        looks_honest = self._looks_honest(evidence)
        scores = np.zeros(len(labels))
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            places = [parted(each[rows], self.least) for each in whitened]
            layer = min(range(len(places)), key=lambda number: valley(places[number]))
            place, part = places[layer], places[layer] > 0
            weight = GAP / (GAP + min(valley(place), 1.0))
            honest = False
            if part.any() and not part.all():
                ahead = float(looks_honest[rows][part].mean() - looks_honest[rows][~part].mean())
                honest = ahead > 0
                if self.honest == "features":
                    away = remoteness(whitened[layer], labels, label)
                    nearer, farther = sorted((away[part].mean(), away[~part].mean()))
                    if abs(ahead) < ALIKE or farther > FAR * nearer:
                        honest = bool(away[part].mean() < farther)
            scores[rows] = (-1.0 if honest else 1.0) * weight * place
        return scores

    def _looks_honest(self, evidence: Evidence) -> np.ndarray:
        """Flags of which more are set in the honest part of a class."""
        if self.honest == "trusted":
            return evidence.trusted
        if self.honest == "larger":
            return np.zeros(len(evidence.labels), dtype=bool)
        from sklearn.metrics import pairwise_distances_argmin
        from sklearn.preprocessing import normalize

        features = normalize(present(evidence.features, "features").astype(np.float64))
        classes = np.unique(evidence.labels)
        centres = [features[evidence.labels == label].mean(0) for label in classes]
        nearest = classes[pairwise_distances_argmin(features, np.stack(centres))]
        return np.asarray(nearest == evidence.labels)


def whiten(points: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Leading principal components with about unit covariance within classes.

    Args:
        points: float, shape (n, d).
        labels: int64, shape (n,).
        most: how many components at most.

    Returns:
        float64, shape (n, k), the widest component first; k = 0 if all points are equal.
    """
    from sklearn.covariance import ledoit_wolf

    places: np.ndarray = points.astype(np.float64) @ principal_axes(points, most)
    spread = within_classes(places, labels)
    if not spread.any():
        return places[:, :0]
    covariance, _ = ledoit_wolf(spread, assume_centered=True)
    return np.asarray(places @ inverse_root(covariance))


def remoteness(points: np.ndarray, labels: np.ndarray, label: int) -> np.ndarray:
    """How far each sample of a class is from samples of other classes, its five nearest.

    Args:
        points: float, shape (n, k).
        labels: int64, shape (n,).
        label: the class, of m samples.

    Returns:
        Mean distances, float64, shape (m,); 0 if there are too few others.
    """
    from sklearn.neighbors import NearestNeighbors

    own = labels == label
    if (~own).sum() < NEIGHBOURS:
        return np.zeros(int(own.sum()))
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(points[~own])
    distances: np.ndarray = nearest.kneighbors(points[own])[0].mean(axis=1)
    return distances
