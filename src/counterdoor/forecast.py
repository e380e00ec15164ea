"""What a defence of some images will cost: which trainings, how long, how much disk."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from counterdoor.component import Component
from counterdoor.defences import DefenceBase
from counterdoor.engine import DEFAULT, Engine
from counterdoor.features import SimCLR
from counterdoor.feed import Samples
from counterdoor.models import build_net
from counterdoor.params import (
    DefenceParams,
    DetectParams,
    FeaturesParams,
    ModelParams,
    RelabelParams,
    TrainParams,
    WarmupParams,
)
from counterdoor.recipe import Recipe
from counterdoor.training import Objective, fit

PROBED = 4, 2048
"""Batches, and images, of which at least the speed of a training is measured."""
PREDICTIONS = 6
"""How often about all images go through a net that is not trained, in a whole run."""
CHEAPER = 3.0
"""A training step takes about so many times as long as a prediction."""
NET_COPIES = 12
"""Files of about a net's size that a run leaves: nets, exports and MLflow's copies of them."""
BEFORE_DETECTION = ("warmup", "features")
"""Stages of the trainings that a detector may look at."""
SHARES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1)
"""What :func:`within` may cut the trainings to."""


@dataclass(frozen=True)
class Training:
    """One training of a run.

    Attributes:
        stage: the stage that it belongs to.
        key: where its number of epochs stands in the parameters; ``None`` where it must
            not be changed, since what follows is calibrated for it.
        recipe: how.
        images: images an epoch.
        objective: as of :func:`counterdoor.training.fit`.
        rate: images a second, once measured.
    """

    stage: str
    key: str | None
    recipe: Recipe
    images: int
    objective: Objective | None = None
    rate: float = float("nan")

    @property
    def seconds(self) -> float:
        """How long it takes at that rate."""
        return self.recipe.epochs * self.images / self.rate


@dataclass(frozen=True)
class Forecast:
    """What a run will do.

    Attributes:
        trainings: in their order.
        predicting: seconds for all predictions, and for features that no training is for.
        disk: bytes that it will write.
    """

    trainings: Sequence[Training]
    predicting: float
    disk: int

    @property
    def seconds(self) -> float:
        """How long all of it takes; reading the images and writing the results not counted."""
        return self.predicting + sum(each.seconds for each in self.trainings)

    def cut(self, epochs: Mapping[str, int]) -> "Forecast":
        """The same with other epochs, by the trainings' keys."""
        changed = []
        for each in self.trainings:
            update = {"epochs": epochs.get(each.key or "", each.recipe.epochs)}
            changed.append(replace(each, recipe=each.recipe.model_copy(update=update)))
        return replace(self, trainings=changed)

    def tested(self, copied: int) -> "Forecast":
        """The same with a self-test: what comes before detection a second time, on a copy.

        Args:
            copied: bytes of the images.
        """
        again = [
            replace(each, stage=f"canary {each.stage}")
            for each in self.trainings
            if each.stage in BEFORE_DETECTION
        ]
        copy = self.disk + copied
        return replace(self, trainings=[*self.trainings, *again], disk=copy)

    def within(self, seconds: float, besides: float = 0.0) -> dict[str, int]:
        """Epochs by parameter with which the run takes at most so long, or about.

        All trainings are cut to the same share of their epochs, but for those that the
        detector looks at. Nothing is ever made longer. Empty if nothing has to be cut.

        Args:
            seconds: at most.
            besides: what of it is spent on what is not counted here.

        Raises:
            ValueError: if even a tenth of the epochs would take too long.
        """
        fixed = (
            besides
            + self.predicting
            + sum(each.seconds for each in self.trainings if each.key is None)
        )
        free = [each for each in self.trainings if each.key is not None]
        for share in SHARES:
            epochs = [max(1, round(share * each.recipe.epochs)) for each in free]
            spent = sum(n * each.images / each.rate for n, each in zip(epochs, free, strict=True))
            if fixed + spent <= seconds:
                changed = zip(free, epochs, strict=True)
                return {str(each.key): n for each, n in changed if n < each.recipe.epochs}
        raise ValueError(
            f"at least about {(fixed + spent) / 60:.1f} minutes are needed here even with "
            f"{SHARES[-1]:.0%} of the epochs, but max_minutes is {seconds / 60:g}: give it more "
            "time, choose a smaller net (model_name), or smaller images (ingest.source.image_size)"
        )


def trainings(
    ledger: pd.DataFrame,
    warmup: WarmupParams,
    features: FeaturesParams,
    detect: DetectParams,
    relabel: RelabelParams,
    train: TrainParams,
    defence: DefenceParams,
) -> list[Training]:
    """The trainings that these parameters ask for on a ledger, in their order.

    Of the defences other than ``nab`` and ``none`` only what they share with those is known.
    """
    n, trusted, chosen = len(ledger), int(ledger["trusted"].sum()), defence.root
    found = []
    if chosen.needs_suspects:
        needed = {"warmup": warmup.recipe, "plain": warmup.plain_recipe}
        found += [
            Training("warmup", None, recipe, n)
            for name, recipe in needed.items()
            if recipe is not None and name in detect.detector.needs
        ]
    if needs_features(detect, relabel, chosen):
        learner = features.root
        if isinstance(learner, SimCLR):
            found.append(
                Training("features", "features.recipe.epochs", learner.recipe, n, learner.contrast)
            )
    labelling = getattr(relabel.labeler, "recipe", None)
    if chosen.needs_pseudo_labels and labelling is not None:
        taught = trusted if relabel.labeler.learns_from == "trusted" else n
        found.append(Training("relabel", "relabel.labeler.recipe.epochs", labelling, taught))
    found.append(Training("train", "train.recipe.epochs", train.recipe, n))
    return found


def needs_features(detect: DetectParams, relabel: RelabelParams, defence: DefenceBase) -> bool:
    """Whether detector or labeler look at features, and the defence at them."""
    by_detector = defence.needs_suspects and "features" in detect.detector.needs
    return by_detector or (defence.needs_pseudo_labels and relabel.labeler.needs_features)


def measured(
    training: Training, images_nchw: np.ndarray, model: Component, classes: int, engine: Engine
) -> Training:
    """The same with the rate of a few batches, of which the first epoch is not counted.

    Args:
        training: which.
        images_nchw: uint8, shape (N, C, H, W).
        model: the net.
        classes: number of classes.
        engine: what to run on.
    """
    few = max(PROBED[0] * training.recipe.batch_size, PROBED[1])
    n = min(len(images_nchw), training.images, few)
    part = np.ascontiguousarray(images_nchw[:n])
    outputs = classes if training.objective is None else 128
    net = build_net(model, part, outputs, seed=0, stream="forecast/init")
    samples = Samples(part, np.arange(n), np.arange(n) % classes)
    recipe = training.recipe.model_copy(update={"epochs": 2})
    fitted = fit(
        *(net, samples, recipe),
        seed=0,
        stream="forecast",
        objective=training.objective,
        engine=engine,
    )
    rate = float(fitted.history["images_per_second"].iloc[-1])
    return replace(training, rate=rate)


def forecast(
    images_nchw: np.ndarray,
    ledger: pd.DataFrame,
    info: Mapping[str, Any],
    *,
    warmup: WarmupParams,
    features: FeaturesParams,
    detect: DetectParams,
    relabel: RelabelParams,
    train: TrainParams,
    defence: DefenceParams,
    model: ModelParams,
    engine: Engine = DEFAULT,
) -> Forecast:
    """Forecast a run, from the speed of a few batches of each of its trainings.

    Args:
        images_nchw: training images, uint8, shape (N, C, H, W).
        ledger: with ``trusted``.
        info: ``class_names`` and ``n_test``.
        warmup: as all others, the run's parameters.
        features: of features without labels.
        detect: who is suspected.
        relabel: who labels suspects.
        train: the full training.
        defence: the defence.
        model: the net.
        engine: what to run on.
    """
    planned = trainings(ledger, warmup, features, detect, relabel, train, defence)
    classes = len(info["class_names"])
    known = [measured(each, images_nchw, model.root, classes, engine.alone()) for each in planned]
    fastest = max(each.rate for each in known if each.objective is None)
    predicting = PREDICTIONS * len(images_nchw) / (CHEAPER * fastest)
    if needs_features(detect, relabel, defence.root) and not isinstance(features.root, SimCLR):
        few = images_nchw[: PROBED[1]]
        started = time.monotonic()
        features.root(few, model=model.root, seed=0, engine=engine)
        predicting += (time.monotonic() - started) * len(images_nchw) / len(few)
    net = build_net(model.root, images_nchw[:2], classes, seed=0, stream="forecast/init")
    weights = sum(each.numel() * each.element_size() for each in net.state_dict().values())
    test = images_nchw[0].nbytes * int(info["n_test"])
    return Forecast(known, predicting, images_nchw.nbytes + test + NET_COPIES * weights)
