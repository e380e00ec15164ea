"""Train briefly on the untrusted data, so that poisoned samples stand out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from counterdoor.content import content_hash, is_tied, tied
from counterdoor.engine import DEFAULT, Engine
from counterdoor.features.learnt import NONE, is_learnt
from counterdoor.forecast import needs_features
from counterdoor.labelers.nc import NOT_AGAIN
from counterdoor.ledger import check_ledger
from counterdoor.params import (
    USUAL_DEFENCE,
    DefenceParams,
    DetectParams,
    FeaturesParams,
    ModelParams,
    RelabelParams,
    TrainParams,
    WarmupParams,
)
from counterdoor.pipelines.plain import train_as_it_came
from counterdoor.recipe import Recipe
from counterdoor.stamp import Stamp


def check_choices(
    detect: DetectParams,
    relabel: RelabelParams,
    warmup: WarmupParams,
    features: FeaturesParams,
    defence: DefenceParams,
) -> None:
    """Refuse what does not go together, whatever the data.

    Arguments as those of :func:`check_plan`.

    Raises:
        ValueError: if the rule reads off scores what the detector does not tell, the detector
            lacks a training, or features are needed of other images and there are none.
    """
    chosen = defence.root
    if chosen.needs_suspects:
        detector = detect.detector
        chosen.suspect_rule(detect.suspect_ratio).check_reads(detector)
        for need, key in (("warmup", "recipe"), ("plain", "plain_recipe")):
            if need in detector.needs and getattr(warmup, key) is None:
                raise ValueError(
                    f"detector {detector.name!r} looks at a net that is not trained: "
                    f"set warmup.{key}, now null"
                )
    moved = chosen.needs_pseudo_labels and relabel.labeler.moves_images
    if moved and features.root.again is None:
        raise ValueError(NOT_AGAIN)


def check_plan(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    detect: DetectParams,
    relabel: RelabelParams,
    train: TrainParams,
    stamp: Stamp,
    model: ModelParams,
    warmup: WarmupParams,
    features: FeaturesParams,
    defence: DefenceParams = USUAL_DEFENCE,
) -> dict[str, Any]:
    """Refuse, before any training, what a later stage would refuse.

    Args:
        images: training images, uint8 (N, C, H, W).
        ledger: the defender's ledger.
        info: the data set's ``class_names``.
        detect: how many are suspected.
        relabel: who labels them.
        train: the full training.
        stamp: what they are stamped with.
        model: the net of every training.
        warmup: the trainings before detection.
        features: how features are learnt, if anybody needs them.
        defence: what of all that it needs.

    Returns:
        ``report``: the number of samples, trusted samples and suspects to come (at most),
        and the contrast of the stamp in use with what it covers, NaN for none.

    Raises:
        ValueError: as :func:`check_choices`, or if nobody would be suspected, detector,
            labeler or defence lack trusted samples, the stamp lies outside the images or
            looks like padding, the net does not give logits for such images, or features
            are needed and there are none to be had.
    """
    from counterdoor.models import channel_statistics, check_net
    from counterdoor.stamp import stamp_contrast

    check_ledger(ledger, images, "trusted")
    check_choices(detect, relabel, warmup, features, defence)
    trusted = int(ledger["trusted"].sum())
    chosen, suspects = defence.root, 0
    if chosen.needs_suspects:
        suspects = chosen.suspect_rule(detect.suspect_ratio).at_most(len(ledger) - trusted)
        detect.detector.check(ledger, len(info["class_names"]))
    if chosen.needs_pseudo_labels:
        relabel.labeler.check(ledger, len(info["class_names"]))
    used, contrast = chosen.stamp_in_use(stamp), float("nan")
    if used is not None:
        used.check_fits(*images.shape[-2:])
        mean, _ = channel_statistics(images)
        train.recipe.augment.check_stamp(used, mean)
        contrast = stamp_contrast(images, used, mean)
    check_net(model.root, images, len(info["class_names"]))
    if needs_features(detect, relabel, defence.root):
        features.root.check(model.root, images)
    chosen.check(images, ledger, len(info["class_names"]), model.root)
    return {
        "report": {
            "n_samples": len(ledger),
            "n_trusted": trusted,
            "n_suspects": suspects,
            "stamp_contrast": contrast,
        }
    }


def warm_up(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    check: dict[str, Any],
    params: WarmupParams,
    model: ModelParams,
    seed: int,
    engine: Engine = DEFAULT,
    defence: DefenceParams = USUAL_DEFENCE,
) -> dict[str, Any]:
    """Warm a net up for the detector, if it looks at one.

    Args:
        images: training images, uint8 (N, C, H, W).
        ledger: the defender's ledger.
        info: the data set's ``class_names``.
        check: the report of :func:`check_plan`; only its having passed counts.
        params: the recipes; without one nothing is trained.
        model: the net.
        seed: the run's seed.
        engine: what to run on.
        defence: if it needs no suspects, the net stays untrained.

    Returns:
        ``net`` (:class:`TrainedNet`) and ``history``; where nothing is trained the
        net as it begins, and no row.

    Source: NAB, section 4.1; ABL, section 4.2.
    """
    return _train(images, ledger, info, params.recipe, model, seed, engine, defence, "warmup")


def train_plain(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    check: dict[str, Any],
    params: WarmupParams,
    model: ModelParams,
    seed: int,
    engine: Engine = DEFAULT,
    defence: DefenceParams = USUAL_DEFENCE,
) -> dict[str, Any]:
    """Train a net as usual for the detector, if it looks at one; else as :func:`warm_up`."""
    recipe = params.plain_recipe
    return _train(images, ledger, info, recipe, model, seed, engine, defence, "plain")


def learn_features(
    images: np.ndarray,
    check: dict[str, Any],
    params: FeaturesParams,
    model: ModelParams,
    detect: DetectParams,
    relabel: RelabelParams,
    seed: int,
    engine: Engine = DEFAULT,
    cached: Mapping[str, Tensor] | None = None,
    defence: DefenceParams = USUAL_DEFENCE,
) -> dict[str, Any]:
    """Learn features of all images without any label, once, if detector or labeler need them.

    What was learnt from these images is handed on even if nobody needs it now, so that the
    newest version stays the one that somebody will need.

    Args:
        images: training images, uint8 (N, C, H, W).
        check: the report of :func:`check_plan`; only its having passed counts.
        params: how they are learnt.
        model: the net.
        detect: who may need them,
        relabel: and who else; neither has a part in what they are.
        seed: the run's seed.
        engine: what to run on.
        cached: what an earlier run with the same parameters made, if there was one; they are
            learnt anew of other images.
        defence: whether it needs suspects and pseudo-labels at all.

    Returns:
        ``features``: a CPU tensor of that name, float32 (N, D), or (0, 0) if nobody has
        needed them so far; ``earlier``, float32 (N, E), if ``params`` keep earlier layers; and
        the hash of the images.

    Source: DBD (Huang et al., ICLR 2022), section 4.1.
    """
    needed = needs_features(detect, relabel, defence.root)
    if not (needed or is_learnt(cached)):
        return {"features": dict(NONE)}
    hashed = content_hash(images)
    if cached is not None and is_learnt(cached) and is_tied(cached, hashed):
        return {"features": dict(cached)}
    if not needed:
        return {"features": dict(NONE)}
    learnt = params.root(images, model=model.root, seed=seed, engine=engine)
    tensors = {name: torch.from_numpy(each) for name, each in learnt.items()}
    return {"features": tied(tensors, hashed)}


def _train(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    recipe: Recipe | None,
    model: ModelParams,
    seed: int,
    engine: Engine,
    defence: DefenceParams,
    stream: str,
) -> dict[str, Any]:
    needed = recipe if defence.root.needs_suspects else None
    return train_as_it_came(
        *(images, ledger, info, needed, model, seed, engine),
        stream=stream,
        init=f"{stream}/init",
    )
