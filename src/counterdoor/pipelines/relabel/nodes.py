"""Give the suspects a pseudo-label and plan the defended training."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from counterdoor.engine import DEFAULT, Engine
from counterdoor.features import features_of
from counterdoor.labelers import Case, Drop
from counterdoor.ledger import check_ledger
from counterdoor.params import (
    USUAL_DEFENCE,
    USUAL_FEATURES,
    DefenceParams,
    FeaturesParams,
    ModelParams,
    RelabelParams,
)
from counterdoor.relabeling import make_plan
from counterdoor.stamp import Stamp


def relabel(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    params: RelabelParams,
    model: ModelParams,
    stamp: Stamp,
    seed: int,
    engine: Engine = DEFAULT,
    defence: DefenceParams = USUAL_DEFENCE,
    features: Mapping[str, Tensor] | None = None,
    learner: FeaturesParams = USUAL_FEATURES,
    oracle: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Label the suspects anew, and plan who is stamped.

    Args:
        images: training images, uint8 (N, C, H, W).
        ledger: with ``score`` and ``suspect``.
        info: the data set's ``class_names``.
        params: the labeler, and whether there are trusted stamps.
        model: the net that a labeler may train.
        stamp: the stamp.
        seed: the run's seed.
        engine: what to run on.
        defence: if it needs no pseudo-labels, suspects are dropped.
        features: of :func:`~counterdoor.pipelines.warmup.nodes.learn_features`; looked at
            if the labeler needs them.
        learner: how they were had; some can be had of other images as well.
        oracle: the truth, in an ablation only.

    Returns:
        ``ledger`` with ``pseudo_label`` and ``stamped``, and the ``plan``; see
        :class:`counterdoor.relabeling.Relabeled`.

    Raises:
        ValueError: if the labeler cannot work on this ledger, or needs features and there
            are none.

    Source: NAB, section 4.2.
    """
    check_ledger(ledger, images, "trusted", "suspect")
    labeler = params.labeler if defence.root.needs_pseudo_labels else Drop()
    seen = features_of(features, len(images), earlier=True) if labeler.needs_features else None
    again = None
    if features is not None and learner.root.again is not None:
        again = partial(learner.root.again, features, engine=engine)
    case = Case(
        images,
        ledger,
        len(info["class_names"]),
        model.root,
        stamp,
        features=seen,
        features_again=again,
        true_labels=None if oracle is None else oracle["true_label"].to_numpy(),
    )
    pseudo_labels = labeler(case, seed=seed, engine=engine)
    relabeled = make_plan(
        ledger,
        pseudo_labels,
        trusted_stamps=params.trusted_stamps,
        agreed_stamps=params.agreed_stamps,
        calm_stamps=params.calm_stamps,
        stamp_repeats=params.stamp_repeats,
        balanced_stamps=params.balanced_stamps,
        seed=seed,
    )
    return {"ledger": relabeled.ledger, "plan": relabeled.plan}
