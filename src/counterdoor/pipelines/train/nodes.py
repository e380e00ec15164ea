"""Train the undefended twin, and make the defended net."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from counterdoor.defences import Case
from counterdoor.engine import DEFAULT, Engine
from counterdoor.ledger import check_ledger
from counterdoor.models import TrainedNet
from counterdoor.params import DefenceParams, ModelParams, TrainParams
from counterdoor.pipelines.plain import train_as_it_came
from counterdoor.stamp import Stamp


def train_defended(
    images: np.ndarray,
    ledger: pd.DataFrame,
    plan: pd.DataFrame,
    info: dict[str, Any],
    undefended: TrainedNet,
    undefended_history: pd.DataFrame,
    params: TrainParams,
    model: ModelParams,
    stamp: Stamp,
    defence: DefenceParams,
    seed: int,
    engine: Engine = DEFAULT,
) -> dict[str, Any]:
    """Make the net that is deployed, as the defence does it.

    Args:
        images: training images, uint8 (N, C, H, W).
        ledger: with all columns.
        plan: as in :class:`counterdoor.relabeling.Relabeled`.
        info: the data set's ``class_names``.
        undefended: the twin.
        undefended_history: its epochs.
        params: the recipe.
        model: the net.
        stamp: the stamp.
        defence: the defence.
        seed: the run's seed.
        engine: what to run on.

    Returns:
        ``net`` (:class:`TrainedNet`, with whatever deployed inputs carry) and
        ``history``.
    """
    check_ledger(ledger, images, "trusted", "suspect")
    made = defence.root(
        Case(
            images_nchw=images,
            ledger=ledger,
            plan=plan,
            num_classes=len(info["class_names"]),
            model=model.root,
            recipe=params.recipe,
            stamp=stamp,
            undefended=undefended,
            undefended_history=undefended_history,
            seed=seed,
            engine=engine,
        )
    )
    return {"net": replace(made.net, mirror=params.mirror), "history": made.history}


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
    """Train the twin: the same data, recipe and initial weights, labels as they came, no stamp.

    Arguments and result as :func:`train_defended`, with ``check``, the report of
    ``check_plan``, so that nothing is trained before the run has been found sound.
    """
    check_ledger(ledger, images)
    return train_as_it_came(
        *(images, ledger, info, params.recipe, model, seed, engine),
        stream="undefended",
        init="train/init",
        mirror=params.mirror,
    )


def train_base(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    check: dict[str, Any],
    params: TrainParams,
    model: ModelParams,
    defence: DefenceParams,
    seed: int,
    engine: Engine = DEFAULT,
) -> dict[str, Any]:
    """As :func:`train_undefended`, if the defence starts from that net; else one as it begins.

    For data of unknown origin, where the twin is worth its time to the defence alone.
    """
    check_ledger(ledger, images)
    recipe = params.recipe if defence.root.needs_undefended else None
    return train_as_it_came(
        *(images, ledger, info, recipe, model, seed, engine),
        stream="undefended",
        init="train/init",
        mirror=params.mirror,
    )
