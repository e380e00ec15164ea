"""The catalogue says of every component what the component says of itself."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from counterdoor.attacks import Attack, BadNets, Blend, LabelMapping
from counterdoor.catalogue import FAMILIES, catalogue
from counterdoor.component import members
from counterdoor.defences import NAB, Defence, FinePruning
from counterdoor.detectors import LGA, Detector, Random, SuspectRatio
from counterdoor.features import Features
from counterdoor.labelers import VD, Drop, Labeler
from counterdoor.models import DigitsCNN, Model, ResNet18
from counterdoor.sources import Digits, Parquet, Source

UNIONS = {
    "sources": Source,
    "attacks": Attack,
    "label mappings": LabelMapping,
    "models": Model,
    "detectors": Detector,
    "suspect ratios": SuspectRatio,
    "features": Features,
    "labelers": Labeler,
    "defences": Defence,
}
PARTS = [
    pytest.param(family, kind, id=kind.__name__)
    for family, union in UNIONS.items()
    for kind in members(union)
]


def entry(family, kind):
    (found,) = [
        part for part in catalogue()[family] if part["name"] == kind.model_fields["name"].default
    ]
    return found


def test_every_member_of_every_union_is_listed_once_in_order():
    assert {family: [part["name"] for part in parts] for family, parts in catalogue().items()} == {
        family: [kind.model_fields["name"].default for kind in members(union)]
        for family, union in UNIONS.items()
    }
    assert FAMILIES == UNIONS


def test_what_there_is_today():
    assert {part["name"] for parts in catalogue().values() for part in parts} >= {
        kind.model_fields["name"].default
        for kind in (
            BadNets,
            Blend,
            LGA,
            Random,
            VD,
            Drop,
            NAB,
            FinePruning,
            DigitsCNN,
            ResNet18,
            Digits,
            Parquet,
        )
    }


def test_it_is_plain_json():
    plain = catalogue()
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize(("family", "kind"), PARTS)
def test_an_entry_says_what_the_component_is(family, kind):
    found = entry(family, kind)
    assert set(found) == {"name", "summary", "parameters"}
    assert found["summary"] == kind.__doc__.splitlines()[0]
    assert found["summary"].endswith(".")


@pytest.mark.parametrize(("family", "kind"), PARTS)
def test_every_parameter_but_the_name_is_listed_in_order(family, kind):
    listed = entry(family, kind)["parameters"]
    assert [each["name"] for each in listed] == [
        name for name in kind.model_fields if name != "name"
    ]
    for each in listed:
        assert set(each) == {"name", "type", "default", "required"}
        assert isinstance(each["type"], str)
        assert each["type"]
        assert each["required"] == kind.model_fields[each["name"]].is_required()
        assert not (each["required"] and each["default"] is not None)


@pytest.mark.parametrize(("family", "kind"), PARTS)
def test_the_listed_defaults_are_the_components(family, kind, tmp_path):
    """Writing out every default selects the same component as writing out none."""
    found = entry(family, kind)
    required = {each["name"] for each in found["parameters"] if each["required"]}
    told = {"target": "package.module.Net", "members": [{"name": "lga"}]}
    needed = {name: told.get(name, str(tmp_path)) for name in required}
    defaults = {
        each["name"]: each["default"] for each in found["parameters"] if not each["required"]
    }
    adapter = TypeAdapter(UNIONS[family])
    spelt_out = adapter.validate_python({"name": found["name"], **defaults, **needed})
    assert spelt_out == adapter.validate_python({"name": found["name"], **needed})
    assert type(spelt_out) is kind
    for name in required:
        with pytest.raises(ValidationError):
            adapter.validate_python({"name": found["name"], **needed} | {name: None})


def test_known_values():
    assert entry("attacks", Blend)["parameters"][0] == {
        "name": "poison_ratio",
        "type": "number",
        "default": 0.1,
        "required": False,
    }
    (path,) = [each for each in entry("sources", Parquet)["parameters"] if each["required"]]
    assert path["name"] == "path"
    patch = {each["name"]: each for each in entry("attacks", BadNets)["parameters"]}["patch"]
    assert patch["default"] == [[0, 0, 1], [0, 1, 0], [1, 0, 1]]
    recipe = {each["name"]: each for each in entry("labelers", VD)["parameters"]}["recipe"]
    assert recipe["type"] == "Recipe"
    assert recipe["default"]["schedule"]["name"] == "steps"


def test_a_changed_catalogue_is_nobody_elses():
    catalogue()["attacks"].clear()
    assert catalogue()["attacks"]


def test_the_readme_names_every_component():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    missing = [
        part["name"]
        for parts in catalogue().values()
        for part in parts
        if f"`{part['name']}`" not in readme
    ]
    assert not missing
