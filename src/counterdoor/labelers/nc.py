"""NC: the nearest centre among the classes, in features that no label has had a part in."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import Case, LabelerBase, aligned

logger = logging.getLogger(__name__)

_AT_A_TIME = 4096
"""Rows looked at at once."""
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
        shrinkage: of the covariance that ``mahalanobis`` needs, towards that of all directions
            alike, in [0, 1]; none: as Ledoit and Wolf (2004) have it, which is too little for
            thousands of features.
        cleaned: how often to leave those samples out of the centre of the label that most suspects
            came with, that are nearer to another class once what sets suspects apart from all
            others counts for nothing: mostly poisoned ones that nobody suspected, which get that
            class's name. Only if more than half of the suspects came with one label; >= 0. Not in
            the paper.
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
    shrinkage: float | None = Field(default=None, ge=0, le=1)
    cleaned: int = Field(default=0, ge=0)
    spread: float = Field(default=0.0, ge=0)

    @property
    def moves_images(self) -> bool:
        """With ``align_images``."""
        return self.align_images

    @model_validator(mode="after")
    def _of_a_covariance(self) -> "NC":
        if self.spread and self.distance != "mahalanobis":
            raise ValueError("spread counts with distance: mahalanobis alone: set both, or neither")
        if self.shrinkage is not None and self.distance != "mahalanobis":
            raise ValueError(
                "shrinkage counts with distance: mahalanobis alone: set both, or neither"
            )
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

        ledger, features = case.ledger, case.features
        if features is None:
            raise ValueError("labeler 'nc' needs features, but was given none")
        suspect = ledger["suspect"].to_numpy()
        scaler = self._scaler().fit(features)
        scaled = scaler.transform(features)
        known = scaled[~suspect]
        common = np.zeros(scaled.shape[1])  # what sets the suspects apart from all others
        if suspect.any() and len(known):
            common = scaled[suspect].mean(0, dtype=np.float64) - known.mean(0, dtype=np.float64)
        views = self._suspects(case, scaled[suspect], common, scaler)
        labels = ledger["label"].to_numpy()[~suspect]
        classes, of_class = np.unique(labels, return_inverse=True)
        centres = np.stack(
            [known[of_class == k].mean(0, dtype=np.float64) for k in range(len(classes))]
        )
        inverse = None
        if self.distance == "mahalanobis":
            covariance = within_classes(known, of_class, centres, self.shrinkage)
            if self.spread and suspect.sum() > 1:
                covariance += self.spread * surplus(views[0], known)
            if covariance.any():
                inverse = cho_factor(covariance, overwrite_a=True)

        def over(rows: np.ndarray) -> np.ndarray:
            return rows.T if inverse is None else cho_solve(inverse, rows.T)

        came_with = ledger["label"].to_numpy()[suspect]
        doubtful, theirs = np.zeros(len(known), bool), np.empty(0, int)
        for target, label in enumerate(classes):
            if self.cleaned and suspect.any() and (came_with == label).mean() > 0.5:
                doubtful = of_class == target
                theirs = self._clean(centres, target, known[doubtful], common, over)
        squared = to_centres(centres, over(centres - centres.mean(0)))
        closest = squared(scaled).argmin(1)
        closest[np.flatnonzero(~suspect)[doubtful]] = theirs
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

    def _clean(
        self,
        centres: np.ndarray,
        target: int,
        mine: np.ndarray,
        common: np.ndarray,
        over: Callable[[np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Move one of the centres to where it is without those of its samples that are not its own.

        Args:
            centres: shape (K, D); row ``target`` is changed.
            target: the row.
            mine: features of its unsuspected samples, shape (N, D).
            common: what sets suspects apart from all others, shape (D,).
            over: rows times the inverse covariance, shape (D, rows).

        Returns:
            The row of the nearest centre of each of them, shape (N,).
        """
        towards = over(common[None])
        names = np.full(len(mine), target)
        for _ in range(self.cleaned if common.any() else 0):
            weights = over(centres - centres.mean(0))
            weights -= towards * (common @ weights) / (common @ towards)
            names = to_centres(centres, weights)(mine).argmin(1)
            if not (names == target).any():
                break
            centres[target] = mine[names == target].mean(0, dtype=np.float64)
        logger.info(
            "nc: the centre of the label that most suspects came with is of %d of its %d "
            "unsuspected samples",
            (names == target).sum(),
            len(names),
        )
        return names

    def _suspects(
        self, case: Case, mine: np.ndarray, common: np.ndarray, scaler: Any
    ) -> list[np.ndarray]:
        """The suspects' scaled features as they are to be looked at: one way, or two."""
        suspect = case.ledger["suspect"].to_numpy()
        if not suspect.any() or suspect.all():
            return [mine]
        views = []
        if self.align:
            views.append(mine - common)
        if self.align_images:
            if case.features_again is None:
                raise ValueError(NOT_AGAIN)
            moved = case.features_again(aligned(case.images_nchw, suspect))
            views.append(scaler.transform(moved))
        return views or [mine]

    def _scaler(self) -> Any:
        """A transformer, to be fitted to all features."""
        from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

        return {"none": FunctionTransformer, "unit": Normalizer, "standardise": StandardScaler}[
            self.scaling
        ]()


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time, float64: of all at once there may be gigabytes."""
    for start in range(0, len(rows), _AT_A_TIME):
        yield rows[start : start + _AT_A_TIME].astype(np.float64)


def to_centres(centres: np.ndarray, weights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Squared distances to each centre, within the plane of them all: what is beside it is alike.

    Args:
        centres: shape (K, D).
        weights: the inverse covariance times the centres less their mean, shape (D, K).

    Returns:
        Of rows of shape (N, D) the distances, float64, shape (N, K).
    """
    middle = centres.mean(0)
    gram = (centres - middle) @ weights
    plane = np.linalg.pinv(gram, hermitian=True)

    def squared(rows: np.ndarray) -> np.ndarray:
        along = np.concatenate([(part - middle) @ weights for part in _parts(rows)])
        height = (along @ plane * along).sum(1, keepdims=True)
        return np.asarray(height - 2 * along + gram.diagonal())

    return squared


def within_classes(
    rows: np.ndarray, of_class: np.ndarray, centres: np.ndarray, shrinkage: float | None = None
) -> np.ndarray:
    """Covariance of what is left of each row when its class's centre is taken off, shrunk.

    Args:
        rows: features, shape (N, D), N > 0.
        of_class: int, shape (N,), in [0, K).
        centres: shape (K, D).
        shrinkage: in [0, 1]; none: that of Ledoit and Wolf (2004), as in scikit-learn's
            ``LedoitWolf(assume_centered=True)``, which holds several copies of all rows.

    Returns:
        float64, shape (D, D).
    """
    size = rows.shape[1]
    covariance, fourth, seen = np.zeros((size, size)), 0.0, 0
    for part in _parts(rows):
        part -= centres[of_class[seen : seen + len(part)]]
        covariance += part.T @ part
        fourth += np.square(np.square(part).sum(1)).sum()
        seen += len(part)
    covariance /= seen
    mean, squares = covariance.trace() / size, np.vdot(covariance, covariance)
    spread = squares - size * mean**2
    if shrinkage is None:
        noise = max(min((fourth / seen - squares) / seen, spread), 0)
        shrinkage = noise / spread if noise else 0.0
    covariance *= 1 - shrinkage
    covariance[np.diag_indices(size)] += shrinkage * mean
    return covariance


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
