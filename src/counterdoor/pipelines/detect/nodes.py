"""Score every sample and flag the suspects."""

from typing import Any

import numpy as np
import pandas as pd

from counterdoor.detectors import select_suspects
from counterdoor.engine import DEFAULT, Engine
from counterdoor.ledger import check_ledger
from counterdoor.models import TrainedNet
from counterdoor.params import DetectParams


def detect(
    images: np.ndarray,
    ledger: pd.DataFrame,
    net: TrainedNet,
    params: DetectParams,
    seed: int,
    engine: Engine = DEFAULT,
) -> dict[str, Any]:
    """Score every sample and flag the most suspicious untrusted ones.

    Args:
        images: training images, uint8 (N, C, H, W).
        ledger: the defender's ledger.
        net: the warmed-up net.
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
    labels = ledger["label"].to_numpy()
    scores = params.detector(net.build(), images, labels, seed=seed, engine=engine)
    suspect = select_suspects(scores, ~ledger["trusted"].to_numpy(), params.suspect_ratio)
    return {"ledger": ledger.assign(score=scores, suspect=suspect)}
