"""Score every sample and flag the suspects."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from counterdoor.detectors import Evidence, select_suspects
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

    Returns:
        ``ledger`` with ``score`` and ``suspect``; 0 and nobody if none are needed.

    Raises:
        ValueError: if nobody is selected, or the detector needs features and there are none.

    Source: NAB, section 4.1.
    """
    check_ledger(ledger, images, "trusted")
    if not defence.root.needs_suspects:
        return {"ledger": ledger.assign(score=0.0, suspect=False)}
    needs, trusted = params.detector.needs, ledger["trusted"].to_numpy()
    evidence = Evidence(
        images,
        ledger["label"].to_numpy(),
        trusted,
        len(info["class_names"]),
        warmup_net=warmup_net.build() if "warmup" in needs else None,
        plain_net=plain_net.build() if "plain" in needs else None,
        features=features_of(features, len(images)) if "features" in needs else None,
    )
    scores = params.detector(evidence, seed=seed, engine=engine)
    share = defence.root.suspected_share(params.suspect_ratio)
    suspect = select_suspects(scores, ~trusted, share)
    return {"ledger": ledger.assign(score=scores, suspect=suspect)}
