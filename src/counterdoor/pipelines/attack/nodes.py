"""Poison the training set and trigger the test set."""

from typing import Any

import numpy as np
import pandas as pd

from counterdoor.attacks import poison
from counterdoor.params import AttackParams


def attack(
    images: np.ndarray,
    ledger: pd.DataFrame,
    test_images: np.ndarray,
    info: dict[str, Any],
    params: AttackParams,
    seed: int,
) -> dict[str, Any]:
    """Poison a training set, and put the trigger on every test image.

    Args:
        images: clean training images, uint8 (N, C, H, W).
        ledger: the clean ledger.
        test_images: clean test images, uint8 (M, C, H, W).
        info: the data set's ``class_names``.
        params: the attack.
        seed: the run's seed.

    Returns:
        ``images``, ``ledger``, ``oracle`` as in :class:`counterdoor.attacks.Poisoned`,
        and ``triggered_test_images``, uint8 (M, C, H, W).

    Raises:
        ValueError: if the target class does not exist or nothing is poisoned.
    """
    poisoned = poison(params.root, images, ledger, info["class_names"], seed=seed)
    return {
        "images": poisoned.images_nchw,
        "ledger": poisoned.ledger,
        "oracle": poisoned.oracle,
        "triggered_test_images": params.root(test_images),
    }
