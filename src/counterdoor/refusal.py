"""A configuration's refusal in one line: where, what was given, what is valid."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

LONGEST = 80
"""Characters of a value that are shown."""

Path = tuple[str | int, ...]


def one_line(
    error: ValidationError,
    model: Any,
    given: Any,
    place: str = "",
    short: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The first of a validation's errors, in words, at the path that leads there in the input.

    Pydantic's own path also names the members of unions that it has tried.

    Args:
        error: of a validation of ``given``.
        model: what it was validated as: a model, or a union of them.
        given: the values.
        place: where these stand, in front of every path.
        short: other names of some paths.
    """
    found = [(_typed(each, given), each) for each in error.errors(include_url=False)]
    # A name that there is not explains why another one is missing.
    found.sort(key=lambda each: each[1]["type"] != "extra_forbidden")
    first = found[0][0]
    # Of a union's members, the one that got furthest was meant.
    path = max((path for path, _ in found if path[: len(first)] == first), key=len)
    told = [each for where, each in found if where == path]
    own, name, kinds = _field_at(model, told[0]["loc"], path)
    items = tuple(takewhile(lambda key: isinstance(key, int), reversed(path)))[::-1]
    where = ".".join(map(str, (*filter(None, [place]), *path)))
    where = f"{short[where]} ({where})" if where in short else where
    kind, value = told[0]["type"], shown(told[0]["input"])
    if kind == "extra_forbidden":
        names = sorted({name for each in own for name in each.model_fields})
        return unknown("parameter", where, str(path[-1]), names)
    if kind == "missing":
        return f"{where} is missing; it must be {_valid(own, name, items)}"
    if kind == "union_tag_not_found":
        return f"{where} is {value}; it must be a mapping of parameters, name among them"
    if kind == "union_tag_invalid":
        tags = re.findall(r"'([^']+)'", told[0]["ctx"]["expected_tags"])
        at = f"{where}.name" if where else "name"
        return unknown("name", at, told[0]["ctx"]["tag"], tags)
    if kind in ("value_error", "assertion_error"):
        reason = " ".join(str(told[0]["ctx"]["error"]).split())
        whole = isinstance(told[0]["input"], Mapping | BaseModel) or not where
        return f"{where}: {reason}".removeprefix(": ") if whole else f"{where} is {value}: {reason}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        among = f": {', '.join(sorted(kinds[0].model_fields))}" if len(kinds) == 1 else ""
        return f"{where} is {value}; it must be a mapping of parameters{among}"
    valid = _valid(own, name, items) or " or ".join(each["msg"].lower() for each in told)
    return f"{where} is {value}; it must be {valid}"


def unknown(what: str, where: str, name: object, valid: Iterable[str]) -> str:
    """That there is no such name, the nearest one, and all there are."""
    names = sorted(valid)
    close = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    at = "" if where in (name, what) else f" at {where}"
    return f"unknown {what} {shown(name)}{at}{hint} Valid names: {', '.join(names)}"


def shown(value: Any) -> str:
    """A value on one line, cut if it is long."""
    text = repr(dict(value) if isinstance(value, BaseModel) else value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _typed(error: Any, given: Any) -> Path:
    """An error's path without the names of a union's members."""
    path: list[str | int] = []
    for number, key in enumerate(error["loc"]):
        if isinstance(given, Mapping):
            inside = key in given
        else:
            inside = isinstance(given, Sequence) and isinstance(key, int) and key < len(given)
        if inside:
            given = given[key]
        elif error["type"] != "missing" or number < len(error["loc"]) - 1:
            continue
        path.append(key)
    return tuple(path)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that values of a type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        root = annotation.model_fields.get("root")
        yield from _models(root.annotation) if root else (annotation,)
    for part in get_args(annotation):
        yield from _models(part)


def _field_at(
    model: Any, loc: Path, path: Path
) -> tuple[list[type[BaseModel]], str, list[type[BaseModel]]]:
    """The models that the last name is a field of, that name, and the models that it may be."""
    own: list[type[BaseModel]] = []
    name = ""
    here = list(_models(model))
    left = list(path)
    for key in loc:
        typed = bool(left) and key == left[0]
        if typed and isinstance(key, int):
            left.pop(0)
        elif isinstance(key, str) and (_has(here, key) or (typed and len(left) == 1)):
            left = left[typed:]
            own, name = here, key
            inner = [each.model_fields[key].annotation for each in here if _has([each], key)]
            here = [each for annotation in inner for each in _models(annotation)]
        else:  # a member of a union, by its tag or its class's name
            here = [each for each in here if key in _tags(each)] or here
    return own, name, here


def _has(models: Iterable[type[BaseModel]], key: object) -> bool:
    return any(key in each.model_fields for each in models)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    name = model.model_fields.get("name")
    return (model.__name__, *(get_args(name.annotation) if name else ()))


def _valid(own: Iterable[type[BaseModel]], name: str, items: Path) -> str:
    """What a field may be, or in it a list's item; empty if unknown."""
    for each in own:
        schema = each.model_json_schema()
        definitions = schema.get("$defs", {})
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
        node: Any = schema["properties"].get(name)
        for key in items:
            node = _item(node, key)
        if node is not None:
            return _words(node, definitions)
    return ""


def _item(node: Any, key: str | int) -> Any:
    for each in node.get("anyOf", [node]) if node else ():
        first = each.get("prefixItems", [])
        if isinstance(key, int) and key < len(first):
            return first[key]
        if "items" in each:
            return each["items"]
    return None


def _words(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "description" in node and "$ref" not in node:
        return str(node["description"])
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    if several := node.get("anyOf") or node.get("oneOf"):
        return " or ".join(dict.fromkeys(_words(each, definitions) for each in several))
    if "const" in node or "enum" in node:
        return " or ".join(map(repr, node.get("enum", [node.get("const")])))
    kind = node.get("type")
    if kind in ("integer", "number"):
        what = "a whole number" if kind == "integer" else "a number"
        if "multipleOf" in node:
            what += f", a multiple of {node['multipleOf']},"
        return f"{what} {_bounds(node)}"
    if kind == "array":
        items = node.get("prefixItems") or [node.get("items", {})]
        inner = " or ".join(dict.fromkeys(_words(each, definitions) for each in items))
        most, least = node.get("maxItems"), node.get("minItems")
        how_many = f" of {most}" if most and most == least else f" of at least {least}"
        return f"a list{how_many if least else ''}, each {inner}"
    return {
        "boolean": "true or false",
        "string": "a text that is not empty",
        "null": "null",
        "object": "a mapping of parameters",
    }.get(str(kind), "something else")


def _bounds(node: Mapping[str, Any]) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f"from {low} to {high}"
    least = f"at least {low}" if low is not None else f"above {node.get('exclusiveMinimum')}"
    most = f"at most {high}" if high is not None else f"below {node.get('exclusiveMaximum')}"
    return f"{least} and {most}"
