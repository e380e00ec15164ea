"""A net trained on the ledger as it came; what several stages need."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from counterdoor.engine import Engine
from counterdoor.models import TrainedNet, build_net
from counterdoor.params import ModelParams
from counterdoor.recipe import Recipe
from counterdoor.relabeling import ledger_samples
from counterdoor.training import Fit, fit


def train_as_it_came(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    recipe: Recipe | None,
    model: ModelParams,
    seed: int,
    engine: Engine,
    *,
    stream: str,
    init: str,
    mirror: bool = False,
) -> dict[str, Any]:
    """A net of these samples with the labels they came with, or one as it begins.

    Args:
        images: training images, uint8 (N, C, H, W).
        ledger: with ``label``.
        info: the data set's ``class_names``.
        recipe: the training; ``None`` for none.
        model: the net.
        seed: the run's seed.
        engine: what to run on.
        stream: name of the training and its random stream.
        init: name of the random stream of the first weights.
        mirror: whether it predicts with the mean over an image and its mirror image.

    Returns:
        ``net`` (:class:`TrainedNet`) and ``history``, without a row if nothing is trained.
    """
    classes = len(info["class_names"])
    net = build_net(model.root, images, classes, seed=seed, stream=init)
    if recipe is None:
        fitted = Fit.of(net.state_dict(), [])
    else:
        samples = ledger_samples(images, ledger)
        fitted = fit(net, samples, recipe, seed=seed, stream=stream, engine=engine)
    trained = TrainedNet.of(model.root, images, classes, fitted.state)
    return {"net": replace(trained, mirror=mirror), "history": fitted.history}
