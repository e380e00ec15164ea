"""Score every sample and flag the suspects."""

from typing import Any

import numpy as np
import pandas as pd

from counterdoor.detectors import Evidence, select_suspects
from counterdoor.engine import DEFAULT, Engine
from counterdoor.ledger import check_ledger
from counterdoor.models import TrainedNet
from counterdoor.params import DetectParams


def detect(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    warmup_net: TrainedNet,
    plain_net: TrainedNet,
    params: DetectParams,
    seed: int,
    engine: Engine = DEFAULT,
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

    Returns:
        ``ledger`` with ``score`` and ``suspect``.

    Raises:
        ValueError: if nobody is selected.

    Source: NAB, section 4.1.
    """
    check_ledger(ledger, images, "trusted")
    needs, trusted = params.detector.needs, ledger["trusted"].to_numpy()
    evidence = Evidence(
        images,
        ledger["label"].to_numpy(),
        trusted,
        len(info["class_names"]),
        warmup_net=warmup_net.build() if "warmup" in needs else None,
        plain_net=plain_net.build() if "plain" in needs else None,
    )
    scores = params.detector(evidence, seed=seed, engine=engine)
    suspect = select_suspects(scores, ~trusted, params.suspect_ratio)
    return {"ledger": ledger.assign(score=scores, suspect=suspect)}
