"""What can be chosen, read off the components themselves."""

import json
from typing import Any

from counterdoor.attacks import Attack, LabelMapping
from counterdoor.component import Component, members
from counterdoor.defences import Defence
from counterdoor.detectors import Detector, SuspectRatio
from counterdoor.features import Features
from counterdoor.labelers import Labeler
from counterdoor.models import Model
from counterdoor.sources import Source

FAMILIES: dict[str, Any] = {
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
"""Each family's tagged union."""


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Every component by family: ``name``, ``summary``, ``parameters``.

    A parameter has ``name``, ``type`` (as in JSON schema), ``default`` (``None`` if it is
    ``required``) and ``required``.
    """
    return {
        family: [_describe(component) for component in members(union)]
        for family, union in FAMILIES.items()
    }


def _describe(component: type[Component]) -> dict[str, Any]:
    schema = component.model_json_schema()
    # One that can hold components of its own family is described by reference.
    properties = schema.get("$defs", {}).get(component.__name__, schema)["properties"]
    parameters = []
    for name, field in component.model_fields.items():
        if name == "name":
            continue
        told = properties[name]
        default = None if field.is_required() else json.loads(_dump(component, name))
        parameters.append(
            {
                "name": name,
                "type": told.get("type", told.get("$ref", "any").rsplit("/", 1)[-1]),
                "default": default,
                "required": field.is_required(),
            }
        )
    return {
        "name": component.component_name(),
        "summary": component.summary(),
        "parameters": parameters,
    }


def _dump(component: type[Component], name: str) -> str:
    from pydantic import TypeAdapter

    value = component.model_fields[name].get_default(call_default_factory=True)
    return TypeAdapter(Any).dump_json(value).decode()
