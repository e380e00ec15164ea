"""What every exchangeable part has in common: it *is* its configuration.

A component is a frozen pydantic model whose ``name`` is a literal and whose
``__call__`` does the work. The members of a family form a union tagged by that
name (``Attack``, ``Detector``, …); joining the union is the registration.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

LARGEST = 10**6
"""Of every number, and minus it the smallest, unless its field says otherwise."""

SIDE = 4096
"""Longest side, in pixels, of what a configuration can ask for."""

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""Of a part that is drawn at random once and for all."""

Rate = Annotated[float, Field(gt=0, le=100)]
"""A learning rate; a larger one overflows whatever the net."""

Side = Annotated[int, Field(ge=1, le=SIDE)]
"""A length in pixels."""

Gap = Annotated[int, Field(ge=0, le=SIDE)]
"""A length in pixels that may be none."""

Channels = Annotated[int, Field(ge=1, le=4096)]
"""How many channels a layer has."""

Copies = Annotated[int, Field(ge=0, le=1000)]
"""How often samples are repeated."""


class _IsPlace:
    """Marks a text as the path of a file or folder."""


Place = Annotated[str, _IsPlace()]
"""A path; a relative one is within the project."""

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers that YAML 1.1 takes for text, such as 1e-3."""


def _whole(value: Any) -> Any:
    if isinstance(value, bool | str | bytes):
        raise PydanticKnownError("int_type")
    return value


def _real(value: Any) -> Any:
    text = isinstance(value, str) and not _EXPONENT.fullmatch(value)
    if text or isinstance(value, bool | bytes):
        raise PydanticKnownError("float_type")
    return value


_NUMBERS = {"int": _whole, "float": _real}


def _guard(node: Any, owner: type[BaseModel]) -> None:
    """Add to the leaves of a schema what :class:`Config` promises; other models have their own."""
    if isinstance(node, list | tuple):
        for each in node:
            _guard(each, owner)
    if not isinstance(node, dict):
        return
    kind = node.get("type")
    if kind == "model" and node["cls"] is not owner:
        return
    if kind == "function-before" and node["function"]["function"] in _NUMBERS.values():
        return  # guarded before
    if kind in ("int", "float"):
        for bound, other, value in (("ge", "gt", -LARGEST), ("le", "lt", LARGEST)):
            if bound not in node and other not in node:
                node[bound] = value
        inner: Any = dict(node)
        node.clear()
        node.update(core_schema.no_info_before_validator_function(_NUMBERS[kind], inner))
    elif kind == "bool":
        node["strict"] = True
    elif kind == "str":
        node.setdefault("min_length", 1)
    else:
        for key, value in node.items():
            if key not in ("metadata", "default", "serialization", "config"):
                _guard(value, owner)


class Config(BaseModel):
    """An immutable configuration that refuses keys it does not know.

    A number has to be one, finite and of a size that means something: neither ``true`` nor a
    text, and without bounds of its own at most :data:`LARGEST`. Likewise ``true`` and ``false``
    are no numbers, and texts are not empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Pydantic's own schema, with what holds for every value added to its leaves."""
        schema = handler(source)
        _guard(handler.resolve_ref_schema(schema), cls)
        return schema


class Component(Config):
    """Base of sources, attacks, detectors, labelers, models, losses and schedules."""

    name: str

    @classmethod
    def component_name(cls) -> str:
        """The literal that selects this component in a configuration."""
        return str(get_args(cls.model_fields["name"].annotation)[0])

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring: what the component is, in one line."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0]


def members(union: Any) -> Iterator[type[Component]]:
    """The component classes of a tagged union such as ``Attack``, in its order."""
    tagged = get_args(union)[0]
    yield from get_args(tagged)


M = TypeVar("M", bound=BaseModel)


def in_full(config: M, project: Path) -> M:
    """The same with paths that do not depend on the working directory.

    Args:
        config: what may hold fields of type :data:`Place`, also inside other configurations.
        project: the folder that relative paths lie in.
    """
    update: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            update[name] = in_full(value, project)
        elif isinstance(value, str) and _is_place((field.annotation, *field.metadata)):
            update[name] = str(project / _expanded(value))
    return config.model_copy(update=update)


def _is_place(parts: tuple[Any, ...]) -> bool:
    return any(isinstance(part, _IsPlace) or _is_place(get_args(part)) for part in parts)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a folder whose name begins with ~, and nobody's home
        return Path(path)
