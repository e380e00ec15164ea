"""What is typed after --params is what a run gets."""

from typing import get_args

import pytest
from pydantic import BaseModel

from counterdoor.component import _is_place
from counterdoor.config import PLACES as LAST_NAMES
from counterdoor.given import PLACES, run_parameters
from counterdoor.params import STAGES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1,b.c=2", {"a": 1, "b": {"c": 2}}),
        ("a = 1, b.c = x ,", {"a": 1, "b": {"c": "x"}}),
        ("b.c=2,b.d=1e-3", {"b": {"c": 2, "d": 0.001}}),
        ("a=true,b=null,c=none,d=", {"a": True, "b": None, "c": "none", "d": None}),
        ("model.widths=[32,64,128],seed=1", {"model": {"widths": [32, 64, 128]}, "seed": 1}),
        ("a={b: 1, c: [2]},d=3", {"a": {"b": 1, "c": [2]}, "d": 3}),
        ("a='1',b=\"x y\"", {"a": "1", "b": "x y"}),
        ("a=x #1,b=c: d", {"a": "x #1", "b": "c: d"}),
    ],
)
def test_values_are_yaml_without_comments(text, expected):
    assert run_parameters(text) == expected


FOLDERS = [
    *("/data/a #1", "/data/a: b", "/data/a, b", "/data/a,b=c", "2024", "1e5", "null", "true", "~"),
    *("~/größer", " x ", "'q'", '"q"', "[a]", "{a}", "a=b", "${seed}", "C:\\x", "", "x,"),
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_path_is_taken_as_typed(folder):
    assert run_parameters(f"source_path={folder}") == {"source_path": folder}
    read = run_parameters(f"ingest.trusted_path={folder},train.recipe.epochs=3")
    assert read == {"ingest": {"trusted_path": folder}, "train": {"recipe": {"epochs": 3}}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed", "--params has 'seed', which is no name=value"),
        ("=1", "--params has '=1', which is no name=value"),
        ("seed=1,foo", "--params has 'foo', which is no name=value"),
        ("a=[1", r"a is '\[1', which YAML cannot read; quote it"),
        ("a=${b", r"a is '\${b', which YAML cannot read; quote it"),
        ("a.b=1,a=2", "a is set to 2, but has parameters of its own"),
        ("a=1,a.b=2", "a.b leads through a, which is set to 1"),
    ],
)
def test_what_is_no_parameter_is_refused(text, told):
    with pytest.raises(ValueError, match=told) as raised:
        run_parameters(text)
    assert "\n" not in str(raised.value)


def models(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for part in get_args(annotation):
        if part is not annotation:
            yield from models(part)


def test_every_parameter_that_is_a_path_is_known_as_one():
    found = {
        f"{group}.{'source.' if name == 'path' else ''}{name}"
        for group in ("ingest", "attack", "canary")
        for model in models(STAGES[group])
        for name, field in model.model_fields.items()
        if _is_place((field.annotation, *field.metadata))
    }
    assert found | {"source_path", "trusted_path"} == set(PLACES)
    assert {each.rpartition(".")[2] for each in found} == set(LAST_NAMES)
