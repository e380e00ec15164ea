"""Attacks: what an adversary does to the training data."""

from typing import Annotated

from pydantic import Field

from counterdoor.attacks.badnets import BadNets
from counterdoor.attacks.base import (
    NOTHING,
    AttackBase,
    Poisoned,
    Rows,
    draw_rows,
    poison,
)
from counterdoor.attacks.blend import Blend
from counterdoor.attacks.labels import AllToAll, AllToOne, LabelMapping, LabelMappingBase

Attack = Annotated[BadNets | Blend, Field(discriminator="name")]
"""Every attack that a configuration can name."""

__all__ = [
    "NOTHING",
    "AllToAll",
    "AllToOne",
    "Attack",
    "AttackBase",
    "BadNets",
    "Blend",
    "LabelMapping",
    "LabelMappingBase",
    "Poisoned",
    "Rows",
    "draw_rows",
    "poison",
]
