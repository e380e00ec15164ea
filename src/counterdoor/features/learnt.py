"""The artifact that features are kept in, and what is to be had from it."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

KEY = "features"
"""What the net's head would get."""
EARLIER = "earlier"
"""What earlier layers give, where it is kept."""
NONE = {KEY: torch.zeros(0, 0)}
"""The artifact before anybody has needed features."""


def is_learnt(artifact: Mapping[str, Tensor] | None) -> bool:
    """Whether the artifact is there and holds features."""
    return artifact is not None and len(artifact[KEY]) > 0


def features_of(
    artifact: Mapping[str, Tensor] | None, n: int, *, earlier: bool = False
) -> np.ndarray:
    """The features of ``n`` images, float32, shape (n, D).

    Args:
        artifact: what was learnt.
        n: number of images.
        earlier: those of earlier layers as well, where they are kept: in front, and then the
            others to length 1, as each of the earlier layers.

    Raises:
        ValueError: if they have not been learnt, or are those of other images.
    """
    if artifact is None or not is_learnt(artifact):
        raise ValueError(
            "features are needed but have not been learnt: run the stage warmup with the same "
            "detector and labeler first (a plain `kedro run` runs all)"
        )
    features = artifact[KEY].numpy()
    if len(features) != n:
        raise ValueError(
            f"there are {n} images, but features of {len(features)}: they come from different runs"
        )
    if earlier and EARLIER in artifact:
        from sklearn.preprocessing import normalize

        return np.hstack([artifact[EARLIER].numpy(), normalize(features)])
    return features
