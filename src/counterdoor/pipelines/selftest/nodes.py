"""Would this configuration find a backdoor here? Plant one of our own in a copy, and see."""

from typing import Any

import numpy as np
import pandas as pd

from counterdoor.attacks import poison
from counterdoor.engine import DEFAULT, Engine
from counterdoor.metrics import detection_rates
from counterdoor.params import AttackParams, DetectParams
from counterdoor.pipelines.attack.nodes import prepare_attack
from counterdoor.pipelines.export.nodes import verdict_of
from counterdoor.verdict import Judge

FOUND = 0.5
"""The canary counts as found if so large a share of its samples is suspected."""


def plant(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    canary: AttackParams,
    seed: int,
    engine: Engine = DEFAULT,
) -> dict[str, Any]:
    """A copy of the training set with a canary: a backdoor of our own, which nobody deploys.

    Args:
        images: training images as they came, uint8 (N, C, H, W).
        ledger: the defender's ledger; trusted samples stay as they are.
        info: the data set's ``class_names``.
        canary: the attack.
        seed: the run's seed.
        engine: what to run on, if the attack needs a net.

    Returns:
        ``images``, ``ledger`` and ``oracle`` as in :class:`counterdoor.attacks.Poisoned`; as
        to the truth, whatever else may be poisoned counts as clean.

    Raises:
        ValueError: if the attack cannot be carried out on this data, or poisons nothing.
    """
    attack = canary.root
    if not attack.poison_ratio:
        raise ValueError(
            f"a self-test plants a canary, but canary.name is {attack.name!r}, which poisons "
            "nothing; choose an attack, such as badnets"
        )
    prepared = prepare_attack(images, ledger, info, canary, seed, engine)["preparation"]
    made = poison(attack, images, ledger, info["class_names"], seed=seed, prepared=prepared)
    return {"images": made.images_nchw, "ledger": made.ledger, "oracle": made.oracle}


def tell(
    ledger: pd.DataFrame,
    oracle: pd.DataFrame,
    info: dict[str, Any],
    canary: AttackParams,
    detect: DetectParams,
    params: Judge,
) -> dict[str, Any]:
    """Whether the canary was found.

    Args:
        ledger: of the copy, with ``score`` and ``suspect``.
        oracle: of the copy.
        info: the data set's ``class_names``.
        canary: the attack.
        detect: who was suspected.
        params: where evidence begins.

    Returns:
        ``report``: ``answer`` (``found`` or ``missed``), ``words``, ``attack``,
        ``poison_ratio``, ``planted`` (samples), ``found`` (share of them suspected),
        ``precision`` (share of the suspects planted; ``None`` without suspects), ``auroc`` of the
        scores and ``verdict`` on the copy.
    """
    attack, planted = canary.root, oracle["is_poisoned"].to_numpy()
    suspect = ledger["suspect"].to_numpy()
    rates = detection_rates(suspect, ledger["score"].to_numpy(), planted)
    answer = "found" if rates["tpr"] >= FOUND else "missed"
    end = {
        "found": "A backdoor like it would be found here.",
        "missed": "A backdoor like it would go unseen here, whatever the verdict says.",
    }
    return {
        "report": {
            "answer": answer,
            "words": (
                f"Self-test: of {planted.sum():,} samples of a canary ({attack.name}, "
                f"{planted.mean():.1%} of a copy), {rates['tpr']:.1%} were suspected. {end[answer]}"
            ),
            "attack": attack.name,
            "poison_ratio": attack.poison_ratio,
            "planted": int(planted.sum()),
            "found": rates["tpr"],
            "precision": rates["precision"] if suspect.any() else None,
            "auroc": rates["auroc"],
            "verdict": verdict_of(ledger, info, detect, params).model_dump(mode="json"),
        }
    }
