"""Covariance of a sample of which a part is not to be trusted."""

import numpy as np

REACH = 10.0
"""The constant C of the filter's condition, as SPECTRE's authors set it."""
SHIFT = 3.0
"""How far from the median a sample's quadratic form may lie in any case, as they set it."""


def principal_axes(points: np.ndarray, most: int) -> np.ndarray:
    """The leading principal axes of the points.

    Args:
        points: float, shape (n, d).
        most: how many axes at most.

    Returns:
        float64, shape (d, k), orthonormal columns; k is ``most`` or the number of
        directions with any spread, whichever is less.
    """
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    spread = values > max(values[-1], 0.0) * 1e-10
    return np.asarray(vectors[:, spread][:, ::-1][:, :most])


def within_classes(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each point minus the mean of its class, times sqrt(n / (n - 1)) for a class of n > 1."""
    residuals = np.zeros_like(points)
    for label in np.unique(labels):
        rows = labels == label
        n = max(int(rows.sum()), 2)
        residuals[rows] = (points[rows] - points[rows].mean(0)) * np.sqrt(n / (n - 1))
    return residuals


def inverse_root(covariance: np.ndarray) -> np.ndarray:
    """The inverse of the symmetric root of a covariance, (k, k).

    Eigenvalues below 1e-9 of the largest are raised to that.
    """
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, max(values[-1], 1e-300) * 1e-9)
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T)


def trim(points: np.ndarray, share: float, limit: int) -> np.ndarray:
    """Which points are left by the filter for robust covariance estimation.

    In each round the points are whitened by their own second moment, to y, and V is the
    form of :func:`widest_form`. If the variance of y^T V y is at most
    1 + C e log^2(1 / e), the filter ends; else points go whose (y^T V y - tr V) / sqrt 2
    lies about as far from its median as the farthest does: at most 3 less, and at least 3.

    Args:
        points: float64, shape (n, k), centred.
        share: e, the share that is expected to be bad, in (0, 1/2].
        limit: how many points go at most; those that stand out most.

    Returns:
        bool, shape (n,).

    Source: Diakonikolas et al., "Being Robust (in High Dimensions) Can Be Practical"
    (ICML 2017), as SPECTRE's authors run it: the tail bound in their code lets no cut
    happen before the farthest point, which gives the rule above.
    """
    kept = np.ones(len(points), dtype=bool)
    while (left := limit - int((~kept).sum())) > 0:
        rows = np.flatnonzero(kept)
        moment = points[rows].T @ points[rows] / len(rows)
        white = points[rows] @ inverse_root(moment)
        variance, form = widest_form(white)
        if variance <= 1 + REACH * share * np.log(1 / share) ** 2:
            break
        values = ((white @ form * white).sum(1) - np.trace(form)) / np.sqrt(2)
        distances = np.abs(values - np.median(values))
        out = np.flatnonzero(distances >= max(SHIFT, distances.max() - SHIFT))
        if not len(out):
            break
        kept[rows[out[np.argsort(-distances[out], kind="stable")][:left]]] = False
    return kept


def widest_form(white: np.ndarray) -> tuple[float, np.ndarray]:
    """The variance of y^T V y for the symmetric V of unit norm for which it is largest, and V.

    For y of a standard normal distribution it is 2 for every V.

    Args:
        white: float64, shape (n, k), with identity second moment.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    n, k = white.shape

    def times(flat: np.ndarray) -> np.ndarray:
        form = flat.reshape(k, k)
        weights = (white @ form * white).sum(1)
        return np.asarray((white.T * (weights / n)) @ white - np.trace(form) * np.eye(k)).ravel()

    if k < 4:
        dense = np.stack([times(column) for column in np.eye(k * k)])
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    else:
        start = np.random.default_rng(0).normal(size=(k, k))
        operator = LinearOperator((k * k, k * k), matvec=times, dtype=np.float64)
        values, vectors = eigsh(operator, k=1, which="LA", v0=(start + start.T).ravel(), tol=1e-6)
    form = vectors[:, -1].reshape(k, k)
    return float(values[-1]), (form + form.T) / 2
