"""Score every sample and flag the suspects."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from counterdoor.detectors import Evidence
from counterdoor.engine import DEFAULT, Engine
from counterdoor.features import features_of
from counterdoor.ledger import check_ledger
from counterdoor.models import TrainedNet
from counterdoor.params import USUAL_DEFENCE, DefenceParams, DetectParams


def detect(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    warmup_net: TrainedNet,
    plain_net: TrainedNet,
    params: DetectParams,
    seed: int,
    engine: Engine = DEFAULT,
    defence: DefenceParams = USUAL_DEFENCE,
    features: Mapping[str, Tensor] | None = None,
    oracle: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Score every sample and flag the most suspicious untrusted ones.

    Args:
        images: training images, uint8 (N, C, H, W).
        ledger: the defender's ledger.
        info: the data set's ``class_names``.
        warmup_net: the warmed-up net; looked at if the detector needs it.
        plain_net: the net trained as usual; looked at if the detector needs it.
        params: detector and suspect ratio.
        seed: the run's seed.
        engine: what to run on.
        defence: whether it needs suspects, and how many.
        features: of :func:`~counterdoor.pipelines.warmup.nodes.learn_features`; looked at
            if the detector needs them.
        oracle: the truth, in an ablation only.

    Returns:
        ``ledger`` with ``score`` and ``suspect``; 0 and nobody if none are needed.

    Raises:
        ValueError: if the fixed suspect ratio selects nobody, the detector needs features and
            there are none, or it looks at the truth and there is none.

    Source: NAB, section 4.1.
    """
    check_ledger(ledger, images, "trusted")
    if not defence.root.needs_suspects:
        return {"ledger": ledger.assign(score=0.0, suspect=False)}
    needs, trusted = params.detector.needs, ledger["trusted"].to_numpy()
    labels = ledger["label"].to_numpy()
    evidence = Evidence(
        images,
        labels,
        trusted,
        len(info["class_names"]),
        warmup_net=warmup_net.build() if "warmup" in needs else None,
        plain_net=plain_net.build() if "plain" in needs else None,
        features=features_of(features, len(images)) if "features" in needs else None,
        is_poisoned=None if oracle is None else oracle["is_poisoned"].to_numpy(),
    )
    scores = params.detector(evidence, seed=seed, engine=engine)
    suspect = defence.root.suspect_rule(params.suspect_ratio)(scores, labels, trusted)
    return {"ledger": ledger.assign(score=scores, suspect=suspect)}
