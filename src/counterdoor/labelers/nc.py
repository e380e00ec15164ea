"""NC: the nearest centre among the classes, in features that no label has had a part in."""

from typing import Any, ClassVar, Literal

import numpy as np

from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import Case, LabelerBase


class NC(LabelerBase):
    """Nearest centre: the class whose unsuspected samples' mean features are closest.

    It needs no trusted sample. Source: NAB, section 4.2. How features are scaled is not
    published. It looks at all layers that ``features.layers`` keeps; the paper's at the last one.

    Attributes:
        scaling: ``none``; ``unit``, each sample's features to length 1; or
            ``standardise``, each feature to mean 0 and deviation 1.
        distance: ``euclidean``, as in the paper; or ``mahalanobis`` (ours), in which a direction
            counts the less the more the unsuspected samples of the same class differ in it: what
            features learnt in few epochs tell of an image is mostly not its class.
        align: move the suspects' features so that their mean is that of all others, or what they
            have in common decides, as a blended picture; not in the paper. Suspects of one class
            lose what is common to that class as well.
    """

    needs_features: ClassVar[bool] = True

    name: Literal["nc"] = "nc"
    scaling: Literal["none", "unit", "standardise"] = "unit"
    distance: Literal["euclidean", "mahalanobis"] = "euclidean"
    align: bool = False

    def __call__(self, case: Case, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """The class of the nearest centre for every sample; see :class:`LabelerBase`.

        A class without an unsuspected sample has no centre and is nobody's.

        Raises:
            ValueError: if there are no features.
        """
        from sklearn.covariance import LedoitWolf
        from sklearn.metrics import pairwise_distances_argmin

        ledger, features = case.ledger, case.features
        if features is None:
            raise ValueError("labeler 'nc' needs features, but was given none")
        scaled = self._scaled(features.astype(np.float64))
        unsuspected = ~ledger["suspect"].to_numpy()
        if self.align and 0 < unsuspected.sum() < len(ledger):
            shift = scaled[unsuspected].mean(0) - scaled[~unsuspected].mean(0)
            scaled = scaled + np.outer(~unsuspected, shift)
        known = scaled[unsuspected]
        labels = ledger["label"].to_numpy()[unsuspected]
        classes, of_class = np.unique(labels, return_inverse=True)
        centres = np.stack([known[of_class == k].mean(0) for k in range(len(classes))])
        within = known - centres[of_class]
        how: dict[str, Any] = {}
        if self.distance == "mahalanobis" and within.any():
            inverse = LedoitWolf(assume_centered=True).fit(within).precision_
            how = {"metric": "mahalanobis", "metric_kwargs": {"VI": inverse}}
        closest = pairwise_distances_argmin(scaled, centres, **how)
        nearest: np.ndarray = classes[closest]
        return nearest.astype(np.int64)

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        from sklearn.preprocessing import normalize, scale

        if self.scaling == "none":
            return features
        scaled: np.ndarray = normalize(features) if self.scaling == "unit" else scale(features)
        return scaled
