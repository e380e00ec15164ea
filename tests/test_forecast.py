"""What a run will cost: which trainings, how fast, and how they are cut."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from counterdoor import forecast as module
from counterdoor.features import Patches, SimCLR
from counterdoor.forecast import Forecast, Training, forecast, trainings
from counterdoor.ledger import new_ledger
from counterdoor.models import DigitsCNN, build_net
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

SMALL = {"epochs": 3, "batch_size": 20}


def settings(detector="lga", labeler="vd", defence="nab", features="simclr", **warmup):
    recipe = {"recipe": SMALL} if labeler == "vd" else {}
    return {
        "warmup": WarmupParams(**{"recipe": SMALL, **warmup}),
        "features": FeaturesParams(
            SimCLR(recipe=Recipe(**SMALL)) if features == "simclr" else Patches(side=3)
        ),
        "detect": DetectParams(detector={"name": detector}, suspect_ratio=0.1),
        "relabel": RelabelParams(labeler={"name": labeler, **recipe}, trusted_stamps=0),
        "train": TrainParams(recipe=SMALL),
        "defence": DefenceParams({"name": defence}),
    }


def ledger(n=100, trusted=20):
    return new_ledger(np.arange(n) % 10, np.arange(n) < trusted)


@pytest.mark.parametrize(
    ("chosen", "stages", "images"),
    [
        ({}, ["warmup", "relabel", "train"], [100, 20, 100]),
        ({"labeler": "nc"}, ["warmup", "features", "train"], [100] * 3),
        ({"labeler": "nc", "features": "patches"}, ["warmup", "train"], [100] * 2),
        ({"labeler": "ud"}, ["warmup", "relabel", "train"], [100] * 3),
        ({"labeler": "drop"}, ["warmup", "train"], [100] * 2),
        ({"defence": "none"}, ["train"], [100]),
        ({"detector": "ln", "labeler": "drop"}, ["features", "train"], [100] * 2),
        (
            {"detector": "agpd", "labeler": "drop", "plain_recipe": SMALL},
            ["warmup", "train"],
            [100] * 2,
        ),
    ],
)
def test_the_trainings_are_those_that_somebody_needs(chosen, stages, images):
    found = trainings(ledger(), **settings(**chosen))
    assert [each.stage for each in found] == stages
    assert [each.images for each in found] == images


def made(*, warmup=60.0, train=600.0, epochs=40):
    rates = 10 * 600 / warmup, epochs * 1500 / train
    return Forecast(
        [
            Training("warmup", None, Recipe(epochs=10), 600, rate=rates[0]),
            Training("train", "train.recipe.epochs", Recipe(epochs=epochs), 1500, rate=rates[1]),
        ],
        predicting=10.0,
        disk=1,
    )


def test_seconds_are_those_of_trainings_and_predictions():
    assert made().seconds == pytest.approx(670)


@pytest.mark.parametrize(
    ("seconds", "epochs"), [(670, None), (669, 30), (370, 20), (369, 14), (130, 4)]
)
def test_epochs_are_cut_to_the_largest_share_that_fits_and_the_warm_up_is_not(seconds, epochs):
    plan = made()
    found = plan.within(seconds)
    assert found == ({} if epochs is None else {"train.recipe.epochs": epochs})
    assert plan.cut(found).seconds <= seconds + 1e-6
    assert [each.recipe.epochs for each in plan.cut(found).trainings] == [10, epochs or 40]
    assert plan.within(seconds + 15, besides=15) == found


def test_a_budget_that_is_too_small_is_refused_with_what_it_takes():
    with pytest.raises(ValueError, match=r"at least about 2\.4 minutes .* max_minutes is 2:"):
        made().within(120, besides=15)


def test_a_single_epoch_is_not_cut():
    assert made(epochs=1).within(670) == {}


def test_speeds_are_measured_and_disk_is_counted(digits):
    model = ModelParams(DigitsCNN(width=2, hidden=4))
    images = digits.images_nchw
    few = new_ledger(digits.labels, np.arange(400) < 50)
    info = {"class_names": digits.class_names, "n_test": 100}
    chosen = settings(labeler="nc")
    found = forecast(images, few, info, model=model, **chosen)
    assert [each.stage for each in found.trainings] == ["warmup", "features", "train"]
    assert all(np.isfinite(each.rate) and each.rate > 0 for each in found.trainings)
    assert found.seconds == pytest.approx(
        found.predicting + sum(3 * 400 / each.rate for each in found.trainings)
    )
    net = build_net(model.root, images, 10, seed=0, stream="x")
    weights = sum(each.nbytes for each in net.state_dict().values())
    assert 500 * 28 * 28 + weights < found.disk < 500 * 28 * 28 + 20 * weights
    pd.testing.assert_frame_equal(few, new_ledger(digits.labels, np.arange(400) < 50))


def test_features_that_are_not_trained_take_time_too(digits, monkeypatch):
    """One made in an hour for 100 images makes four hours of 400."""
    clock = iter([0.0, 3600.0])
    monkeypatch.setattr(module, "PROBED", (1, 100))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(Patches, "__call__", lambda *_, **__: {})
    monkeypatch.setattr(module, "measured", lambda each, *_: replace(each, rate=1000.0))
    images, few = digits.images_nchw, new_ledger(digits.labels, np.arange(400) < 50)
    info = {"class_names": digits.class_names, "n_test": 100}
    model = ModelParams(DigitsCNN(width=2, hidden=4))
    patches = settings(labeler="nc", features="patches")
    found = forecast(images, few, info, model=model, **patches)
    assert found.predicting == pytest.approx(4 * 3600, rel=0.01)
