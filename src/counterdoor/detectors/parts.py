"""A crowd of points in two parts, and how empty it is between them."""

import numpy as np

from counterdoor.robust import within_classes

ROUNDS = 50
"""The two parts settle in at most so many rounds."""
STARTS = 3
"""Directions, those of the largest spread, along which a crowd is first cut, on both sides."""
CUTS = (0.5, 0.9)
"""Share of the crowd that lies before the first cut."""
SAMPLES_PER_COMPONENT = 10
"""So many points there have to be for every component that is looked at."""
LEAST = 20
"""Fewer points are stragglers, and no part."""


def parted(white: np.ndarray, least: float) -> np.ndarray:
    """Where each point lies between the two parts of the crowd.

    Of several 2-means from different starts, the one with the emptiest :func:`valley`.

    Args:
        white: float64, shape (n, k), the widest component first, all about as wide.
        least: smallest share of the points that is a part.

    Returns:
        float64, shape (n,): distance from the middle between the parts' means, along the line
        between them, in standard deviations within the parts; above 0 in the smaller part.
        Without two parts of which each has at least 20 points, the first component.
    """
    n = len(white)
    points = white[:, : max(1, n // SAMPLES_PER_COMPONENT)]
    if not points.shape[1]:
        return np.zeros(n)
    centred = points - points.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    enough = max(LEAST, least * n)
    best: np.ndarray = centred[:, 0]
    lowest = np.inf, 0.0
    for along in (centred @ axes[:, -STARTS:]).T:
        for side in (along, -along):
            for cut in CUTS:
                part = two_means(points, side > np.quantile(side, cut))
                if enough <= part.sum() <= n - enough:
                    place = _place(points, part)
                    order = valley(place), -separation(place)
                    if order < lowest:
                        best, lowest = place, order
    return best


def two_means(points: np.ndarray, part: np.ndarray) -> np.ndarray:
    """2-means from a first part; bool, shape (n,), the second of the two."""
    for _ in range(ROUNDS):
        if part.all() or not part.any():
            break
        means = points[~part].mean(0), points[part].mean(0)
        first, second = (((points - mean) ** 2).sum(1) for mean in means)
        if np.array_equal(part, second < first):
            break
        part = second < first
    return part


def separation(place: np.ndarray) -> float:
    """How far apart the means of the points above 0 and of the others are; 0 if one has none."""
    part = place > 0
    if part.all() or not part.any():
        return 0.0
    return float(place[part].mean() - place[~part].mean())


def valley(place: np.ndarray) -> float:
    """How many lie in the middle third between the means, as a share of the smaller part.

    0 is empty, between two crowds. The halves of one crowd have about 0.2 at least: 0.42 if
    it is normal. Infinite if one part has fewer than 20 points.

    Args:
        place: as :func:`parted` gives it, with either sign.
    """
    part = place > 0
    smaller = min(int(part.sum()), int((~part).sum()))
    if smaller < LEAST:
        return np.inf
    return float((np.abs(place) < separation(place) / 6).sum() / smaller)


def _place(points: np.ndarray, part: np.ndarray) -> np.ndarray:
    part = part if 2 * part.sum() <= len(part) else ~part
    means = points[~part].mean(0), points[part].mean(0)
    along = (points - (means[0] + means[1]) / 2) @ (means[1] - means[0])
    within = within_classes(along[:, None], part.astype(np.int64))[:, 0]
    return np.asarray(along / max(float(np.sqrt((within**2).mean())), 1e-12))
