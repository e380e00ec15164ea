"""NC: the nearest centre among the classes, in features that no label has had a part in."""

import logging
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import Case, LabelerBase, aligned

logger = logging.getLogger(__name__)

NOT_AGAIN = (
    "labeler 'nc' with align_images needs features of images that it has moved, which cannot be "
    "had of them: choose features_name=patches, or set relabel.labeler.align_images=false"
)


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
        align_images: look at the suspects' images as :func:`~counterdoor.labelers.base.aligned`
            moves them, with features that can be had of other images (``features_name=patches``);
            not in the paper. With ``align`` as well, that one of the two counts with which the
            suspects are nearer to their nearest centres, on average and in the plane of the
            centres: a blended picture is taken off images, and what a patch does to features off
            these.
        spread: how much of what the suspects vary more than all others, in every direction, counts
            as variation within a class, with ``mahalanobis``; >= 0, and 0.5 is the mean of both: a
            trigger does not move every image alike. Not in the paper.
    """

    needs_features: ClassVar[bool] = True

    name: Literal["nc"] = "nc"
    scaling: Literal["none", "unit", "standardise"] = "unit"
    distance: Literal["euclidean", "mahalanobis"] = "euclidean"
    align: bool = False
    align_images: bool = False
    spread: float = Field(default=0.0, ge=0)

    @property
    def moves_images(self) -> bool:
        """With ``align_images``."""
        return self.align_images

    @model_validator(mode="after")
    def _of_a_covariance(self) -> "NC":
        if self.spread and self.distance != "mahalanobis":
            raise ValueError("spread counts with distance: mahalanobis alone: set both, or neither")
        if self.spread and self.align and self.align_images:
            raise ValueError(
                "spread is of one way to look at the suspects: leave out spread, align or "
                "align_images"
            )
        return self

    def __call__(self, case: Case, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """The class of the nearest centre for every sample; see :class:`LabelerBase`.

        A class without an unsuspected sample has no centre and is nobody's.

        Raises:
            ValueError: if there are no features, or none of other images, which it needs.
        """
        from scipy.linalg import cho_factor, cho_solve
        from sklearn.covariance import LedoitWolf

        ledger, features = case.ledger, case.features
        if features is None:
            raise ValueError("labeler 'nc' needs features, but was given none")
        suspect = ledger["suspect"].to_numpy()
        scaled = self._scaled(features.astype(np.float64))
        views = self._suspects(case, features, scaled)
        known = scaled[~suspect]
        labels = ledger["label"].to_numpy()[~suspect]
        classes, of_class = np.unique(labels, return_inverse=True)
        centres = np.stack([known[of_class == k].mean(0) for k in range(len(classes))])
        within = known - centres[of_class]
        inverse = None
        if self.distance == "mahalanobis" and within.any():
            covariance = LedoitWolf(assume_centered=True).fit(within).covariance_
            if self.spread and suspect.sum() > 1:
                covariance += self.spread * surplus(views[0], known)
            inverse = cho_factor(covariance)

        def over(rows: np.ndarray) -> np.ndarray:
            return rows.T if inverse is None else cho_solve(inverse, rows.T)

        middle = centres.mean(0)
        weights = over(centres - middle)
        gram = (centres - middle) @ weights

        def squared(rows: np.ndarray) -> np.ndarray:
            """To each centre, within the plane of them all: what is beside it decides nothing."""
            along = rows @ weights - middle @ weights
            height = (along @ np.linalg.pinv(gram, hermitian=True) * along).sum(1, keepdims=True)
            return np.asarray(height - 2 * along + gram.diagonal())

        closest = squared(scaled).argmin(1)
        if suspect.any():
            seen = [squared(rows) for rows in views]
            far = [float(each.min(1).mean()) for each in seen]
            if len(far) > 1:
                logger.info(
                    "nc: suspects are %.4g from their nearest centres with features moved, %.4g "
                    "with images moved (squared); the nearer ones are named",
                    *far,
                )
            closest[suspect] = seen[int(np.argmin(far))].argmin(1)
        return np.asarray(classes[closest], dtype=np.int64)

    def _suspects(self, case: Case, features: np.ndarray, scaled: np.ndarray) -> list[np.ndarray]:
        """The suspects' scaled features as they are to be looked at: one way, or two."""
        suspect = case.ledger["suspect"].to_numpy()
        mine = scaled[suspect]
        if not suspect.any() or suspect.all():
            return [mine]
        views = []
        if self.align:
            views.append(mine + (scaled[~suspect].mean(0) - mine.mean(0)))
        if self.align_images:
            if case.features_again is None:
                raise ValueError(NOT_AGAIN)
            moved = features.astype(np.float64)
            moved[suspect] = case.features_again(aligned(case.images_nchw, suspect))
            views.append(self._scaled(moved)[suspect])
        return views or [mine]

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        from sklearn.preprocessing import normalize, scale

        if self.scaling == "none":
            return features
        scaled: np.ndarray = normalize(features) if self.scaling == "unit" else scale(features)
        return scaled


def surplus(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What ``some`` vary more than ``others``, as a covariance.

    Args:
        some: features, shape (N, D), N > 1.
        others: features, shape (M, D), M > 1.

    Returns:
        Shape (D, D), positive semidefinite: the positive part of the difference of the two
        covariances, each shrunk as Ledoit and Wolf (2004) do.
    """
    from sklearn.covariance import LedoitWolf

    more = LedoitWolf().fit(some).covariance_ - LedoitWolf().fit(others).covariance_
    values, vectors = np.linalg.eigh(more)
    positive: np.ndarray = (vectors * values.clip(min=0)) @ vectors.T
    return positive
