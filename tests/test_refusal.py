"""A wrong value is told in one line: where it was typed, what it is, what is valid."""

import pytest
from pydantic import ValidationError

from counterdoor.params import (
    ALSO,
    AttackParams,
    DetectParams,
    IngestParams,
    ModelParams,
    TrainParams,
    check,
)
from counterdoor.refusal import LONGEST, one_line, unknown
from counterdoor.stamp import Stamp

RECIPE = {"epochs": 1}
SHARES = {"test_share": 0.2, "trusted_share": 0}
TOLD = [
    (
        *(TrainParams, "train", {"recipe": {"epochs": True}}),
        "train.recipe.epochs is True; it must be a whole number from 1 to 1000000",
    ),
    (
        *(TrainParams, "train", {"recipe": RECIPE | {"momentum": float("nan")}}),
        "train.recipe.momentum is nan; it must be a number at least 0 and below 1",
    ),
    (
        *(TrainParams, "train", {"recipe": {"epoch": 1}}),
        "unknown parameter 'epoch' at train.recipe.epoch; did you mean 'epochs'? Valid names: "
        "augment, batch_size, epochs, label_smoothing, learning_rate, loss, momentum, muon, "
        "nesterov, schedule, weight_decay",
    ),
    (
        *(TrainParams, "train", {"recipe": {}}),
        "train.recipe.epochs is missing; it must be a whole number from 1 to 1000000",
    ),
    (*(TrainParams, "train", 5), "train is 5; it must be a mapping of parameters: mirror, recipe"),
    (
        *(TrainParams, "train", {"recipe": RECIPE | {"schedule": {"name": "stps"}}}),
        "unknown name 'stps' at train.recipe.schedule.name; did you mean 'steps'? Valid names: "
        "cosine, steps, triangle",
    ),
    (
        *(TrainParams, "train", {"recipe": RECIPE | {"schedule": {}}}),
        "train.recipe.schedule is {}; it must be a mapping of parameters, name among them",
    ),
    (
        TrainParams,
        "train",
        {"recipe": RECIPE | {"schedule": {"name": "steps", "milestones": [3, -1]}}},
        "train.recipe.schedule.milestones.1 is -1; it must be a whole number from 0 to 1000000",
    ),
    (
        *(TrainParams, "train", {"recipe": RECIPE | {"nesterov": 1}}),
        "train.recipe.nesterov is 1; it must be true or false",
    ),
    (
        *(AttackParams, "attack", {"name": "blend", "alpha": True}),
        "attack.alpha is True; it must be a number above 0 and below 1",
    ),
    (
        *(AttackParams, "attack", {"name": "blend", "poison_ratio": 2}),
        "poison_ratio (attack.poison_ratio) is 2; it must be a number above 0 and below 1",
    ),
    (
        *(AttackParams, "attack", {"name": "adap_blend", "pieces": 5}),
        "attack.pieces is 5: 5 is no square number; take 4",
    ),
    (
        *(ModelParams, "model", {"name": "external", "target": "net"}),
        "model.target is 'net'; it must be package.module.Name",
    ),
    (
        *(DetectParams, "detect", {"detector": {"name": "ac"}, "suspect_ratio": True}),
        "detect.suspect_ratio is True; it must be a number above 0 and below 1",
    ),
    (
        *(DetectParams, "detect", {"detector": {"name": "ac"}, "suspect_ratio": [1]}),
        "detect.suspect_ratio is [1]: it must be a share, the name of a rule, or a rule with its "
        "parameters",
    ),
    (
        DetectParams,
        "detect",
        {"detector": {"name": "ensemble", "members": [{"name": "lgaa"}]}, "suspect_ratio": 0.1},
        "unknown name 'lgaa' at detect.detector.members.0.name; did you mean 'lga'? Valid names: "
        "ac, agpd, either, ensemble, lga, ln, oracle, pattern, random, scan, spectre",
    ),
    (
        *(IngestParams, "ingest", SHARES | {"source": {"name": "digits", "image_size": [9, 0]}}),
        "ingest.source.image_size.1 is 0; it must be a whole number from 1 to 4096",
    ),
    (
        *(IngestParams, "ingest", SHARES | {"source": {"name": "digits", "path": "x"}}),
        "unknown parameter 'path' at source_path (ingest.source.path). Valid names: image_mode, "
        "image_size, name, resize",
    ),
    (
        *(Stamp, "stamp", {"colour": "grey"}),
        "stamp.colour is 'grey'; it must be 'white' or 'black' or 'mean' or 'bright' or a list, "
        "each a number from 0.0 to 1.0",
    ),
]


@pytest.mark.parametrize(("model", "place", "given", "expected"), TOLD)
def test_the_line(model, place, given, expected):
    with pytest.raises(ValidationError) as raised:
        model.model_validate(given)
    assert one_line(raised.value, model, given, place, ALSO) == expected


def test_a_rule_of_our_own_keeps_its_words():
    given = {"recipe": RECIPE, "mirror": True}
    with pytest.raises(ValidationError) as raised:
        TrainParams.model_validate(given)
    told = one_line(raised.value, TrainParams, given, "train")
    assert told.startswith("train: mirror asks for predictions on mirror images")
    assert "\n" not in told


def test_a_long_value_is_cut():
    given = {"recipe": {"epochs": "x" * 500}}
    with pytest.raises(ValidationError) as raised:
        TrainParams.model_validate(given)
    told = one_line(raised.value, TrainParams, given)
    assert told.startswith("recipe.epochs is 'xxx")
    assert len(told) < LONGEST + 100


def test_the_nearest_name():
    assert unknown("thing", "b", "b", ["ab", "c"]) == (
        "unknown thing 'b'; did you mean 'ab'? Valid names: ab, c"
    )
    assert unknown("thing", "x.q", "q", ["ab"]) == "unknown thing 'q' at x.q. Valid names: ab"


def test_every_stage_is_checked():
    check({})
    for name in ("export", "canary", "verdict", "engine", "relabel"):
        with pytest.raises(ValueError, match=f"{name} is 5; it must be a mapping of parameters"):
            check({name: 5})
