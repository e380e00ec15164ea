"""What every component of every family promises; a new one is tested by joining its union."""

import json
import math
from typing import Annotated, Literal, get_args

import numpy as np
import pytest
import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from counterdoor.attacks import AllToAll, AllToOne, Attack, BadNets, Blend, LabelMapping
from counterdoor.component import LARGEST, Component, Config, members
from counterdoor.detectors import (
    AGPD,
    LGA,
    LN,
    SPECTRE,
    ActivationClustering,
    Detector,
    Either,
    Ensemble,
    Oracle,
    Random,
    SCAn,
    SharedPattern,
    SuspectRatio,
)
from counterdoor.labelers import VD, Labeler
from counterdoor.models import DigitsCNN, Model
from counterdoor.params import STAGES
from counterdoor.recipe import (
    Cosine,
    Flooding,
    LocalGradientAscent,
    LossTransform,
    Recipe,
    Schedule,
    Steps,
)
from counterdoor.sources import Parquet, Source

FAMILIES = {
    "source": Source,
    "attack": Attack,
    "labels": LabelMapping,
    "detector": Detector,
    "suspect_ratio": SuspectRatio,
    "labeler": Labeler,
    "model": Model,
    "loss": LossTransform,
    "schedule": Schedule,
}

every_family = pytest.mark.parametrize("union", FAMILIES.values(), ids=list(FAMILIES))
every_component = pytest.mark.parametrize(
    ("union", "kind"),
    [
        pytest.param(union, kind, id=f"{family}-{kind.__name__}")
        for family, union in FAMILIES.items()
        for kind in members(union)
    ],
)


@every_family
def test_members_are_distinct_named_components(union):
    kinds = list(members(union))
    names = [kind.component_name() for kind in kinds]
    assert len(kinds) >= 2
    assert all(issubclass(kind, Component) for kind in kinds)
    assert len(set(names)) == len(names)


def test_members_keep_the_order_of_the_union():
    assert list(members(Detector)) == [
        *(LGA, LN, Random, SPECTRE, AGPD, SCAn, ActivationClustering),
        *(SharedPattern, Ensemble, Either, Oracle),
    ]


@every_component
def test_default_construction_has_the_literal_as_its_name(union, kind, make_component):
    component = make_component(kind)
    assert component.name == kind.component_name()


@every_component
def test_summary_is_one_line(union, kind):
    summary = kind.summary()
    assert len(summary) > 15
    assert "\n" not in summary
    assert summary == kind.__doc__.split("\n")[0].strip()


@every_component
def test_assignment_is_refused(union, kind, make_component):
    component = make_component(kind)
    for field in kind.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(component, field, getattr(component, field))


@every_component
def test_hashable_so_no_part_of_it_can_change(union, kind, make_component):
    assert hash(make_component(kind)) == hash(make_component(kind))


@every_component
def test_unknown_key_is_refused_by_name(union, kind, make_component):
    with pytest.raises(ValidationError, match=r"no_such_key\s+Extra inputs are not permitted"):
        make_component(kind, no_such_key=1)


@every_component
def test_yaml_round_trip(union, kind, make_component):
    component = make_component(kind)
    text = yaml.safe_dump(component.model_dump(mode="json"))
    again = TypeAdapter(union).validate_python(yaml.safe_load(text))
    assert type(again) is kind
    assert again == component


@pytest.mark.parametrize(
    ("union", "component"),
    [
        (Source, Parquet(path="some/where", image_mode="L", limit=10)),
        (Attack, BadNets(labels=AllToOne(target_class=3), patch=((1, 0),), margin=0)),
        (Attack, Blend(alpha=0.2, pattern_seed=-4, labels=AllToAll(), cover_ratio=0.3)),
        (Labeler, VD(recipe=Recipe(epochs=3, schedule=Cosine(tail_epochs=5)), stamp_inputs=False)),
        (Model, DigitsCNN(width=3)),
        (LossTransform, Flooding(gamma=0.1)),
        (LossTransform, LocalGradientAscent(gamma=0.1)),
        (Schedule, Steps(milestones=(1, 5), factor=0.2)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_yaml_round_trip_of_what_is_not_default(union, component):
    text = yaml.safe_dump(component.model_dump(mode="json"))
    assert TypeAdapter(union).validate_python(yaml.safe_load(text)) == component


@every_family
def test_unknown_name_lists_the_names_there_are(union):
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(union).validate_python({"name": "no_such_name"})
    message = str(raised.value)
    assert "no_such_name" in message
    for kind in members(union):
        assert repr(kind.component_name()) in message


def test_the_tag_chooses_the_member():
    assert type(TypeAdapter(Attack).validate_python({"name": "blend", "alpha": 0.3})) is Blend


def test_summary_takes_only_the_first_line():
    class Example(Component):
        """First line.

        Second paragraph.
        """

        name: Literal["example"] = "example"

    assert Example.summary() == "First line."
    assert Example.component_name() == "example"


def configurations(annotation, seen):
    """Every configuration that values of a type may hold, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in seen:
            return
        seen.add(annotation)
        for field in annotation.model_fields.values():
            configurations(field.annotation, seen)
    for part in get_args(annotation):
        configurations(part, seen)


def every_configuration():
    seen = set()
    for model in STAGES.values():
        configurations(model, seen)
    return sorted((each for each in seen if issubclass(each, Config)), key=lambda it: it.__name__)


NO_NUMBERS = (math.nan, math.inf, -math.inf, 10**30, -(10**30), 1e300, True, "3", "nan", "")


@pytest.mark.parametrize("kind", every_configuration(), ids=lambda kind: kind.__name__)
def test_no_field_of_any_part_takes_what_is_no_number_or_no_text(kind):
    """A new field is among them; bounds of its own can only be tighter."""
    for name, field in kind.model_fields.items():
        told = json.dumps(TypeAdapter(field.annotation).json_schema()) + str(field.metadata)
        wrong = list(NO_NUMBERS)
        if '"boolean"' in told:
            wrong = [each for each in wrong if each is not True] + [0, 1, "yes"]
        if '"string"' in told and '"const"' not in told and '"enum"' not in told:
            wrong = [each for each in wrong if each not in ("3", "nan")]
        for value in wrong:
            with pytest.raises(ValidationError) as raised:
                kind.model_validate({name: value})
            assert name in {each["loc"][0] for each in raised.value.errors()}, value


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), (0.5, 0.5), ("1e-3", 0.001), ("2E+1", 20.0), (np.float32(1), 1.0)],
)
def test_numbers_as_yaml_and_numpy_have_them(value, expected):
    """YAML 1.1 takes 1e-3 for a text."""

    class Settings(Config):
        """Example."""

        share: float

    assert Settings(share=value).share == expected


def test_what_has_no_bounds_is_at_most_a_million_and_never_empty():
    class Settings(Config):
        """Example."""

        count: int = 0
        share: float | None = None
        names: tuple[str, ...] = ()
        huge: Annotated[int, Field(le=10**9)] = 0

    schema = Settings.model_json_schema()["properties"]
    assert (schema["count"]["minimum"], schema["count"]["maximum"]) == (-LARGEST, LARGEST)
    assert schema["share"]["anyOf"][0]["maximum"] == LARGEST
    assert schema["names"]["items"]["minLength"] == 1
    assert Settings(count=LARGEST, huge=10**9).huge == 10**9
    for wrong in ({"count": LARGEST + 1}, {"share": -LARGEST - 1}, {"names": [""]}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Settings(**wrong)


def test_config_is_frozen_and_strict_about_keys():
    class Settings(Config):
        """Example."""

        size: int = 1

    with pytest.raises(ValidationError, match="frozen"):
        Settings().size = 2
    with pytest.raises(ValidationError, match="sizes"):
        Settings(sizes=2)
