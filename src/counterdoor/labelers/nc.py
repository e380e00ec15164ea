"""NC: the nearest centre among the classes, in features that no label has had a part in."""

from typing import ClassVar, Literal

import numpy as np

from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import Case, LabelerBase


class NC(LabelerBase):
    """Nearest centre: the class whose unsuspected samples' mean features are closest.

    It needs no trusted sample. Source: NAB, section 4.2; Euclidean distance, as there. How
    features are scaled is not published.

    Attributes:
        scaling: ``none``; ``unit``, each sample's features to length 1; or
            ``standardise``, each feature to mean 0 and deviation 1.
    """

    needs_features: ClassVar[bool] = True

    name: Literal["nc"] = "nc"
    scaling: Literal["none", "unit", "standardise"] = "unit"

    def __call__(self, case: Case, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """The class of the nearest centre for every sample; see :class:`LabelerBase`.

        A class without an unsuspected sample has no centre and is nobody's.

        Raises:
            ValueError: if there are no features.
        """
        from sklearn.metrics import pairwise_distances_argmin

        ledger, features = case.ledger, case.features
        if features is None:
            raise ValueError("labeler 'nc' needs features, but was given none")
        scaled = self._scaled(features.astype(np.float64))
        unsuspected = ~ledger["suspect"].to_numpy()
        labels = ledger["label"].to_numpy()
        classes = np.unique(labels[unsuspected])
        centres = [scaled[unsuspected & (labels == label)].mean(0) for label in classes]
        nearest: np.ndarray = classes[pairwise_distances_argmin(scaled, np.stack(centres))]
        return nearest.astype(np.int64)

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        from sklearn.preprocessing import normalize, scale

        if self.scaling == "none":
            return features
        scaled: np.ndarray = normalize(features) if self.scaling == "unit" else scale(features)
        return scaled
