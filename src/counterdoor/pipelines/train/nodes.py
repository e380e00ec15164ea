"""Train the defended net and its undefended twin with the same recipe."""

from typing import Any

import numpy as np
import pandas as pd

from counterdoor.engine import DEFAULT, Engine
from counterdoor.feed import Samples
from counterdoor.ledger import check_ledger
from counterdoor.models import TrainedNet, build_net
from counterdoor.params import ModelParams, TrainParams
from counterdoor.relabeling import ledger_samples, plan_samples
from counterdoor.stamp import Stamp
from counterdoor.training import fit


def train_defended(
    images: np.ndarray,
    plan: pd.DataFrame,
    info: dict[str, Any],
    params: TrainParams,
    model: ModelParams,
    stamp: Stamp,
    seed: int,
    engine: Engine = DEFAULT,
) -> dict[str, Any]:
    """Train on the plan: suspects relabelled, the stamp on after augmentation.

    Args:
        images: training images, uint8 (N, C, H, W).
        plan: as in :class:`counterdoor.relabeling.Relabeled`.
        info: the data set's ``class_names``.
        params: the recipe.
        model: the net.
        stamp: the stamp.
        seed: the run's seed.
        engine: what to run on.

    Returns:
        ``net`` (:class:`TrainedNet`, deployed with the stamp if any sample was
        stamped) and ``history``.

    Source: NAB, section 4.3.
    """
    samples = plan_samples(images, plan)
    used = stamp if plan["stamped"].any() else None
    return _train(images, samples, info, params, model, used, seed, engine, "defended")


def train_undefended(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    check: dict[str, Any],
    params: TrainParams,
    model: ModelParams,
    seed: int,
    engine: Engine = DEFAULT,
) -> dict[str, Any]:
    """Train the twin: the same data and recipe, labels as they came, no stamp.

    Arguments and result as :func:`train_defended`, with the ledger in place of the
    plan, and ``check``, the report of ``check_plan``, so that nothing is trained
    before the run has been found sound.
    """
    check_ledger(ledger, images)
    samples = ledger_samples(images, ledger)
    return _train(images, samples, info, params, model, None, seed, engine, "undefended")


def _train(
    images: np.ndarray,
    samples: Samples,
    info: dict[str, Any],
    params: TrainParams,
    model: ModelParams,
    stamp: Stamp | None,
    seed: int,
    engine: Engine,
    stream: str,
) -> dict[str, Any]:
    classes = len(info["class_names"])
    # One initialisation for both, so that the twins differ by the plan alone.
    net = build_net(model.root, images, classes, seed=seed, stream="train/init")
    fitted = fit(net, samples, params.recipe, seed=seed, stream=stream, stamp=stamp, engine=engine)
    return {
        "net": TrainedNet.of(model.root, images, classes, fitted.state, stamp),
        "history": fitted.history,
    }
