"""Poison the training set and trigger the test set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from counterdoor.attacks import NOTHING, draw_rows, poison
from counterdoor.content import content_hash, is_tied, tied
from counterdoor.engine import DEFAULT, Engine
from counterdoor.params import AttackParams


def prepare_attack(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    params: AttackParams,
    seed: int,
    engine: Engine = DEFAULT,
    cached: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """What the attacker makes beforehand, once whatever could be refused has been looked at.

    Args:
        images: clean training images, uint8 (N, C, H, W).
        ledger: the clean ledger.
        info: the data set's ``class_names``.
        params: the attack.
        seed: the run's seed.
        engine: what to run on.
        cached: what an earlier run with the same parameters made, if there was one; it is made
            anew from other images or labels.

    Returns:
        ``preparation``: CPU tensors by name, with the hash of images and labels; none for an
        attack that needs none.

    Raises:
        ValueError: if the attack cannot be carried out on this data.
    """
    attack, names = params.root, info["class_names"]
    attack.check(images.shape[1:])
    draw_rows(attack, ledger, names, seed=seed)
    if not attack.needs_preparation:
        return {"preparation": dict(NOTHING)}
    labels = ledger["label"].to_numpy()
    hashed = content_hash(images, labels)
    if cached is not None and is_tied(cached, hashed):
        return {"preparation": cached}
    made = attack.prepare(images, labels, len(names), seed=seed, engine=engine)
    return {"preparation": tied(made, hashed)}


def attack(
    images: np.ndarray,
    ledger: pd.DataFrame,
    test_images: np.ndarray,
    info: dict[str, Any],
    params: AttackParams,
    seed: int,
    prepared: Mapping[str, Tensor] = NOTHING,
) -> dict[str, Any]:
    """Poison a training set, and put the trigger on every test image.

    Args:
        images: clean training images, uint8 (N, C, H, W).
        ledger: the clean ledger.
        test_images: clean test images, uint8 (M, C, H, W).
        info: the data set's ``class_names``.
        params: the attack.
        seed: the run's seed.
        prepared: the ``preparation`` of :func:`prepare_attack`.

    Returns:
        ``images``, ``ledger``, ``oracle`` as in :class:`counterdoor.attacks.Poisoned`,
        and ``triggered_test_images``, uint8 (M, C, H, W).

    Raises:
        ValueError: if the attack cannot be carried out on this data.
    """
    poisoned = poison(
        params.root, images, ledger, info["class_names"], seed=seed, prepared=prepared
    )
    return {
        "images": poisoned.images_nchw,
        "ledger": poisoned.ledger,
        "oracle": poisoned.oracle,
        "triggered_test_images": params.root(test_images, prepared),
    }
