"""Named choices, checked names, and paths that change exactly when the result may."""

import math
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from shutil import copytree

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from counterdoor.augment import Augment
from counterdoor.cli import message
from counterdoor.config import STAGES, ConfigError, VariantConfigLoader, known, variant_path
from counterdoor.defences import ABL, NAD, PDB, FinePruning
from counterdoor.detectors import LN, Adaptive
from counterdoor.engine import Engine
from counterdoor.features import Contrast, SimCLR, Views
from counterdoor.labelers import NC, VD
from counterdoor.params import (
    AttackParams,
    DefenceParams,
    DetectParams,
    FeaturesParams,
    IngestParams,
    ModelParams,
    RelabelParams,
    TrainParams,
    WarmupParams,
)
from counterdoor.recipe import LocalGradientAscent
from counterdoor.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS
from counterdoor.stamp import Stamp

pytestmark = pytest.mark.filterwarnings(
    # Kedro's own call of a function that OmegaConf 2.4 renamed.
    "ignore:register_new_resolver",
)

CONF = Path(__file__).resolve().parents[1] / "conf"
ORDER = [
    *("ingest", "attack", "features", "warmup", "detect", "relabel", "train", "evaluate", "export"),
    "selftest",
]

# The first stage whose result each parameter can change, written down by hand.
FIRST_READ = {
    "seed": "ingest",
    "source_name": "ingest",
    "ingest": "ingest",
    "attack_name": "attack",
    "poison_ratio": "attack",
    "label_mapping": "attack",
    "attack": "attack",
    "model_name": "features",
    "model": "features",
    "features_name": "features",
    "features": "features",
    "engine": "attack",
    "warmup": "warmup",
    "detector_name": "detect",
    "detect": "detect",
    "labeler_name": "relabel",
    "relabel": "relabel",
    "stamp": "relabel",
    "defence": "warmup",
    "defence_name": "train",
    "train": "train",
    "export": "export",
    "verdict": "export",
    "canary": "selftest",
}


def load(conf=CONF, env="base", **given):
    return CONFIG_LOADER_CLASS(
        conf_source=str(conf), env=env, runtime_params=given, **CONFIG_LOADER_ARGS
    )


def parameters(conf=CONF, env="base", **given):
    return load(conf, env, **given)["parameters"]


@cache
def chosen(choice=()):
    """The parameters of the project with one choice made; loaded once, not to be changed."""
    return parameters(**dict(choice))


def leaves(value, path=()):
    """Paths of all values in nested mappings and lists."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key], (*path, key))]
    if isinstance(value, list):
        return [leaf for i, each in enumerate(value) for leaf in leaves(each, (*path, i))]
    return [path]


def public(values):
    return {key: value for key, value in values.items() if not key.startswith("_")}


def changed(values, path, new="changed"):
    values = deepcopy(values)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return values


def paths(values):
    return {stage: variant_path(values, stage) for stage in ORDER}


@pytest.fixture
def conf(tmp_path):
    """A copy of the configuration with an environment ``lab``; of the catalog, a few entries."""
    copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "lab").mkdir()
    catalog = yaml.safe_load((CONF / "base" / "catalog.yml").read_text())
    kept = {name: catalog[name] for name in ("clean_images", "images", "metrics")}
    (tmp_path / "conf" / "base" / "catalog.yml").write_text(yaml.safe_dump(kept))
    return tmp_path / "conf"


CHOICES = [
    {},
    {"source_name": "parquet"},
    {"attack_name": "blend"},
    {"label_mapping": "all_to_all"},
    {"model_name": "resnet18"},
    {"detector_name": "random"},
    {"features_name": "patches"},
    {"labeler_name": "drop"},
    {"defence_name": "pdb"},
]
LEAVES = [
    pytest.param(
        given, leaf, id=f"{''.join(given.values()) or 'default'}-{'.'.join(map(str, leaf))}"
    )
    for given in CHOICES
    for leaf in leaves(public(chosen(tuple(given.items()))))
]


def test_the_settings_use_this_loader():
    assert CONFIG_LOADER_CLASS is VariantConfigLoader


def test_the_stages_in_order():
    assert list(STAGES) == ORDER


def test_every_parameter_of_the_project_is_accounted_for():
    """A new parameters file has to be entered in FIRST_READ, and so in a digest."""
    assert set(public(chosen())) == set(FIRST_READ)
    assert set(FIRST_READ) == {key for choices, keys in STAGES.values() for key in choices + keys}


@pytest.mark.parametrize(("given", "leaf"), LEAVES)
def test_a_path_changes_with_its_own_and_earlier_parameters_and_with_no_later_one(given, leaf):
    values = chosen(tuple(given.items()))
    before, after = paths(values), paths(changed(values, leaf))
    first = ORDER.index(FIRST_READ[leaf[0]])
    for number, stage in enumerate(ORDER):
        assert (before[stage] != after[stage]) == (number >= first), stage


@pytest.mark.parametrize(
    "key",
    [
        "ingest",
        "attack",
        "model",
        "engine",
        "features",
        "warmup",
        "defence",
        "detect",
        "relabel",
        "stamp",
        "train",
    ],
)
def test_an_added_key_changes_the_path(key):
    values = chosen()
    assert paths(changed(values, (key, "new")))["evaluate"] != paths(values)["evaluate"]


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 1},
        {"poison_ratio": 0.05},
        {"attack_name": "blend"},
        {"label_mapping": "all_to_all"},
        {"attack": {"labels": {"target_class": 3}}},
        {"model_name": "resnet18"},
        {"detector_name": "random"},
        {"labeler_name": "drop"},
        {"defence_name": "none"},
        {"defence": {"name": "nad"}},
        {"source_name": "parquet"},
        {"train": {"recipe": {"epochs": 3}}},
        {"relabel": {"labeler": {"recipe": {"augment": {"crop_padding": 3}}}}},
        {"stamp": {"colour": [0.5]}},
    ],
)
def test_a_run_parameter_changes_the_path_of_the_catalog(conf, given):
    catalogs = [load(conf, **each)["catalog"] for each in ({}, given)]
    folders = [catalog["metrics"]["filepath"] for catalog in catalogs]
    assert folders[0] != folders[1]
    for catalog, each in zip(catalogs, ({}, given), strict=True):
        stage_path = variant_path(parameters(**each), "evaluate")
        assert catalog["metrics"]["filepath"] == f"data/08_reporting/{stage_path}/metrics.json"


def test_the_path_is_readable():
    path = variant_path(chosen(), "evaluate")
    assert re.fullmatch(
        r"digits/badnets-0\.1-all_to_one/digits_cnn-simclr/lga/vd/nab/s0-[0-9a-f]{8}", path
    )
    path = variant_path(parameters(seed=12, attack_name="blend", poison_ratio=0.05), "attack")
    assert re.fullmatch(r"digits/blend-0\.05-all_to_one/s12-[0-9a-f]{8}", path)
    assert re.fullmatch(r"digits/s0-[0-9a-f]{8}", variant_path(chosen(), "ingest"))


def test_a_clean_data_set_has_a_ratio_of_0_in_its_path():
    values = parameters(attack_name="none")
    assert values["poison_ratio"] == 0
    assert re.fullmatch(r"digits/none-0-all_to_one/s0-[0-9a-f]{8}", variant_path(values, "attack"))
    assert public(parameters(attack_name="none", poison_ratio=0)) == public(values)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.1, {"name": "fixed", "ratio": 0.1}),
        ("adaptive", Adaptive().model_dump()),
        ({"name": "adaptive", "floor": 0.01}, Adaptive(floor=0.01).model_dump()),
        ({"name": "fixed"}, {"name": "fixed", "ratio": 0.05}),
    ],
    ids=str,
)
def test_a_suspect_ratio_is_a_share_or_a_rule(given, expected):
    """Each as ``--params`` lays it over the base."""
    values = parameters(detect={"suspect_ratio": given})
    rule = DetectParams.model_validate(values["detect"]).suspect_ratio
    assert rule.model_dump() == expected


@pytest.mark.parametrize("wrong", [0, 1, -0.1, 1.5, True, "adaptiv", {"name": "fixed", "floor": 0}])
def test_a_suspect_ratio_that_is_none_is_refused(wrong):
    with pytest.raises(ValidationError, match="suspect_ratio"):
        DetectParams(detector={"name": "random"}, suspect_ratio=wrong)


def test_run_parameters_may_come_in_any_order():
    inside = {"source": {"image_size": 16}}
    for given in (
        {"source_name": "image_folder", "ingest": inside},
        {"ingest": inside, "source_name": "image_folder"},
    ):
        source = parameters(**given)["ingest"]["source"]
        assert (source["name"], source["image_size"]) == ("image_folder", 16)


def test_the_path_does_not_depend_on_the_order_of_keys():
    values = chosen()
    turned = {key: values[key] for key in reversed(values)}
    turned["train"] = {"recipe": dict(reversed(values["train"]["recipe"].items()))}
    assert paths(turned) == paths(values)


def test_loading_twice_gives_the_same_paths(conf):
    assert paths(parameters()) == paths(parameters())
    assert load(conf)["catalog"] == load(conf)["catalog"]


def test_two_loaders_do_not_mix_up_their_catalogs(conf):
    one, other = load(conf, seed=1), load(conf, seed=2)
    assert "/s1-" in one["catalog"]["clean_images"]["filepath"]
    assert "/s2-" in other["catalog"]["clean_images"]["filepath"]
    assert "/s1-" in one["catalog"]["images"]["filepath"]


def test_an_unknown_stage_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no stage 'trian'; the stages are ingest, attack, fea"):
        variant_path(chosen(), "trian")


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "...", "../up", "a/b", "a b", "a\\b", "a\nb", "a:b", "~", "$HOME", "*"]
)
@pytest.mark.parametrize("key", ["source_name", "labeler_name"])
def test_what_cannot_be_part_of_a_path_is_refused(key, bad):
    with pytest.raises(ConfigError, match="cannot be part of a path; use letters") as caught:
        variant_path(chosen() | {key: bad}, "relabel")
    assert repr(bad) in str(caught.value)


@pytest.mark.parametrize("good", ["resnet18", "my-data_2.v1", "..a", 0.05])
def test_what_can_be_part_of_a_path(good):
    path = variant_path(chosen() | {"source_name": good}, "ingest")
    assert path.startswith(f"{good}/s0-")


@pytest.mark.parametrize("bad", ["a/b", "..", "0.1 "])
def test_a_share_that_cannot_be_part_of_a_path_is_refused(conf, bad):
    with pytest.raises(ConfigError) as caught:
        load(conf, poison_ratio=bad)["catalog"]
    expected = f"poison_ratio is {bad!r}; it must be a number at least 0 and below 1"
    assert str(caught.value) == expected


def test_the_catalog_tells_saved_nets_the_runs_own_model(conf):
    entry = {"type": "counterdoor.io.TrainedNetDataset", "filepath": "x", "model": "${model:}"}
    (conf / "base" / "catalog.yml").write_text(yaml.safe_dump({"net": entry}))
    model = {"target": "theirs.Net", "arguments": {"widths": [1, 2]}}
    loaded = load(conf, model_name="external", model=model)
    assert loaded["catalog"]["net"]["model"] == {"name": "external", **model}
    assert load(conf)["catalog"]["net"]["model"] == loaded["parameters"]["_models"]["digits_cnn"]


NAMES = {
    "source_name": [
        "cifar10",
        "cifar100",
        "digits",
        "fashion_mnist",
        "gtsrb",
        "image_folder",
        "mnist",
        "parquet",
        "svhn",
        "tiny_imagenet",
    ],
    "attack_name": [
        "adap_blend",
        "adap_patch",
        "badnets",
        "blend",
        "cl",
        "dynamic",
        "none",
        "sig",
        "trojannn",
        "wanet",
    ],
    "label_mapping": ["all_to_all", "all_to_one"],
    "model_name": [
        "compact",
        "densenet121",
        "digits_cnn",
        "external",
        "mobilenet_v3",
        "preact_resnet18",
        "resnet18",
        "resnet34",
        "resnet50",
        "vgg16_bn",
    ],
    "detector_name": [
        "ac",
        "agpd",
        "either",
        "ensemble",
        "lga",
        "ln",
        "oracle",
        "pattern",
        "random",
        "scan",
        "spectre",
    ],
    "features_name": ["patches", "simclr"],
    "labeler_name": ["drop", "nc", "oracle", "ud", "vd"],
    "defence_name": ["abl", "fp", "nab", "nad", "none", "pdb"],
}
CHOSEN = {
    "source_name": lambda values: values["ingest"]["source"],
    "attack_name": lambda values: values["attack"],
    "label_mapping": lambda values: values["attack"]["labels"],
    "model_name": lambda values: values["model"],
    "detector_name": lambda values: values["detect"]["detector"],
    "features_name": lambda values: values["features"],
    "labeler_name": lambda values: values["relabel"]["labeler"],
    "defence_name": lambda values: values["defence"],
}


@pytest.mark.parametrize(("key", "name"), [(key, name) for key in NAMES for name in NAMES[key]])
def test_a_named_choice_is_what_the_stage_gets(key, name):
    values = parameters(**{key: name})
    assert values[key] == name
    assert CHOSEN[key](values)["name"] == name


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize("wrong", ["nonsense", "", "../up"])
def test_an_unknown_choice_lists_the_valid_names(key, wrong):
    with pytest.raises((ConfigError, OmegaConfBaseException)) as caught:
        parameters(**{key: wrong})
    text = message(caught.value)
    assert text.startswith(f"unknown {key} {wrong!r}")
    assert text.endswith(f"Valid names: {', '.join(NAMES[key])}")


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        ("attack_name", "badnet", "badnets"),
        ("label_mapping", "all_to_on", "all_to_one"),
        ("model_name", "resnet81", "resnet18"),
        ("detector_name", "lag", "lga"),
        ("labeler_name", "dorp", "drop"),
        ("defence_name", "nabb", "nab"),
        ("source_name", "digit", "digits"),
    ],
)
def test_a_misspelt_choice_suggests_the_right_one(key, wrong, right):
    with pytest.raises((ConfigError, OmegaConfBaseException)) as caught:
        parameters(**{key: wrong})
    assert f"unknown {key} {wrong!r}; did you mean {right!r}?" in message(caught.value)


def test_known_raises_a_config_error():
    options = OmegaConf.create({"one": 1, "two": 2})
    assert known("thing", "two", options) == "two"
    with pytest.raises(ConfigError, match=r"^unknown thing 'tow'; did you mean 'two'\?"):
        known("thing", "tow", options)
    with pytest.raises(ConfigError, match=r"^unknown thing 'xyz'\. Valid names: one, two$"):
        known("thing", "xyz", options)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("sed", "seed"),
        ("poisson_ratio", "poison_ratio"),
        ("atack_name", "attack_name"),
        ("trian", "train"),
        ("labeller_name", "labeler_name"),
    ],
)
def test_a_misspelt_parameter_suggests_the_right_one(wrong, right):
    with pytest.raises(ConfigError, match=f"unknown parameter '{wrong}'; did you mean '{right}'"):
        parameters(**{wrong: 1})


def test_an_unknown_parameter_lists_those_there_are():
    with pytest.raises(ConfigError) as caught:
        parameters(qqq=1)
    text = str(caught.value)
    assert text == f"unknown parameter 'qqq'. Valid names: {', '.join(sorted(FIRST_READ))}"


def test_a_wrong_name_among_right_ones_is_found():
    with pytest.raises(ConfigError, match="unknown parameter 'epochs'"):
        parameters(seed=3, epochs=4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"train": 5}, "train is 5; it must be a mapping of parameters, such as train.recipe"),
        ({"model": None}, "model is None; it must be a mapping of parameters, such as model.name"),
        ({"poison_ratio": True}, "poison_ratio is True; it must be a number at least 0 and below"),
        ({"poison_ratio": math.nan}, "poison_ratio is nan; it must be a number at least 0 and bel"),
        ({"train": {"recipe": "???"}}, "train.recipe is '???', which is no value"),
        ({"attack_name": ["blend"]}, "attack_name is ['blend']; it must be a text"),
        ({"model_name": {"name": "compact"}}, "model_name is {'name': 'compact'}; it must be a te"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be a whole number from 0 to 92233"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_what_has_the_wrong_shape_is_refused_before_it_is_merged(given, told):
    with pytest.raises(ConfigError) as caught:
        parameters(**given)
    assert str(caught.value).startswith(told)


def test_a_path_is_no_interpolation():
    source = {"path": "a/${seed}\\${b", "image_size": 8}
    values = parameters(source_name="image_folder", ingest={"source": source})
    assert values["ingest"]["source"]["path"] == source["path"]


def test_checking_leaves_the_run_parameters_in_force():
    loader = load(seed=5, train={"recipe": {"epochs": 3}})
    assert loader["parameters"]["seed"] == 5
    assert loader["parameters"]["train"]["recipe"]["epochs"] == 3
    assert loader["parameters"]["train"]["recipe"]["batch_size"] == 64
    assert loader.runtime_params == {"seed": 5, "train": {"recipe": {"epochs": 3}}}


@pytest.mark.parametrize("bad", [-1, 1.0, 0.5, "0", "a", True, False, None, [1]])
def test_a_bad_seed_is_refused(bad):
    with pytest.raises(
        ConfigError, match=r"seed is .*; it must be a whole number from 0"
    ) as caught:
        parameters(seed=bad)
    assert repr(bad) in str(caught.value)


@pytest.mark.parametrize("good", [0, 1, 2**40])
def test_a_good_seed(good):
    assert parameters(seed=good)["seed"] == good


def test_an_environment_replaces_choices_one_by_one(conf):
    (conf / "lab" / "globals.yml").write_text("attack_name: blend\nseed: 7\n")
    values = parameters(conf, "lab")
    assert values["attack_name"] == "blend"
    assert values["attack"]["name"] == "blend"
    assert values["seed"] == 7
    base = parameters(conf)
    untouched = set(base) - {"attack_name", "attack", "seed"}
    assert {key: values[key] for key in untouched} == {key: base[key] for key in untouched}
    catalog = load(conf, "lab")["catalog"]
    assert catalog["metrics"]["filepath"].startswith(
        "data/08_reporting/digits/blend-0.1-all_to_one/"
    )
    assert "/s7-" in catalog["metrics"]["filepath"]


def test_a_run_parameter_goes_before_the_environment(conf):
    (conf / "lab" / "globals.yml").write_text("attack_name: blend\nseed: 7\n")
    values = parameters(conf, "lab", seed=8)
    assert values["seed"] == 8
    assert values["attack"]["name"] == "blend"


def test_an_environment_merges_parameters_softly(conf):
    (conf / "lab" / "parameters_train.yml").write_text("train: {recipe: {epochs: 3}}\n")
    values, base = parameters(conf, "lab"), parameters(conf)
    assert values["train"]["recipe"] == base["train"]["recipe"] | {"epochs": 3}
    assert values["warmup"] == base["warmup"]
    assert variant_path(values, "train") != variant_path(base, "train")
    assert variant_path(values, "relabel") == variant_path(base, "relabel")


def test_an_empty_environment_changes_nothing(conf):
    assert parameters(conf, "lab") == parameters(conf)


def test_the_choice_and_the_component_agree_in_an_environment(conf):
    """Whichever file of an environment names the attack, the path names the one that runs."""
    (conf / "lab" / "parameters.yml").write_text("attack_name: blend\npoison_ratio: 0.05\n")
    try:
        values = parameters(conf, "lab")
    except (ConfigError, OmegaConfBaseException) as refusal:
        assert "attack_name" in message(refusal)  # noqa: PT017
        return
    assert values["attack"]["name"] == values["attack_name"]
    assert values["attack"]["poison_ratio"] == values["poison_ratio"]


@pytest.mark.parametrize(
    "given",
    [
        {"attack": {"name": "blend"}},
        {"attack": {"poison_ratio": 0.3}},
        {"model": {"name": "resnet18"}},
        {"features": {"name": "patches"}},
    ],
    ids=["attack.name", "attack.poison_ratio", "model.name", "features.name"],
)
def test_the_path_names_what_runs_when_a_component_is_chosen_in_place(given):
    try:
        values = parameters(**given)
    except (ConfigError, OmegaConfBaseException) as refusal:
        assert "_name" in message(refusal) or "poison_ratio" in message(refusal)  # noqa: PT017
        return
    path = variant_path(values, "warmup")
    assert f"/{values['attack']['name']}-{values['attack']['poison_ratio']}-all_to_one/" in path
    assert f"/{values['model']['name']}-{values['features']['name']}/" in path


@pytest.mark.parametrize("env", ["cifar10", "paper"])
def test_the_environments_are_valid(env):
    values = parameters(env=env)
    assert values["ingest"]["source"]["name"] == "cifar10"
    for key, kind in (
        ("ingest", IngestParams),
        ("attack", AttackParams),
        ("model", ModelParams),
        ("features", FeaturesParams),
        ("warmup", WarmupParams),
        ("detect", DetectParams),
        ("relabel", RelabelParams),
        ("train", TrainParams),
        ("defence", DefenceParams),
        ("stamp", Stamp),
        ("engine", Engine),
    ):
        kind.model_validate(values[key])


def test_cifar10_is_the_compact_net_with_the_fast_recipe():
    values = parameters(env="cifar10")
    assert values["model"]["name"] == "compact"
    assert values["warmup"]["recipe"]["loss"] == {"name": "flooding", "gamma": 0.5}
    assert values["train"]["recipe"]["augment"]["crop_fill"] == "reflect"


def test_paper_has_the_papers_values():
    """Of the authors' code; every value that is not a default of the library."""
    values = parameters(env="paper")
    assert values["model"] == {"name": "resnet18", "small_image_stem": True}
    assert Stamp.model_validate(values["stamp"]) == Stamp()
    train = TrainParams.model_validate(values["train"]).recipe
    assert (train.epochs, train.batch_size, train.learning_rate) == (100, 64, 0.1)
    assert (train.momentum, train.weight_decay) == (0.9, 1e-4)
    rates = [train.learning_rate * train.schedule(epoch, 100) for epoch in (0, 50, 99)]
    by_hand = [0.5 * (1 + math.cos(math.pi * epoch / 105)) * 0.1 for epoch in (0, 50, 99)]
    assert rates == pytest.approx(by_hand)
    warmup = WarmupParams.model_validate(values["warmup"]).recipe
    assert (warmup.epochs, warmup.loss.gamma) == (20, 0.5)
    assert warmup.schedule(10, 20) == pytest.approx(0.5 * (1 + math.cos(math.pi * 10 / 100)))
    assert warmup.augment == Augment()
    relabel = RelabelParams.model_validate(values["relabel"])
    assert relabel.labeler == VD()
    assert relabel == RelabelParams(labeler=VD(), trusted_stamps=0)
    assert values["detect"]["suspect_ratio"] == values["ingest"]["trusted_share"] == 0.05
    views = Views(blur_share=0.5)
    expected = SimCLR(contrast=Contrast(views=views))
    assert FeaturesParams.model_validate(values["features"]).root == expected


def test_paper_offers_its_other_detector_and_labeler():
    values = parameters(env="paper", detector_name="ln", labeler_name="nc")
    assert DetectParams.model_validate(values["detect"]).detector == LN(standardise=False)
    assert RelabelParams.model_validate(values["relabel"]).labeler == NC()
    assert values["warmup"]["recipe"] is None
    mixed = parameters(env="paper", labeler_name="nc")
    assert mixed["detect"]["detector"] == {"name": "lga"}
    assert mixed["warmup"]["recipe"]["epochs"] == 20
    assert mixed["features"] == values["features"]
    own = parameters(env="paper", warmup={"recipe": {"loss": {"name": "lga"}}})
    loss = WarmupParams.model_validate(own["warmup"]).recipe.loss
    assert loss == LocalGradientAscent(gamma=0.5)


@pytest.mark.parametrize("model", NAMES["model_name"])
@pytest.mark.parametrize("labeler", NAMES["labeler_name"])
@pytest.mark.parametrize("env", ["cifar10", "paper"])
def test_an_environment_with_another_choice_is_the_bases(model, labeler, env):
    values = parameters(env=env, model_name=model, labeler_name=labeler)
    base = parameters(model_name=model, labeler_name=labeler)
    if model != "compact":
        assert values["model"] == base["model"]
    if labeler == "ud":
        assert values["relabel"]["labeler"] == {"name": "ud", "recipe": values["train"]["recipe"]}
    elif (env, labeler) == ("cifar10", "nc"):
        own = {"name": "nc", "distance": "mahalanobis", "align": True, "spread": 0.25}
        assert values["relabel"]["labeler"] == own
    elif labeler != "vd":
        assert values["relabel"]["labeler"] == base["relabel"]["labeler"]
    needed = {"external": {"target": "package.module.Net"}}.get(model, {})
    ModelParams.model_validate(values["model"] | needed)


@pytest.mark.parametrize("env", ["cifar10", "paper"])
@pytest.mark.parametrize("name", NAMES["detector_name"])
def test_every_detector_finds_its_net_trained_in_every_environment(env, name, tmp_path):
    """Named by a run, it is what it is where the environment itself names it."""
    values = parameters(env=env, detector_name=name)
    detect = DetectParams.model_validate(values["detect"])
    warmup = WarmupParams.model_validate(values["warmup"])
    trained = {"warmup": warmup.recipe, "plain": warmup.plain_recipe}
    needed = {need for need in trained if need in detect.detector.needs}
    assert {need for need, recipe in trained.items() if recipe} >= needed
    reads = detect.suspect_ratio.reads
    assert reads is None or getattr(detect.detector, reads)
    conf = tmp_path / "conf"
    copytree(CONF, conf)
    choices = conf / env / "globals.yml"
    choices.write_text(
        yaml.safe_dump(yaml.safe_load(choices.read_text()) | {"detector_name": name})
    )
    named = parameters(conf, env)
    assert named["detect"] == values["detect"]
    assert named["warmup"] == values["warmup"]


@pytest.mark.parametrize("env", ["base", "cifar10", "paper"])
@pytest.mark.parametrize("name", NAMES["defence_name"])
def test_every_defence_is_valid_in_every_environment(env, name):
    values = parameters(env=env, defence_name=name)
    assert DefenceParams.model_validate(values["defence"]).root.name == name
    assert variant_path(values, "train").split("/")[-2] == name
    same = parameters(env=env)
    other = [path != variant_path(same, stage) for stage, path in paths(values).items()]
    assert other == [name != "nab" and ORDER.index(stage) >= 3 for stage in ORDER]


@pytest.mark.parametrize("defence", [ABL(), FinePruning(), NAD(), PDB()], ids=lambda it: it.name)
def test_paper_has_the_opponents_own_values(defence):
    values = parameters(env="paper", defence_name=defence.name)
    assert DefenceParams.model_validate(values["defence"]).root == defence
