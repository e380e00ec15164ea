"""Give every parameter values that it cannot have: each is refused before the first node.

Every field of every component is found in the models' schemas, and given values that do not fit
it: of another type, not finite, out of bounds, empty, misspelt. Its refusal has to be one line
that names the parameter and the value. Most are tried on the check that a run begins with, some
with the whole configuration, and some as `kedro run`, which must leave nothing behind.
"""

import copy
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overhead import project_copy

from counterdoor.config import Named
from counterdoor.defending import answering
from counterdoor.given import run_parameters
from counterdoor.params import STAGES, check
from counterdoor.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS

ROOT = Path(__file__).resolve().parents[2]

EVERY = 100
"""Of so many values one is tried with the whole configuration as well."""

NAN, INFINITE = float("nan"), float("inf")
OTHER_TYPES: tuple[Any, ...] = (True, False, 3, 0.5, "no such", "", "3", [], {}, None)
EXTREMES: tuple[Any, ...] = (NAN, INFINITE, -INFINITE, 10**30, -(10**30), 1e300)
FOLDERS = (
    "a #1",
    "a: b",
    "a, b",
    "2024",
    "1e5",
    "null",
    "true",
    "~x",
    "größer",
    "'q'",
    "a=b",
    "${x}",
)
"""Names of folders that YAML or Kedro would change."""


@dataclass(frozen=True)
class Field:
    """A parameter: its path, its JSON schema, and a valid configuration that has it."""

    path: tuple[str | int, ...]
    schema: Mapping[str, Any]
    base: Mapping[str, Any]


def fields(defaults: Mapping[str, Any]) -> Iterator[Field]:
    """Every field of every component once, in the first place where it is met."""
    seen: set[tuple[str, str]] = set()
    for group, model in STAGES.items():
        schema = model.model_json_schema()
        base = {group: defaults[group]}
        yield from _walk(schema, schema.get("$defs", {}), (group,), base, seen)


def _walk(
    node: Mapping[str, Any],
    definitions: Mapping[str, Any],
    path: tuple[str | int, ...],
    base: Mapping[str, Any],
    seen: set[tuple[str, str]],
) -> Iterator[Field]:
    node = _followed(node, definitions)
    objects = [
        _followed(each, definitions)
        for each in node.get("oneOf", node.get("anyOf", [node]))
        if _followed(each, definitions).get("properties")
    ]
    for each in objects:
        named = each["properties"].get("name", {}).get("const")
        inside = base if _at(base, path, named) else _with(base, path, _example(each))
        for name, field in each["properties"].items():
            if name != "name" and (each["title"], name) not in seen:
                seen.add((each["title"], name))
                full = dict(_followed(field, definitions)) | {"$defs": definitions}
                yield Field((*path, name), full, inside)
                yield from _walk(field, definitions, (*path, name), inside, seen)


def _followed(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _at(base: Any, path: tuple[str | int, ...], named: str | None) -> bool:
    """Whether a mapping lies there, of this name."""
    for key in path:
        base = base.get(key) if isinstance(base, Mapping) else None
    return isinstance(base, Mapping) and (named is None or base.get("name") == named)


def _with(base: Mapping[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The same with another value at a path."""
    changed: Any = copy.deepcopy(dict(base))
    place = changed
    for key in path[:-1]:
        if isinstance(place, dict) and not isinstance(place.get(key), dict | list):
            place[key] = {}
        place = place[key]
    place[path[-1]] = value
    return changed


def _example(node: Mapping[str, Any]) -> dict[str, Any]:
    """A valid value of a component: its name, and what has no default."""
    known = {"path": "data", "target": "package.module.Net", "epochs": 1, "learning_rate": 0.1}
    known |= {"members": [{"name": "lga"}], "detector": {"name": "lga"}, "suspect_ratio": 0.1}
    example = {name: known[name] for name in node.get("required", []) if name in known}
    name = node["properties"].get("name", {}).get("const")
    return example | ({"name": name} if name else {})


def fits(value: Any, node: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    """Whether a value is of a JSON schema, where numbers are neither true nor infinite."""
    node = _followed(node, definitions)
    if several := node.get("anyOf") or node.get("oneOf"):
        return any(fits(value, each, definitions) for each in several)
    if "enum" in node or "const" in node:
        allowed = node.get("enum", [node.get("const")])
        return any(value == each and type(value) is type(each) for each in allowed)
    kind = node.get("type")
    if kind in ("integer", "number"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or (kind == "integer" and value != int(value)):
            return False
        least, above = node.get("minimum", -INFINITE), node.get("exclusiveMinimum", -INFINITE)
        most, below = node.get("maximum", INFINITE), node.get("exclusiveMaximum", INFINITE)
        return bool(least <= value <= most and above < value < below)
    if kind == "array":
        if not isinstance(value, list):
            return False
        return node.get("minItems", 0) <= len(value) <= node.get("maxItems", len(value))
    types = {"string": str, "boolean": bool, "null": type(None), "object": dict}
    return kind is None or (isinstance(value, types[kind]) and (kind != "string" or value != ""))


def bad_values(field: Field) -> Iterator[Any]:
    """Values that a field cannot have."""
    definitions = field.schema["$defs"]
    if field.path[-1] == "suspect_ratio":  # a share or a name stands for a rule
        yield from (True, 0, 1, -0.1, "no such", "", [], None, *EXTREMES)
        return
    alternatives = [
        _followed(each, definitions)
        for each in field.schema.get("anyOf", field.schema.get("oneOf", [field.schema]))
    ]
    tried = [*OTHER_TYPES, *EXTREMES]
    for each in alternatives:
        if each.get("type") in ("integer", "number"):
            tried += [each[key] for key in ("exclusiveMinimum", "exclusiveMaximum") if key in each]
            tried += [each["minimum"] - 1] if "minimum" in each else []
            tried += [each["maximum"] + 1] if "maximum" in each else []
        if each.get("type") == "array":
            for item in (*each.get("prefixItems", []), each.get("items")):
                wrong = (bad for bad in (NAN, "no such", {}) if item)
                tried += [[bad] for bad in wrong if not fits(bad, item, definitions)]
    objects = any("properties" in each or each.get("type") == "object" for each in alternatives)
    for value in tried:
        if not fits(value, field.schema, definitions) and not (objects and value == {}):
            yield value


def judge(told: str | None, path: str, value: Any) -> str | None:
    """What is wrong with a refusal, if anything."""
    if told is None:
        return "accepted"
    if "\n" in told.strip():
        return f"more than one line: {told!r}"
    if path not in told:
        return f"does not name {path}: {told}"
    return None if isinstance(value, list | dict) or repr(value) in told else f"no value: {told}"


def refusal(parameters: Mapping[str, Any]) -> str | None:
    """What the check says of parameters."""
    try:
        check(parameters)
    except ValueError as error:
        return str(error)
    return None


def loaded(given: dict[str, Any]) -> str | None:
    """What the whole configuration says of run parameters."""
    from counterdoor.cli import message

    loader = CONFIG_LOADER_CLASS(
        conf_source=str(ROOT / "conf"), env="base", runtime_params=given, **CONFIG_LOADER_ARGS
    )
    try:
        check(loader["parameters"])
    except Exception as error:
        return message(error)
    return None


def _of_fields(defaults: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    number = 0
    for field in fields(defaults):
        path = ".".join(map(str, field.path))
        if wrong := refusal(field.base):
            yield f"{path} as it is", f"refused: {wrong}"
            continue
        for value in bad_values(field):
            changed = _with(field.base, field.path, value)
            yield f"{path}={value!r}", judge(refusal(changed), path, value)
            number += 1
            if number % EVERY == 0 and defaults[str(field.path[0])] == field.base[field.path[0]]:
                yield f"run parameter {path}={value!r}", judge(loaded(changed), path, value)
        if "arguments" not in field.path:
            *place, name = field.path
            misspelt = f"{name}x"
            told = refusal(_with(field.base, (*place, misspelt), 1))
            wrong = judge(told, f"{path}x", misspelt)
            if told and wrong is None and "did you mean" not in told:
                wrong = f"no nearest name: {told}"
            yield f"{path}x=1", wrong


def _of_names() -> Iterator[tuple[str, str | None]]:
    for name in Named.model_fields:
        for value in (None, True, NAN, [], {"a": 1}, "no such", ""):
            yield f"{name}={value!r}", judge(loaded({name: value}), name, value)
    for group in STAGES:
        for value in (5, "x", [], None):
            yield f"{group}={value!r}", judge(loaded({group: value}), group, value)
    for seed in (-1, 2**63, 1.5, "3"):
        yield f"seed={seed!r}", judge(loaded({"seed": seed}), "seed", seed)


def _of_defend() -> Iterator[tuple[str, str | None]]:
    tried = itertools.chain(
        (("max_minutes", value) for value in (0, -1, True, "x", [], {}, *EXTREMES)),
        (("source_path", value) for value in ("", None, 5, True, [], {})),
        (("trusted_path", value) for value in ("", None, 5, True, [], {})),
        (("ingest", value) for value in (5, "x", [])),
        (("detect", value) for value in (5, "x", [])),
    )
    for name, value in tried:
        if value in (None,) and name == "max_minutes":
            continue
        told: str | None = None
        try:
            answering(lambda **_: {})(pipelines=["defend"], params={name: value})
        except ValueError as error:
            told = str(error)
        yield f"{name}={value!r}", judge(told, name, value)


def _of_folders() -> Iterator[tuple[str, str | None]]:
    for folder in FOLDERS:
        for key, rest in itertools.product(("source_path", "ingest.source.path"), ("", ",seed=3")):
            read = run_parameters(f"{key}=/data/{folder}{rest}")
            path = read.get("source_path") or read["ingest"]["source"]["path"]
            right = path == f"/data/{folder}" and read.get("seed") == (3 if rest else None)
            yield f"--params {key}=/data/{folder}{rest}", None if right else f"read as {read}"


TYPED = (
    ("train.recipe.epoch=1", "train.recipe.epoch"),
    ("train.recipe.weight_decay=true", "train.recipe.weight_decay"),
    ("warmup.recipe.loss.gamma=.inf", "warmup.recipe.loss.gamma"),
    ("train.recipe.learning_rate=1e300", "train.recipe.learning_rate"),
    ("engine.devices=1000", "engine.devices"),
    ("engine.accelerator=mps", "engine.accelerator"),
    ("seed=true", "seed"),
    ("train=5", "train"),
    ("export.reject=3", "export.reject"),
    ("canary.poison_ratio=2", "canary.poison_ratio"),
    ("source_path=", "source_path"),
    ("attack_name=[badnets]", "attack_name"),
)
"""What is typed after `kedro run --params`, and what its refusal has to name."""


def _typed(work: Path) -> Iterator[tuple[str, str | None]]:
    project = project_copy(work / "project")
    before = sorted(project.rglob("*"))
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    for typed, named in TYPED:
        ended = subprocess.run(
            [sys.executable, "-m", "kedro", "run", "--params", typed],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        wrong = None
        if ended.returncode == 0:
            wrong = "exit code 0"
        elif len(lines) != 1 or not lines[0].startswith("Error: ") or named not in lines[0]:
            wrong = f"told as {lines[-3:]}"
        elif made := sorted(set(project.rglob("*")) - set(before)):
            wrong = f"leaves {made[0]}"
        yield f"kedro run --params {typed}", wrong


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:
    """Each bad value, and what was wrong with how it was taken, if anything."""
    loader = CONFIG_LOADER_CLASS(conf_source=str(ROOT / "conf"), env="base", **CONFIG_LOADER_ARGS)
    defaults = loader["parameters"]
    tried = 0
    for part in (_of_fields(defaults), _of_names(), _of_defend(), _of_folders(), _typed(work)):
        for each in part:
            tried += 1
            yield each
    if tried < least:
        yield "the number of values", f"{tried}, which is less than {least}"
