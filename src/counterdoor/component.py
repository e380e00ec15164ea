"""What every exchangeable part has in common: it *is* its configuration.

A component is a frozen pydantic model whose ``name`` is a literal and whose
``__call__`` does the work. The members of a family form a union tagged by that
name (``Attack``, ``Detector``, …); joining the union is the registration.
"""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """An immutable configuration that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
