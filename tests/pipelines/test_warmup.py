"""The check before any training, and the warm-up."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from counterdoor.content import content_hash, tied
from counterdoor.features import SimCLR
from counterdoor.ledger import new_ledger
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
from counterdoor.pipelines.warmup.nodes import check_plan, learn_features, train_plain, warm_up
from counterdoor.recipe import Flooding, Recipe
from counterdoor.relabeling import ledger_samples
from counterdoor.stamp import Stamp
from counterdoor.training import fit

INFO = {"class_names": ["a", "b", "c"]}
MODEL = ModelParams({"name": "digits_cnn", "width": 2, "hidden": 4})
VD = {"labeler": {"name": "vd", "recipe": {"epochs": 1}}, "trusted_stamps": 1}
ONE_EPOCH = {"epochs": 1}
FEATURES = FeaturesParams(
    {"name": "simclr", "projection": 4, "recipe": {"epochs": 1, "batch_size": 20}}
)
DROP = {"labeler": {"name": "drop"}, "trusted_stamps": 0}


def ledger_of(n=60, trusted_per_class=2):
    labels = np.arange(n) % 3
    trusted = np.zeros(n, dtype=bool)
    for label in range(3):
        trusted[np.flatnonzero(labels == label)[:trusted_per_class]] = True
    return new_ledger(labels, trusted)


def check(
    images,
    ledger,
    suspect_ratio=0.1,
    relabel=VD,
    augment=None,
    stamp=None,
    detector="lga",
    model=MODEL,
    recipe=ONE_EPOCH,
    defence="nab",
    features=FEATURES,
    **settings,
):
    return check_plan(
        images,
        ledger,
        INFO,
        DetectParams(
            detector={"name": detector} if isinstance(detector, str) else detector,
            suspect_ratio=suspect_ratio,
        ),
        RelabelParams(**relabel),
        TrainParams(recipe={"epochs": 1, "augment": augment or {}}),
        stamp or Stamp(colour="white"),
        model,
        WarmupParams(recipe=recipe, plain_recipe=recipe),
        features,
        DefenceParams({"name": defence, **settings}),
    )["report"]


def test_the_report_of_a_sound_plan(noise):
    report = check(noise(60), ledger_of(), suspect_ratio=0.1)
    assert report["n_samples"] == 60
    assert report["n_trusted"] == 6
    assert report["n_suspects"] == 5  # floor of 5.4
    assert set(report) == {"n_samples", "n_trusted", "n_suspects", "stamp_contrast"}


@pytest.mark.parametrize("level", [0, 51, 255])
def test_the_stamps_contrast_is_its_distance_from_what_it_covers(level):
    images = np.full((60, 1, 12, 12), level, dtype=np.uint8)
    images[:, :, 4:, 4:] = 17  # not under the stamp
    report = check(images, ledger_of(), stamp=Stamp(size=3, colour="white"))
    assert report["stamp_contrast"] == pytest.approx(1 - level / 255)


@pytest.mark.parametrize("ratio", [0.001, 0.018])
def test_nobody_suspected_is_refused(noise, ratio):
    with pytest.raises(ValueError, match=f"suspect_ratio {ratio} of 54 untrusted samples selects"):
        check(noise(60), ledger_of(), suspect_ratio=ratio)


@pytest.mark.parametrize("suspect_ratio", [0.1, "adaptive"])
def test_everybody_trusted_is_refused(noise, suspect_ratio):
    with pytest.raises(ValueError, match="every sample is trusted: there is nobody to suspect"):
        check(noise(60), ledger_of(trusted_per_class=20), suspect_ratio)


def test_an_adaptive_rule_tells_how_many_it_can_suspect(noise):
    rule = {"name": "adaptive", "ceiling": 0.25}
    assert check(noise(60), ledger_of(), suspect_ratio=rule)["n_suspects"] == 13


@pytest.mark.parametrize(
    ("rule", "detector", "remedy"),
    [
        ("apart", "lga", "choose detector ac,"),
        ("apart", "agpd", "choose detector ac,"),
        ("strange", "ac", 'choose detector agpd with weight "sure",'),
        ("either", "ac", "choose detector either,"),
        ("carriers", "ac", "choose detector pattern,"),
        ("strange", "agpd", 'choose detector agpd with weight "sure",'),  # the default weight
    ],
)
def test_a_rule_that_reads_more_than_the_detector_tells_is_refused(noise, rule, detector, remedy):
    told = rf"suspect_ratio '{rule}' reads .*, which detector '{detector}' does not tell: {remedy}"
    with pytest.raises(ValueError, match=told):
        check(noise(60), ledger_of(), rule, detector=detector)


def test_a_rule_that_reads_what_the_detector_tells_is_not(noise):
    sure = {"name": "agpd", "weight": "sure"}
    for detector, rule in ("ac", "apart"), (sure, "strange"), ("pattern", "carriers"):
        assert check(noise(60), ledger_of(), rule, detector=detector)["n_suspects"] == 16


def test_a_labeler_without_trusted_samples_is_refused(noise):
    with pytest.raises(ValueError, match=r"needs trusted samples of every class.*raise ingest"):
        check(noise(60), ledger_of(trusted_per_class=0))
    lacking = ledger_of()
    lacking.loc[lacking["label"] == 1, "trusted"] = False
    with pytest.raises(ValueError, match=r"4 are trusted and classes \[1\] have none"):
        check(noise(60), lacking)


def test_a_detector_without_the_net_it_looks_at_is_refused(noise):
    with pytest.raises(ValueError, match=r"'lga' looks at a net .* set warmup\.recipe, now null"):
        check(noise(60), ledger_of(), recipe=None)
    assert check(noise(60), ledger_of(), recipe=None, detector="random")["n_suspects"] == 5


def test_a_labeler_that_needs_none_goes_without_trusted_samples(noise):
    report = check(noise(60), ledger_of(trusted_per_class=0), relabel=DROP)
    assert report["n_trusted"] == 0
    assert report["n_suspects"] == 6


@pytest.mark.parametrize(
    "stamp", [{"size": 13}, {"size": 2, "row": 11}, {"size": 2, "column": 11}, {"row": 400}]
)
def test_a_stamp_outside_the_images_is_refused(noise, stamp):
    with pytest.raises(ValueError, match=r"outside the 12x12 images; reduce stamp\.size"):
        check(noise(60), ledger_of(), stamp=Stamp(colour="white", **stamp))


@pytest.mark.parametrize("stamp", [{"size": 12}, {"size": 2, "row": 10, "column": 10}])
def test_a_stamp_that_just_fits(noise, stamp):
    assert check(noise(60), ledger_of(), stamp=Stamp(colour="white", **stamp))["n_samples"] == 60


def test_a_stamp_coloured_like_the_padding_is_refused(noise):
    with pytest.raises(ValueError, match="padding"):
        check(noise(60), ledger_of(), augment={"crop_padding": 2}, stamp=Stamp(colour="black"))
    dark = np.zeros((60, 1, 12, 12), dtype=np.uint8)
    with pytest.raises(ValueError, match="padding"):
        check(dark, ledger_of(), augment={"crop_padding": 2}, stamp=Stamp(colour="mean"))
    assert check(noise(60), ledger_of(), stamp=Stamp(colour="black"))["n_samples"] == 60


def test_a_stamp_of_another_number_of_channels_is_refused(noise):
    with pytest.raises(ValueError, match=r"stamp\.colour has 3 levels, but the images have 1"):
        check(noise(60), ledger_of(), stamp=Stamp(colour=(0.1, 0.2, 0.3)))


def test_a_net_that_does_not_give_logits_for_these_images_is_refused(noise, their_nets):
    settings = {"name": "external", "target": f"{their_nets}.Net"}
    given = settings | {"channels_argument": "in_channels"}
    assert check(noise(60), ledger_of(), model=ModelParams(given))["n_samples"] == 60
    with pytest.raises(ValueError, match="does not take the arguments num_classes"):
        check(noise(60), ledger_of(), model=ModelParams(settings))
    three = settings | {"arguments": {"in_channels": 3}}
    with pytest.raises(ValueError, match=r"does not take images of shape \(1, 12, 12\)"):
        check(noise(60), ledger_of(), model=ModelParams(three))


def test_a_ledger_of_other_images_is_refused(noise):
    with pytest.raises(ValueError, match="60 rows, but there are 59 images"):
        check(noise(59), ledger_of())


@pytest.mark.parametrize("defence", ["none", "fp", "nad", "pdb"])
def test_a_defence_without_suspects_is_not_checked_for_them(noise, defence):
    settings = {"trigger": {"size": 3, "colour": "bright"}} if defence == "pdb" else {}
    images = noise(60)
    report = check(images, ledger_of(), 0.001, defence=defence, **settings)
    assert report["n_suspects"] == 0
    if defence == "pdb":
        by_hand = 2.0 - images[:, :, :3, :3].mean() / 255
        assert report["stamp_contrast"] == pytest.approx(by_hand)
    else:
        assert math.isnan(report["stamp_contrast"])


def test_abl_is_checked_for_its_own_share_and_for_no_labeler(noise):
    none_trusted = ledger_of(trusted_per_class=0)
    report = check(noise(60), none_trusted, 0.001, defence="abl", isolation_ratio=0.1)
    assert report["n_suspects"] == 6
    with pytest.raises(ValueError, match=r"suspect_ratio 0\.01 of 60 untrusted samples selects"):
        check(noise(60), none_trusted, 0.5, defence="abl")


@pytest.mark.parametrize("defence", ["fp", "nad"])
def test_a_defence_without_trusted_samples_is_refused(noise, defence):
    with pytest.raises(ValueError, match=f"'{defence}' works with trusted samples, but 0 of 60"):
        check(noise(60), ledger_of(trusted_per_class=0), defence=defence)


def test_a_defensive_trigger_outside_the_images_is_refused(noise):
    with pytest.raises(ValueError, match="outside the 12x12 images"):
        check(noise(60), ledger_of(), defence="pdb", trigger={"size": 13})


@pytest.mark.parametrize("defence", ["none", "fp", "nad", "pdb"])
def test_nothing_is_warmed_up_for_a_defence_without_suspects(noise, defence):
    images, params = noise(60), WarmupParams(recipe={"epochs": 2})
    given = (images, ledger_of(), INFO, {}, params, MODEL, 7)
    made = warm_up(*given, defence=DefenceParams({"name": defence}))
    net = build_net(MODEL.root, images, 3, seed=7, stream="warmup/init")
    assert all(
        torch.equal(made["net"].state[name], each) for name, each in net.state_dict().items()
    )
    assert len(made["history"]) == 0
    assert list(made["history"]) == list(warm_up(*given)["history"])


@pytest.mark.parametrize(
    ("node", "key", "stream"),
    [(warm_up, "recipe", "warmup"), (train_plain, "plain_recipe", "plain")],
)
def test_training_before_detection_is_fit_on_all_samples_as_they_came(noise, node, key, stream):
    images, ledger = noise(60), ledger_of()
    recipe = Recipe(epochs=2, loss=Flooding(gamma=0.2))
    params = WarmupParams(**{"recipe": None, key: recipe})
    result = node(images, ledger, INFO, {}, params, MODEL, 7)
    net = build_net(MODEL.root, images, 3, seed=7, stream=f"{stream}/init")
    expected = fit(net, ledger_samples(images, ledger), recipe, seed=7, stream=stream)
    trained = result["net"]
    assert trained.stamp is None
    assert trained.num_classes == 3
    assert trained.image_shape == (1, 12, 12)
    assert trained.architecture == MODEL.root.model_dump()
    assert all(torch.equal(trained.state[name], each) for name, each in expected.state.items())
    assert result["history"]["loss"].tolist() == expected.history["loss"].tolist()
    assert len(result["history"]) == 2


@pytest.mark.parametrize("node", [warm_up, train_plain])
def test_nothing_is_trained_without_a_recipe(noise, node):
    images = noise(60)
    result = node(images, ledger_of(), INFO, {}, WarmupParams(recipe=None), MODEL, 7)
    assert len(result["history"]) == 0
    assert {"epoch", "loss", "images_per_second"} <= set(result["history"])
    assert result["net"].build()(torch.zeros(1, 1, 12, 12)).shape == (1, 3)


LN_VD, LGA_NC, LN_NC, LGA_VD = [
    {
        "detect": DetectParams(detector={"name": detector}, suspect_ratio=0.1),
        "relabel": RelabelParams(labeler={"name": labeler}, trusted_stamps=0),
    }
    for detector, labeler in (("ln", "vd"), ("lga", "nc"), ("ln", "nc"), ("lga", "vd"))
]


@pytest.fixture
def learnings(monkeypatch):
    """Counts how often features are learnt."""
    seen = []
    learn = SimCLR.__call__

    def counted(self, *args, **kwargs):
        seen.append(kwargs["seed"])
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(SimCLR, "__call__", counted)
    return seen


@pytest.mark.parametrize("needy", [LN_VD, LGA_NC, LN_NC])
def test_features_are_learnt_if_anybody_needs_them(noise, learnings, needy):
    images = noise(60)
    given = (images, {}, FEATURES, MODEL)
    made = learn_features(*given, **needy, seed=7)["features"]
    assert learnings == [7]
    expected = FEATURES.root(images, model=MODEL.root, seed=7)
    np.testing.assert_array_equal(made["features"].numpy(), expected["features"])
    assert made["features"].shape == (60, 4)


def test_features_that_nobody_needs_are_not_learnt(noise, learnings):
    made = learn_features(noise(60), {}, FEATURES, MODEL, **LGA_VD, seed=7)["features"]
    assert learnings == []
    assert len(made["features"]) == 0


@pytest.mark.parametrize("who", [LN_VD, LGA_VD])
def test_what_was_learnt_is_handed_on_whoever_needs_it(noise, learnings, who):
    images = noise(60)
    cached = tied({"features": torch.ones(60, 3)}, content_hash(images))
    made = learn_features(images, {}, FEATURES, MODEL, **who, seed=7, cached=cached)["features"]
    assert learnings == []
    assert torch.equal(made["features"], torch.ones(60, 3))
    again = learn_features(images, {}, FEATURES, MODEL, **who, seed=7, cached=made)["features"]
    assert learnings == []
    assert torch.equal(again["features"], made["features"])


def one_pixel(images):
    changed = images.copy()
    changed[59, 0, 11, 11] ^= 1
    return changed


CHANGES = {
    "other images": lambda images: np.flip(images, 3),
    "one pixel": one_pixel,
    "one removed": lambda images: images[1:],
    "one added": lambda images: np.concatenate([images, images[:1]]),
    "another order": lambda images: images[::-1],
    "another shape": lambda images: images.reshape(60, 1, 9, 16),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_features_of_other_images_are_neither_used_nor_handed_on(noise, learnings, change):
    learn = partial(learn_features, check={}, params=FEATURES, model=MODEL, seed=7)
    cached = learn(noise(60), **LN_NC)["features"]
    changed = np.ascontiguousarray(change(noise(60)))
    nobody = learn(changed, **LGA_VD, cached=cached)["features"]
    assert len(nobody["features"]) == 0
    assert learnings == [7]
    made = learn(changed, **LN_NC, cached=cached)["features"]
    fresh = learn(changed, **LN_NC)["features"]
    assert learnings == [7, 7, 7]
    assert made.keys() == fresh.keys()
    assert all(torch.equal(made[name], each) for name, each in fresh.items())
    assert len(made["features"]) == len(changed)


def test_features_that_do_not_say_of_which_images_are_learnt_anew(noise, learnings):
    cached = {"features": torch.ones(60, 4)}
    learn = partial(learn_features, noise(60), {}, FEATURES, MODEL, seed=7, cached=cached)
    assert len(learn(**LGA_VD)["features"]["features"]) == 0
    assert not torch.equal(learn(**LN_NC)["features"]["features"], cached["features"])
    assert learnings == [7]


def test_an_empty_artifact_is_no_features(noise, learnings):
    cached = {"features": torch.zeros(0, 0)}
    given = (noise(60), {}, FEATURES, MODEL)
    made = learn_features(*given, **LN_NC, seed=7, cached=cached)["features"]
    assert learnings == [7]
    assert len(made["features"]) == 60


def test_a_net_without_features_is_refused_where_they_are_needed(noise, their_nets):
    settings = {"name": "external", "target": f"{their_nets}.Net"}
    model = ModelParams(settings | {"channels_argument": "in_channels"})
    nc = {"labeler": {"name": "nc"}, "trusted_stamps": 0}
    with pytest.raises(ValueError, match="'external' has no linear layer as its head"):
        check(noise(60), ledger_of(), model=model, relabel=nc)
    assert check(noise(60), ledger_of(), model=model)["n_samples"] == 60


def test_images_are_moved_only_where_their_features_are_to_be_had(noise):
    moving = {"labeler": {"name": "nc", "align_images": True}, "trusted_stamps": 0}
    with pytest.raises(ValueError, match="choose features_name=patches"):
        check(noise(60), ledger_of(), relabel=moving)
    patches = FeaturesParams({"name": "patches"})
    assert check(noise(60), ledger_of(), relabel=moving, features=patches)["n_samples"] == 60
    large = FeaturesParams({"name": "patches", "side": 12})
    with pytest.raises(ValueError, match="are too small for 2 x 2 parts"):
        check(noise(60), ledger_of(), relabel=moving, features=large)
    assert check(noise(60), ledger_of(), features=large)["n_samples"] == 60
